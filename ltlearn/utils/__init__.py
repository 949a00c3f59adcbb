"""Run folders, settings, progress and terminal output."""
