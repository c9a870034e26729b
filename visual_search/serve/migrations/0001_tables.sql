CREATE EXTENSION IF NOT EXISTS vector;

CREATE TABLE models (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source text NOT NULL,              -- run or export folder that it was loaded from
    fingerprint text NOT NULL UNIQUE,  -- of weights, input size and settings of embedding
    dimension integer NOT NULL,
    current boolean NOT NULL DEFAULT false,
    approximate boolean NOT NULL DEFAULT false,
    calibration jsonb
);
CREATE UNIQUE INDEX one_current_model ON models (current) WHERE current;

CREATE TABLE products (
    id text PRIMARY KEY,
    title text,
    category text,
    price double precision,
    in_stock boolean,
    attributes jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX products_category ON products (category);
CREATE INDEX products_price ON products (price);
CREATE INDEX products_attributes ON products USING gin (attributes jsonb_path_ops);

CREATE TABLE images (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    product text NOT NULL REFERENCES products ON DELETE CASCADE,
    path text NOT NULL,
    box integer[],                     -- x, y, width, height in pixels of the stored image
    fingerprint text NOT NULL,         -- of the file's size and time of change
    problem text,                      -- why it has no embedding
    UNIQUE NULLS NOT DISTINCT (product, path, box)
);

-- A partition for each model: the old one answers, unhindered, while the new one is filled.
CREATE TABLE embeddings (
    model integer NOT NULL REFERENCES models,
    image bigint NOT NULL REFERENCES images ON DELETE CASCADE,
    product text NOT NULL,             -- of the image: a search without filters joins nothing
    vector halfvec NOT NULL,
    PRIMARY KEY (model, image)
) PARTITION BY LIST (model);
CREATE INDEX embeddings_image ON embeddings (image);
CREATE INDEX embeddings_product ON embeddings (product);

CREATE TABLE queries (
    id uuid PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    model integer NOT NULL,
    text text,
    image text,                        -- path of the image, with --log-images
    box integer[],
    liked bigint,                      -- the indexed image that was asked with
    filters jsonb NOT NULL,
    score real,
    probability real
);
CREATE INDEX queries_at ON queries (at);

CREATE TABLE clicks (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    query uuid NOT NULL REFERENCES queries ON DELETE CASCADE,
    product text NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX clicks_query ON clicks (query);
