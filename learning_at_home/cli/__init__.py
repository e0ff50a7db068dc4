"""The ``learning-at-home`` command."""
