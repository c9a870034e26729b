-- An image for each model that has no embedding of it, and could.
CREATE VIEW missing AS
SELECT models.id AS model, images.* FROM models, images
WHERE problem IS NULL AND NOT EXISTS (
    SELECT FROM embeddings e WHERE e.model = models.id AND e.image = images.id
);

CREATE VIEW catalogue AS
SELECT products.*, ARRAY(
    SELECT to_jsonb(images) FROM images WHERE product = products.id ORDER BY images.id
) AS images
FROM products;

-- What the page shows before a search, and filters by.
CREATE VIEW facets AS
SELECT count(*) AS products, min(price) AS price_min, max(price) AS price_max,
    count(in_stock) > 0 AS stock,
    (SELECT count(*) FROM images WHERE problem IS NULL) AS images,
    ARRAY(
        SELECT min(id) FROM images WHERE problem IS NULL GROUP BY product ORDER BY min(id) LIMIT 10
    ) AS examples,
    ARRAY(
        SELECT jsonb_build_array(category, count(*)) FROM products WHERE category IS NOT NULL
        GROUP BY category ORDER BY count(*) DESC, category LIMIT 200
    ) AS categories
FROM products;

-- Images of queries that led to a click, with the product that was clicked last; of queries by an
-- indexed image ("more like this") that image.
CREATE VIEW clicked AS
SELECT coalesce(q.image, i.path) AS path, coalesce(q.box, i.box) AS box,
    (array_agg(c.product ORDER BY c.id DESC))[1] AS product
FROM queries q JOIN clicks c ON c.query = q.id LEFT JOIN images i ON i.id = q.liked
WHERE q.text IS NULL AND (q.image IS NOT NULL OR (i.id IS NOT NULL AND c.product <> i.product))
GROUP BY q.id, i.id ORDER BY q.at, q.id;

-- Adds products, or replaces them with all their images; images that stay the same keep their ids.
-- Products are locked in the order of their ids, so that two writers never wait for each other.
CREATE FUNCTION put_products(given jsonb)
RETURNS TABLE (id bigint, product text, path text, box integer[]) LANGUAGE sql AS $$
    INSERT INTO products
    SELECT p.* FROM jsonb_populate_recordset(NULL::products, given) p ORDER BY p.id
    ON CONFLICT (id) DO UPDATE SET (title, category, price, in_stock, attributes) = (
        excluded.title, excluded.category, excluded.price, excluded.in_stock, excluded.attributes
    );
    DELETE FROM images i USING jsonb_array_elements(given) p
    WHERE i.product = p ->> 'id' AND NOT EXISTS (
        SELECT FROM jsonb_populate_recordset(NULL::images, p -> 'images') n
        WHERE n.path = i.path AND n.box IS NOT DISTINCT FROM i.box
    );
    INSERT INTO images (product, path, box, fingerprint, problem)
    SELECT p ->> 'id', n.path, n.box, n.fingerprint, n.problem
    FROM jsonb_array_elements(given) p, jsonb_populate_recordset(NULL::images, p -> 'images') n
    ORDER BY 1
    ON CONFLICT (product, path, box) DO UPDATE SET
        (fingerprint, problem) = (excluded.fingerprint, excluded.problem)
    RETURNING images.id, images.product, images.path, images.box
$$;
