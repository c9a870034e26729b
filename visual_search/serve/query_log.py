"""Queries and clicks, as they come in."""

from __future__ import annotations

import uuid
from typing import Any

from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from visual_search.serve.database import Database


def log_query(database: Database, model: int, **columns: Any) -> str:
    """Keep a query; its id, by which clicks name it. A power cut may lose the last second's.

    Args:
        database: of the index.
        model: that answered.
        columns: others of the table `queries`; `filters` are JSON values.
    """
    filters = Jsonb(columns.pop("filters", {}))
    row = {"id": str(uuid.uuid4()), "model": model, "filters": filters, **columns}
    statement = sql.SQL("INSERT INTO queries ({}) VALUES ({})").format(
        *(sql.SQL(", ").join(map(kind, row)) for kind in (sql.Identifier, sql.Placeholder))
    )
    with database.connection() as connection:
        connection.execute("SET LOCAL synchronous_commit = off")
        connection.execute(statement, row)
    return str(row["id"])


def log_click(database: Database, query: str, product: str) -> bool:
    """Keep that a product was chosen; False where there is no such query or product."""
    with database.connection() as connection:
        done = connection.execute(
            "INSERT INTO clicks (query, product) SELECT q.id, p.id FROM queries q, products p "
            "WHERE q.id = %s AND p.id = %s",
            (query, product),
        )
        return done.rowcount == 1


def clicked(database: Database) -> list[dict[str, Any]]:
    """Queries by image that led to a click: image, box, and the product clicked last.

    Of queries by an indexed image ("more like this") the image is that one's.
    """
    query = (
        "SELECT coalesce(q.image, i.path) AS path, coalesce(q.box, i.box) AS box, "
        "(array_agg(c.product ORDER BY c.id DESC))[1] AS product FROM queries q "
        "JOIN clicks c ON c.query = q.id LEFT JOIN images i ON i.id = q.liked "
        "WHERE q.text IS NULL AND (q.image IS NOT NULL OR (i.id IS NOT NULL "
        "AND c.product <> i.product)) GROUP BY q.id, i.id ORDER BY q.at, q.id"
    )
    with database.connection() as connection:
        return connection.cursor(row_factory=dict_row).execute(query).fetchall()
