"""Right layers, one file per style."""
