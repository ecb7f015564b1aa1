"""Background jobs that survive the death of the process that runs them."""
