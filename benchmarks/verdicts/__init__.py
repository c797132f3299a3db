"""How studies are judged, put to the test: ways of judging beside each other, on simulated and on real cells.

`python -m benchmarks.verdicts`, or `make bench-verdicts`, prints the tables of `docs/statistics.md`. A *world*
(`worlds.py`) draws studies whose truth is known; a *procedure* (`procedures.py`, `ours.py`) judges them;
`measures.py` counts how often it is wrong, what it finds, and whether it changes its mind; `replay.py` draws
small studies from large real ones, which `cells/` holds as numbers.
"""
