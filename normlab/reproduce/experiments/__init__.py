"""The experiments, a file each: `run(setting) -> Result`."""
