"""Behaviour, through the public face; on real processes where processes matter."""
