"""Recipes, runs, comparisons and predictions: what the command line runs."""
