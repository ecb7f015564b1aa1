"""Memory that the master shares with its children."""
