"""The parts of the service, put together from the settings; nothing here starts anything."""
