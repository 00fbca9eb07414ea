"""The benchmark: a grid in one file, cells that run once, tables and plots from their records."""
