"""Background jobs that survive the death of whoever runs them."""
