"""``python -m learning_at_home`` is the ``learning-at-home`` command."""

from learning_at_home.cli.main import main

if __name__ == "__main__":
    main()
