"""A census of other people's models: whose norms `swap_norms` and `fuse_norms` take, and what that changes."""
