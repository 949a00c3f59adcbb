"""The command line. Each module holds a group of commands."""

from ltlearn.cli.app import app, main

__all__ = ["app", "main"]
