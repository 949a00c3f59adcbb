"""Builds the documentation site: `build` starts it, the `*_page(s)` write pages from the code."""
