"""Right layers, as people write them."""
