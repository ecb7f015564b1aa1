"""What the service measures of itself, over all of its processes."""
