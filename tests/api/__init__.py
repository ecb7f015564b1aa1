"""The HTTP interface as honest clients use it."""
