"""How many requests each client may send."""
