"""The third set: layers, right and wrong, in the styles that people write, apart from the library of slips."""
