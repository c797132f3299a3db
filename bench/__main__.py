"""Runs every benchmark: `python -m bench`."""

from __future__ import annotations

from bench import engine, norms, scratch

if __name__ == "__main__":
    norms.main()
    print()
    scratch.main()
    print()
    engine.main()
