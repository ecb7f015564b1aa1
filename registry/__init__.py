"""Models on disk and in memory; knows no HTTP and no cache."""
