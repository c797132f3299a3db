"""Array arithmetic: the specification of every kernel, written to be read."""
