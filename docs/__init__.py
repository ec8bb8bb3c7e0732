"""Pages about the library, and `_site`, which builds them as a site."""
