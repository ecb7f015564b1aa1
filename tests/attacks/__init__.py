"""Hostile input: none of it may end a worker, leak anything or be answered with a 5xx."""
