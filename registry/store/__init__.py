"""Model versions on disk: manifests, aliases, loading, adding."""
