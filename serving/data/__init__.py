"""Records of entities and outcomes of predictions, kept in SQLite or Supabase."""
