"""What an index holds, and what reads and writes it: products, images, embeddings, queries."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pgvector import HalfVector
from psycopg import Connection
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from visual_search.common.errors import UserError
from visual_search.serve.connections import Database
from visual_search.serve.records import (
    Filters,
    Hit,
    IndexedImage,
    IndexedModel,
    Product,
    StaleModelError,
)

HNSW_DIMENSION = 4000
"""pgvector's limit for half precision."""
CONDITIONS = {
    "category": "category = ANY(%(category)s)",
    "price_min": "price >= %(price_min)s",
    "price_max": "price <= %(price_max)s",
    "in_stock": "in_stock = %(in_stock)s",
    "attributes": "attributes @> %(attributes)s",
}
"""Of each filter, on columns of `products`."""


class Store(Database):
    """An index; migrations/ says what its tables and views hold."""

    # Models

    def models(self) -> list[IndexedModel]:
        """All of the index, in the order they came."""
        return [IndexedModel(**row) for row in self.rows("SELECT * FROM models ORDER BY id")]

    def model(self, number: int) -> IndexedModel:
        """One of them, as it stands now."""
        return next(model for model in self.models() if model.id == number)

    def add_model(self, source: str, fingerprint: str, dimension: int) -> IndexedModel:
        """The model by its fingerprint, made where it is new; the first of an index answers."""
        with self.connection() as connection:
            ((number,),) = connection.execute(
                "INSERT INTO models (source, fingerprint, dimension, current) VALUES "
                "(%s, %s, %s, NOT EXISTS (SELECT FROM models)) ON CONFLICT (fingerprint) "
                "DO UPDATE SET source = excluded.source RETURNING id",
                (source, fingerprint, dimension),
            )
            connection.execute(
                f"CREATE TABLE IF NOT EXISTS embeddings_{number:d} PARTITION OF embeddings "
                f"FOR VALUES IN ({number:d})".encode()
            )
        return self.model(number)

    def switch(self, model: IndexedModel) -> int:
        """Let a model answer, in one transaction, unless an image lacks its embedding.

        Returns:
            How many images lack one; where it is 0, the model answers from now on.
        """
        with self.connection() as connection:
            # Nobody adds an image meanwhile; searches go on.
            connection.execute("LOCK TABLE images IN SHARE ROW EXCLUSIVE MODE")
            count = "SELECT count(*) FROM missing WHERE model = %s"
            ((missing,),) = connection.execute(count, (model.id,))
            if not missing:
                connection.execute("UPDATE models SET current = false WHERE current")
                connection.execute("UPDATE models SET current = true WHERE id = %s", (model.id,))
        return int(missing)

    def drop_others(self) -> list[str]:
        """Remove the models that do not answer, with their embeddings; their names."""
        others = [model for model in self.models() if not model.current]
        for model in others:
            self.rows(f"DROP TABLE {model.table}; DELETE FROM models WHERE id = {model.id:d}")
        return [model.name for model in others]

    def keep_calibration(self, model: IndexedModel, calibration: Mapping[str, Any]) -> None:
        """Store what turns a model's scores into probabilities."""
        change = "UPDATE models SET calibration = %(calibration)s WHERE id = %(id)s"
        self.rows(change, id=model.id, calibration=Jsonb(calibration))

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
        build = (
            f"SET LOCAL maintenance_work_mem = '512MB'; CREATE INDEX {model.table}_hnsw ON "
            f"{model.table} USING hnsw ((vector::halfvec({model.dimension:d})) halfvec_ip_ops);"
        )
        self.rows(
            f"DROP INDEX IF EXISTS {model.table}_hnsw; {build if wanted else ''}"
            f"UPDATE models SET approximate = {wanted} WHERE id = {model.id:d}"
        )

    # Products

    def put(self, products: Sequence[Product], models: Sequence[int]) -> None:
        """Add products, or replace them with all their images, in one transaction.

        Args:
            products: each new or changed image has a vector for each of the models, or a problem.
            models: that the vectors are of.

        Raises:
            StaleModelError: when none of the models answers any more.
        """
        images = {
            (one.id, image.path, image.box): image for one in products for image in one.images
        }
        told = [
            {**one.facts(), "images": [image.told() for image in one.files().values()]}
            for one in products
        ]
        with self.connection() as connection:
            answering = "SELECT id FROM models WHERE current AND id = ANY(%s) FOR SHARE"
            if not connection.execute(answering, (list(models),)).fetchone():
                raise StaleModelError("another model answers by now: run the command again")
            rows = {
                number: images[product, path, tuple(box) if box else None]
                for number, product, path, box in connection.execute(
                    "SELECT * FROM put_products(%s)", (Jsonb(told),)
                )
            }
            # Embeddings of a file that was, in models beside these, are made anew.
            changed = [row for row, image in rows.items() if image.vectors or image.problem]
            connection.execute("DELETE FROM embeddings WHERE image = ANY(%s)", (changed,))
            _insert(connection, rows.items())

    def set_facts(self, product: Product) -> bool:
        """Change what is told of a product, and leave its images; whether there is one."""
        change = (
            "UPDATE products SET (title, category, price, in_stock, attributes) = (SELECT title, "
            "category, price, in_stock, attributes FROM jsonb_populate_record(NULL::products, "
            "%(told)s)) WHERE id = %(id)s RETURNING id"
        )
        return bool(self.rows(change, id=product.id, told=product.facts()))

    def delete(self, ids: Collection[str]) -> int:
        """Remove products with their images; how many there were."""
        remove = "DELETE FROM products WHERE id = ANY(%(ids)s) RETURNING id"
        return len(self.rows(remove, ids=sorted(ids)))

    def products(self, ids: Collection[str]) -> dict[str, Product]:
        """Those of the products that are there, with their images."""
        query = "SELECT * FROM catalogue WHERE id = ANY(%(ids)s)"
        found = self.rows(query, ids=list(ids))
        for row in found:
            row["images"] = [IndexedImage(**image) for image in row["images"]]
        return {row["id"]: Product.model_construct(**row) for row in found}

    def product_ids(self) -> set[str]:
        """Of all products."""
        return {row["id"] for row in self.rows("SELECT id FROM products")}

    def images(self, image: int | None = None) -> list[IndexedImage]:
        """All that can be read, or one of them."""
        query = "SELECT * FROM images WHERE problem IS NULL"
        if image is not None:
            query += " AND id = %(image)s"
        return [IndexedImage(**row) for row in self.rows(f"{query} ORDER BY id", image=image)]

    def facets(self) -> dict[str, Any]:
        """Categories with their products, range of price, stock, and some images to start from."""
        return self.rows("SELECT * FROM facets")[0]

    # Embeddings

    def missing(self, model: IndexedModel) -> list[IndexedImage]:
        """The images that lack a model's embedding."""
        query = (
            "SELECT id, product, path, box, fingerprint FROM missing WHERE model = %(model)s "
            "ORDER BY id"
        )
        return [IndexedImage(**row) for row in self.rows(query, model=model.id)]

    def add_embeddings(self, images: Sequence[IndexedImage]) -> None:
        """Embeddings of images that lacked them, or what is wrong with them."""
        rows = {image.id: image for image in images}
        # Others were deleted, are being changed, or are of another file meanwhile.
        there = (
            "SELECT id, fingerprint FROM images WHERE id = ANY(%s) FOR NO KEY UPDATE SKIP LOCKED"
        )
        with self.connection() as connection:
            found = connection.execute(there, (list(rows),)).fetchall()
            alive = [(row, rows[row]) for row, file in found if rows[row].fingerprint == file]
            _insert(connection, alive)
            connection.cursor().executemany(
                "UPDATE images SET problem = %s WHERE id = %s",
                [(one.problem, image) for image, one in alive if one.problem],
            )

    def vectors(self, model: IndexedModel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Every embedding of a model: image ids, products and `(n, dimension)`, float32."""
        rows = self.rows(f"SELECT * FROM {model.table} ORDER BY image")
        matrix = np.array([row["vector"].to_numpy() for row in rows], np.float32)
        images = np.array([row["image"] for row in rows], np.int64)
        owners = np.array([row["product"] for row in rows], object)
        return images, owners, matrix.reshape(-1, model.dimension)

    def vector_of(self, model: IndexedModel, image: int) -> np.ndarray | None:
        """The embedding of an indexed image, `(dimension,)`, float32."""
        query = f"SELECT vector FROM {model.table} WHERE image = %(image)s"
        for row in self.rows(query, image=image):
            return np.asarray(row["vector"].to_numpy(), np.float32)
        return None

    def search(
        self,
        model: IndexedModel,
        vector: np.ndarray,
        count: int,
        filters: Filters | None = None,
        *,
        by_product: bool = True,
    ) -> list[Hit]:
        """The nearest images that pass the filters, best first, equal ones by image.

        Args:
            model: whose embeddings are searched.
            vector: `(dimension,)`, of length 1.
            count: hits at the most.
            filters: on products.
            by_product: each product once, by its best image.
        """
        given = filters.given() if filters else {}
        conditions = " AND ".join(CONDITIONS[name] for name in given)
        inside = f"WHERE product IN (SELECT id FROM products WHERE {conditions})" if given else ""
        # Spelled as the index is. It goes on looking until enough pass the filters; what it found
        # is put in the order of the distances outside.
        column = f"(vector::halfvec({model.dimension:d}))" if model.approximate else "vector"
        # The distance stands there once: PostgreSQL would compute a second one for each row.
        order = "distance" if model.approximate else "distance, image"
        query = (
            f"WITH near AS MATERIALIZED (SELECT image, product, {column} <#> %(vector)s AS distance"
            f" FROM {model.table} {inside} ORDER BY {order} LIMIT %(limit)s) "
            "SELECT image, -distance AS score, to_jsonb(products) AS product FROM near "
            "JOIN products ON products.id = near.product ORDER BY distance, image"
        )
        limit = count * 3 if by_product else count
        with self.session() as connection:
            cursor = connection.cursor(row_factory=class_row(Hit))
            while True:
                asked = {"vector": HalfVector(vector), "limit": limit, **given}
                hits = cursor.execute(query.encode(), asked).fetchall()
                best = {hit.product["id"] if by_product else hit.image: hit for hit in hits[::-1]}
                if len(best) >= count or len(hits) < limit:
                    return sorted(best.values(), key=lambda hit: (-hit.score, hit.image))[:count]
                limit *= 4  # few products have many images

    # Queries and clicks

    def log_query(self, model: int, **columns: Any) -> str:
        """Keep a query, by columns of the table `queries`; its id, by which clicks name it.

        A power cut may lose those of the last second.
        """
        row = {"model": model, "filters": {}, **columns}
        names = ", ".join(row)
        (kept,) = self.rows(
            f"INSERT INTO queries (id, {names}) SELECT gen_random_uuid(), {names} "
            "FROM jsonb_populate_record(NULL::queries, %(row)s), "
            "set_config('synchronous_commit', 'off', true) RETURNING id",
            row=row,
        )
        return str(kept["id"])

    def log_click(self, query: str, product: str) -> bool:
        """Keep that a product was chosen; False where there is no such query or product."""
        keep = (
            "INSERT INTO clicks (query, product) SELECT q.id, p.id FROM queries q, products p "
            "WHERE q.id = %(query)s AND p.id = %(product)s RETURNING id"
        )
        return bool(self.rows(keep, query=query, product=product))

    def clicked(self, *, photos: bool = False) -> list[IndexedImage]:
        """Images of queries that led to a click, with the product that was clicked last.

        Products that are gone are left out; `photos`: so are images of the index ("more like
        this"), which find themselves first, and are not what was clicked.
        """
        query = "SELECT * FROM clicked WHERE product IN (SELECT id FROM products)"
        if photos:
            query += " AND NOT EXISTS (SELECT FROM images WHERE images.path = clicked.path)"
        return [IndexedImage(**row) for row in self.rows(query)]


def _insert(connection: Connection[Any], images: Iterable[tuple[int, IndexedImage]]) -> None:
    """The embeddings of images, by their numbers."""
    connection.cursor().executemany(
        "INSERT INTO embeddings SELECT %s, id, product, %s FROM images WHERE id = %s "
        "ON CONFLICT DO NOTHING",
        [
            (model, HalfVector(vector), row)
            for row, image in images
            for model, vector in image.vectors.items()
        ],
    )
