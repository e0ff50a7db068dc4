"""Faults for real processes and connections: see README.md."""
