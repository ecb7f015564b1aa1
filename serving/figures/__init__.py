"""The figures of all processes, put together for those who ask."""
