"""Changes of the catalogue's tables from version to version, which Alembic applies in order."""
