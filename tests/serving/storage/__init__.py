"""Tests of SQLite and Redis as stores."""
