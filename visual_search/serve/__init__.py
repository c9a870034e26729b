"""After the contest: a searchable index on PostgreSQL, its HTTP service, and the page on it."""
