"""One cell: its model, its steps, and what is measured while it trains."""
