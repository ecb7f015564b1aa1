"""Tests that need real processes: services, runners, stores."""
