"""The command ``edge``: a table for a person, JSON for a program."""
