"""Scripts of the developers; `scripts.site` builds the documentation."""
