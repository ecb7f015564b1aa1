"""Schedules: their times, what is due, who remembers it, who does it."""
