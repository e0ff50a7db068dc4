"""The same work on other people's software, each in an environment of its own (see README.md)."""
