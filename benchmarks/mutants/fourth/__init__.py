"""The fourth set: written without a look at the library of slips, after the third had been used to extend it."""
