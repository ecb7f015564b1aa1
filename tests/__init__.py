"""Everything the app must do, started by `make test`."""
