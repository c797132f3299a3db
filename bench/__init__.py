"""Benchmarks: each module prints ours beside torch's, measured in one run. `python -m bench`, or `make bench`."""
