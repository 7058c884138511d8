"""The command ``edge-hub``: one module a group of commands."""
