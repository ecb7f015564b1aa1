"""Models to try forkserve with, trained from real data that ships inside wheels."""
