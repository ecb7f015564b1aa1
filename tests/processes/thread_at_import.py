"""Starts a thread when it is imported, as some libraries do."""

from harness.estimators import start_thread

THREAD = start_thread()
