"""Questions to trained networks: where they look, what they confuse, and why a batch size hurts."""
