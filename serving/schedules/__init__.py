"""Jobs at set times: each firing once over all instances, and never two of a schedule at a time."""
