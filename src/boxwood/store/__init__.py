"""Metadata: one SQLite database per data directory, one module of queries per noun. Knows nothing of the core."""
