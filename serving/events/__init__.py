"""Events that any process may tell and any worker's clients may follow, from where they left off."""
