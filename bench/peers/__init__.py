"""The alternatives to forkserve, to be measured beside it."""
