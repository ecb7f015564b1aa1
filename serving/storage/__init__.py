"""Where jobs and events are kept: one SQLite file by default, Redis when it is configured."""
