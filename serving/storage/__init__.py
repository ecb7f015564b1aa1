"""Files and servers that the service uses: SQLite, Redis, calls over HTTP, and the guard in front of them."""
