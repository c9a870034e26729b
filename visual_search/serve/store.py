"""What an index holds, and the SQL that reads and writes it: products, images, embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pgvector import HalfVector
from psycopg import Connection, sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from visual_search.common.errors import UserError
from visual_search.data.images import ImageItem
from visual_search.data.tables import as_box
from visual_search.serve.database import Database
from visual_search.serve.records import Filters, Hit, IndexedModel, Product, StaleModelError

INLINE_DIMENSION = 3900
"""Up to here a vector stands in its row; PostgreSQL would put one beyond 2 kB elsewhere, and a
search fetch each by itself."""
HNSW_DIMENSION = 4000
"""pgvector's limit for half precision."""
MISSING = (
    "FROM images i WHERE problem IS NULL AND NOT EXISTS "
    "(SELECT FROM embeddings e WHERE e.image = i.id AND e.model = %(model)s)"
)
"""Images that lack a model's embedding."""
FACTS = "(title, category, price, in_stock, attributes)"


class Store:
    """An index."""

    def __init__(self, database: Database) -> None:
        self.database = database

    # Models

    def models(self) -> list[IndexedModel]:
        """All of the index, in the order they came."""
        return [IndexedModel(**row) for row in self._rows("SELECT * FROM models ORDER BY id")]

    def model(self, number: int) -> IndexedModel:
        """One of them, as it stands now."""
        return next(model for model in self.models() if model.id == number)

    def add_model(self, source: str, fingerprint: str, dimension: int) -> IndexedModel:
        """The model by its fingerprint, made where it is new; the first of an index answers."""
        with self.database.connection() as connection:
            ((number, is_new),) = connection.execute(
                "INSERT INTO models (source, fingerprint, dimension, current) VALUES "
                "(%s, %s, %s, NOT EXISTS (SELECT FROM models)) ON CONFLICT (fingerprint) "
                "DO UPDATE SET source = excluded.source RETURNING id, xmax = 0",
                (source, fingerprint, dimension),
            )
            if is_new:
                create = "CREATE TABLE {} PARTITION OF embeddings FOR VALUES IN ({})"
                table = _partition(number)
                connection.execute(sql.SQL(create).format(table, sql.Literal(number)))
                if dimension <= INLINE_DIMENSION:
                    inline = "ALTER TABLE {} ALTER vector SET STORAGE PLAIN"
                    connection.execute(sql.SQL(inline).format(table))
        return self.model(number)

    def switch(self, model: IndexedModel) -> int:
        """Let a model answer, in one transaction, unless an image lacks its embedding.

        Returns:
            How many images lack one; where it is 0, the model answers from now on.
        """
        with self.database.connection() as connection:
            # Nobody adds an image meanwhile; searches go on.
            connection.execute("LOCK TABLE images IN SHARE ROW EXCLUSIVE MODE")
            missing = _count_missing(connection, model)
            if not missing:
                connection.execute("UPDATE models SET current = false WHERE current")
                connection.execute("UPDATE models SET current = true WHERE id = %s", (model.id,))
        return missing

    def drop_others(self) -> list[str]:
        """Remove the models that do not answer, with their embeddings; their names."""
        others = [model for model in self.models() if not model.current]
        with self.database.connection() as connection:
            for model in others:
                table = _partition(model.id)
                connection.execute(sql.SQL("DROP TABLE {}").format(table))
                connection.execute("DELETE FROM models WHERE id = %s", (model.id,))
        return [model.name for model in others]

    def keep_calibration(self, model: IndexedModel, calibration: Mapping[str, Any]) -> None:
        """Store what turns a model's scores into probabilities."""
        with self.database.connection() as connection:
            connection.execute(
                "UPDATE models SET calibration = %s WHERE id = %s", (Jsonb(calibration), model.id)
            )

    def make_approximate(self, model: IndexedModel, wanted: bool) -> None:
        """Build the HNSW index of a model's embeddings, or remove it.

        Raises:
            UserError: where the embeddings are too long for one.
        """
        if wanted and model.dimension > HNSW_DIMENSION:
            raise UserError(
                f"--approximate takes up to {HNSW_DIMENSION} numbers, {model.name} gives "
                f"{model.dimension}: search exactly, or main_compress it"
            )
        name = sql.Identifier(f"embeddings_{model.id}_hnsw")
        build = "CREATE INDEX {} ON {} USING hnsw ((vector::halfvec({})) halfvec_ip_ops)"
        with self.database.connection() as connection:
            connection.execute(sql.SQL("DROP INDEX IF EXISTS {}").format(name))
            if wanted:
                connection.execute("SET LOCAL maintenance_work_mem = '512MB'")
                index = (name, _partition(model.id), sql.Literal(model.dimension))
                connection.execute(sql.SQL(build).format(*index))
            connection.execute(
                "UPDATE models SET approximate = %s WHERE id = %s", (wanted, model.id)
            )

    # Products

    def put(self, products: Sequence[Product], models: Sequence[int]) -> None:
        """Add products, or replace them with all their images, in one transaction.

        Images that stay the same keep their ids. Products are locked in the order of their ids,
        so that two writers never wait for each other.

        Args:
            products: each image has a vector for each of the models, or a problem.
            models: that the vectors are of.

        Raises:
            StaleModelError: where another model answers by now.
        """
        with self.database.connection() as connection:
            row = connection.execute("SELECT id FROM models WHERE current FOR SHARE").fetchone()
            if row is None or row[0] not in models:
                raise StaleModelError("the index has changed its model")
            self._put(connection, sorted(products, key=lambda product: product.id))

    @staticmethod
    def _put(connection: Connection[Any], products: Sequence[Product]) -> None:
        connection.execute(
            "INSERT INTO products SELECT * FROM jsonb_populate_recordset(NULL::products, %s) "
            f"ON CONFLICT (id) DO UPDATE SET {FACTS} = (excluded.title, excluded.category, "
            "excluded.price, excluded.in_stock, excluded.attributes)",
            (Jsonb([product.facts() for product in products]),),
        )
        images = {
            (product.id, image.path, image.box): image
            for product in products
            for image in product.images
        }
        written = connection.execute(
            "INSERT INTO images (product, path, box, fingerprint, problem) SELECT product, path, "
            "box, fingerprint, problem FROM jsonb_populate_recordset(NULL::images, %s) "
            "ON CONFLICT (product, path, box) DO UPDATE SET (fingerprint, problem) = "
            "(excluded.fingerprint, excluded.problem) RETURNING id, product, path, box",
            (
                Jsonb(
                    [
                        {"product": product, "path": path, "box": box,
                         "fingerprint": image.fingerprint, "problem": image.problem}
                        for (product, path, box), image in images.items()
                    ]
                ),
            ),
        )  # fmt: skip
        rows = {
            number: (product, images[product, path, tuple(box) if box else None])
            for number, product, path, box in written
        }
        connection.execute(
            "DELETE FROM images WHERE product = ANY(%s) AND id <> ALL(%s)",
            ([product.id for product in products], list(rows)),
        )
        # Embeddings of a file that was, in models beside these, are made anew.
        changed = [row for row, (_, image) in rows.items() if image.vectors or image.problem]
        connection.execute("DELETE FROM embeddings WHERE image = ANY(%s)", (changed,))
        _insert(
            connection,
            [
                (model, row, product, vector)
                for row, (product, image) in rows.items()
                for model, vector in image.vectors.items()
            ],
        )

    def set_facts(self, product: Product) -> bool:
        """Change what is told of a product, and leave its images; whether there is one."""
        with self.database.connection() as connection:
            done = connection.execute(
                f"UPDATE products SET {FACTS} = (SELECT title, category, price, in_stock, "
                "attributes FROM jsonb_populate_record(NULL::products, %s)) WHERE id = %s",
                (Jsonb(product.facts()), product.id),
            )
            return done.rowcount == 1

    def delete(self, ids: Sequence[str]) -> int:
        """Remove products with their images; how many there were."""
        with self.database.connection() as connection:
            done = connection.execute("DELETE FROM products WHERE id = ANY(%s)", (sorted(ids),))
            return done.rowcount

    def known(self, ids: Sequence[str]) -> dict[str, tuple[Product, dict[tuple[str, Any], str]]]:
        """Of those of the products that are there: facts, and fingerprints by path and box."""
        asked = {"ids": list(ids)}
        found: dict[str, tuple[Product, dict[tuple[str, Any], str]]] = {
            row["id"]: (Product(**row), {})
            for row in self._rows("SELECT * FROM products WHERE id = ANY(%(ids)s)", asked)
        }
        query = "SELECT product, path, box, fingerprint FROM images WHERE product = ANY(%(ids)s)"
        for row in self._rows(query, asked):
            if row["product"] in found:
                box = tuple(row["box"]) if row["box"] else None
                found[row["product"]][1][row["path"], box] = row["fingerprint"]
        return found

    def product_ids(self) -> set[str]:
        """Of all products."""
        return {row["id"] for row in self._rows("SELECT id FROM products")}

    def product(self, product: str) -> tuple[Product, list[int]] | None:
        """A product, and the ids of its images that can be shown."""
        asked = {"id": product}
        found = self._rows("SELECT * FROM products WHERE id = %(id)s", asked)
        query = "SELECT id FROM images WHERE product = %(id)s AND problem IS NULL ORDER BY id"
        images = [row["id"] for row in self._rows(query, asked)]
        return (Product(**found[0]), images) if found else None

    def image(self, image: int) -> ImageItem | None:
        """Where an image lies."""
        query = "SELECT path, box FROM images WHERE id = %(id)s AND problem IS NULL"
        return next(map(image_item, self._rows(query, {"id": image})), None)

    def images(self) -> list[tuple[int, str, ImageItem]]:
        """All that can be read: id, product, and where they lie."""
        query = "SELECT id, product, path, box FROM images WHERE problem IS NULL ORDER BY id"
        return [(row["id"], row["product"], image_item(row)) for row in self._rows(query)]

    def facets(self) -> dict[str, Any]:
        """Categories with their products, range of price, stock, and some images to start from."""
        (facts,) = self._rows(
            "SELECT count(*) AS products, min(price) AS price_min, max(price) AS price_max, "
            "count(in_stock) > 0 AS stock, ARRAY(SELECT min(id) FROM images WHERE problem IS NULL "
            "GROUP BY product ORDER BY min(id) LIMIT 10) AS examples, "
            "(SELECT count(*) FROM images WHERE problem IS NULL) AS images FROM products"
        )
        rows = self._rows(
            "SELECT category, count(*) AS products FROM products WHERE category IS NOT NULL "
            "GROUP BY category ORDER BY products DESC, category LIMIT 200"
        )
        return {**facts, "categories": {row["category"]: row["products"] for row in rows}}

    # Embeddings

    def missing(self, model: IndexedModel, limit: int) -> list[tuple[int, str, ImageItem]]:
        """Some images that lack a model's embedding: id, product, and where they lie."""
        query = f"SELECT id, product, path, box {MISSING} ORDER BY id LIMIT %(limit)s"
        rows = self._rows(query, {"model": model.id, "limit": limit})
        return [(row["id"], row["product"], image_item(row)) for row in rows]

    def count_missing(self, model: IndexedModel) -> int:
        """How many images lack a model's embedding."""
        with self.database.connection() as connection:
            return _count_missing(connection, model)

    def add_embeddings(
        self,
        model: IndexedModel,
        rows: Sequence[tuple[int, str, np.ndarray]],
        problems: Mapping[int, str],
    ) -> None:
        """Embeddings of images that lacked them, and what is wrong with those that have none."""
        with self.database.connection() as connection:
            there = connection.execute(
                "SELECT id FROM images WHERE id = ANY(%s) ORDER BY id FOR KEY SHARE",
                ([image for image, _, _ in rows],),
            )
            alive = {image for (image,) in there}  # others were deleted meanwhile
            _insert(connection, [(model.id, *row) for row in rows if row[0] in alive])
            for image, problem in problems.items():
                connection.execute("UPDATE images SET problem = %s WHERE id = %s", (problem, image))

    def vectors(self, model: IndexedModel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Every embedding of a model: image ids, products and `(n, dimension)`, float32."""
        query = sql.SQL("SELECT image, product, vector FROM {} ORDER BY image")
        with self.database.connection() as connection:
            rows = connection.execute(query.format(_partition(model.id))).fetchall()
        matrix = np.zeros((len(rows), model.dimension), np.float32)
        for place, (_, _, vector) in enumerate(rows):
            matrix[place] = vector.to_numpy()
        images = np.array([row[0] for row in rows], np.int64)
        return images, np.array([row[1] for row in rows], object), matrix

    def vector_of(self, model: IndexedModel, image: int) -> np.ndarray | None:
        """The embedding of an indexed image, `(dimension,)`, float32."""
        query = sql.SQL("SELECT vector FROM {} WHERE image = %s").format(_partition(model.id))
        with self.database.connection() as connection:
            row = connection.execute(query, (image,)).fetchone()
        return None if row is None else row[0].to_numpy().astype(np.float32)

    def search(
        self,
        model: IndexedModel,
        vector: np.ndarray,
        count: int,
        filters: Filters | None = None,
        *,
        by_product: bool = True,
        exact: bool = False,
    ) -> list[Hit]:
        """The nearest images that pass the filters, best first, equal ones by image.

        Args:
            model: whose embeddings are searched.
            vector: `(dimension,)`, of length 1.
            count: hits at the most.
            filters: on products.
            by_product: each product once, by its best image.
            exact: look at every embedding, also where there is an HNSW index.
        """
        limit, key = (count * 3, "id") if by_product else (count, "image")
        through_index = model.approximate and not exact
        with self.database.connection() as connection:
            while True:
                rows = _nearest(connection, model, vector, limit, filters, through_index)
                found = {row[key]: row for row in rows[::-1]}
                if len(found) >= count or len(rows) < limit:
                    break
                limit *= 4  # few products have many images
        best = sorted(found.values(), key=lambda row: (-row["score"], row["image"]))[:count]
        return [Hit(row.pop("image"), row.pop("score"), Product(**row)) for row in best]

    def _rows(self, query: str, values: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        with self.database.connection() as connection:
            cursor = connection.cursor(row_factory=dict_row)
            return cursor.execute(query.encode(), values).fetchall()


def _nearest(
    connection: Connection[Any],
    model: IndexedModel,
    vector: np.ndarray,
    limit: int,
    filters: Filters | None,
    through_index: bool,
) -> list[dict[str, Any]]:
    """Image, score and facts of the nearest images."""
    conditions, values = (filters or Filters()).conditions()
    inside = f"WHERE product IN (SELECT id FROM products WHERE {conditions})" if conditions else ""
    distance = "vector <#> %(vector)s"
    if through_index:
        # Spelled as the index is. It goes on looking until enough pass the filters; what it
        # found is put in the order of the distances outside.
        distance = f"(vector::halfvec({int(model.dimension)})) <#> %(vector)s"
        connection.execute("SET LOCAL hnsw.iterative_scan = relaxed_order")
        connection.execute(f"SET LOCAL hnsw.ef_search = {min(max(2 * limit, 40), 1000)}")
    # The distance stands there once: PostgreSQL would compute a second expression for each row.
    query = (
        f"WITH near AS MATERIALIZED (SELECT image, product, {distance} AS distance "
        f"FROM embeddings_{int(model.id)} {inside} ORDER BY distance LIMIT %(limit)s) "
        "SELECT image, -distance AS score, products.* FROM near "
        "JOIN products ON products.id = near.product ORDER BY distance, image"
    )
    asked = {"vector": HalfVector(vector), "limit": limit, **values}
    return connection.cursor(row_factory=dict_row).execute(query, asked).fetchall()


def _insert(connection: Connection[Any], rows: Sequence[tuple[int, int, str, np.ndarray]]) -> None:
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO embeddings VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
            [(model, row, owner, HalfVector(vector)) for model, row, owner, vector in rows],
        )


def _count_missing(connection: Connection[Any], model: IndexedModel) -> int:
    ((count,),) = connection.execute(f"SELECT count(*) {MISSING}", {"model": model.id})
    return int(count)


def image_item(row: Mapping[str, Any]) -> ImageItem:
    """The image of a row with `path` and `box`."""
    return ImageItem(Path(row["path"]), as_box(row["box"]) if row["box"] else None)


def _partition(model: int) -> sql.Identifier:
    return sql.Identifier(f"embeddings_{int(model)}")
