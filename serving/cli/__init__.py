"""What `forkserve` can do at the terminal."""
