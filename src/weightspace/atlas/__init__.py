"""Many networks kept together: catalogued, told apart from their relatives, and asked with new data."""
