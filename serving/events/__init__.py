"""Events that any process may append and that the clients of any worker may follow from where they left off."""
