"""Benchmarks beside those of `normlab bench`: each module prints ours beside another's, measured in one run."""
