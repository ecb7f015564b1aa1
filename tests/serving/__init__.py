"""The parts of serving on their own."""
