"""The comparison: a spec expands to cells, each trained once and recorded, and the records give a verdict."""
