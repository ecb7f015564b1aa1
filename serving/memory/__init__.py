"""How much memory there is, how much is used, and what is done before it runs out."""
