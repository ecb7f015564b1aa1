"""What is asked of a running service from outside: whether it works, and how much it bears."""
