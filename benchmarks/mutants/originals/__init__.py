"""Correct normalization layers as people write them by hand; the catalogue's bugs are patches to these files."""
