"""A local server over the same pages, and a playground."""
