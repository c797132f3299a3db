"""The counters of a job, as threads see them: each has a cache line of its own."""

from __future__ import annotations

LINE = 8  # numbers in a cache line
UNITS, NEXT, DONE, ACTIVE, PART, ARRIVED = range(0, 6 * LINE, LINE)
SIZE = 6 * LINE
OVER = -1  # in place of the number of a part: there is none any more
