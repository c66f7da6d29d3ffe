"""Model profiles, read from the models' own files."""
