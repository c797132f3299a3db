"""The module tree of the teaching assignments, so that their notebooks run on `normlab.scratch`.

    import sys
    import normlab.scratch.course
    sys.modules["cs231n"] = normlab.scratch.course

Then `from cs231n.layers import *` and the like find the modules of this package. `normlab scratch install-as cs231n
DIR` writes a package of that name instead, for notebooks in DIR that are not to be touched.

Names, arguments and random draws are those of the assignments of 2016 to 2022, where they differ from the engine's:
weights come from NumPy's global generator, `seed` is the dropout mask's alone, `dropout=` and `use_batchnorm=` are
understood. The layers themselves are the engine's.
"""
