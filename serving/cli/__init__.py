"""The commands of `forkserve`."""
