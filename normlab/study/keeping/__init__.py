"""What outlives a process: the store, its locks, checkpoints and records."""
