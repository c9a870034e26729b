-- A vector stands in its row as long as a page holds it: PostgreSQL would put one beyond 2 kB
-- elsewhere, and a search fetch each by itself. Partitions that are made later are told so, too.
ALTER TABLE embeddings ALTER vector SET STORAGE MAIN;
