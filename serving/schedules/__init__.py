"""What is done again and again at set times: each firing once over all instances, and never two at a time."""
