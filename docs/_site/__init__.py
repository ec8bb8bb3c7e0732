"""The documentation site: pages of the repository and of the code, built by Sphinx; see `__main__`."""
