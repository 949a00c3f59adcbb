"""Builds the documentation site. `build` is the entry point; `*_pages` and `*_page` write generated pages."""
