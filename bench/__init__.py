"""What is measured, and against whom; every command prints a table."""
