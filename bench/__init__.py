"""Benchmarks, beside alternatives; every command prints a table."""
