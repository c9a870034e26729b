"""Photos and the queries they were chosen for: the table that image–text training reads.

One row is one photo with all its queries (`pairs.parquet`); :data:`SCHEMA` says which columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from visual_search.errors import UserError
from visual_search.files import written_atomically

TEXTS = pa.list_(pa.string())

SCHEMA = pa.schema(
    [
        ("image_path", pa.string()),  # relative to the folder of the photos
        ("image", pa.string()),  # its id, as the source has it
        ("queries", TEXTS),  # as typed; at least one
        ("texts", TEXTS),  # the same, cleaned
        ("language", TEXTS),  # of each query: ISO 639-1
        ("group", pa.string()),  # photos of one group are right for each other's queries
        ("category", pa.string()),  # empty where there is none
        ("split", pa.string()),  # "train" trains, nothing else does
    ]
)

CLUSTER_FIELDS = [
    ("clusters", pa.list_(pa.int32())),  # of each query
    ("cluster", pa.int32()),  # of the photo: of the mean of its queries' embeddings
]
"""What `cluster_texts.py assign` adds."""

TRAIN, TEST = "train", "test"


Value = TypeVar("Value")


class ArrowRows(Sequence[Value], Generic[Value]):
    """A column of Arrow's as a sequence of Python values, each made when it is asked for.

    Millions of lists of texts stay in one block of memory, which worker processes share.
    """

    def __init__(self, column: Any) -> None:
        self._array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column

    def __len__(self) -> int:
        return len(self._array)

    @overload
    def __getitem__(self, index: int) -> Value: ...
    @overload
    def __getitem__(self, index: slice) -> list[Value]: ...
    def __getitem__(self, index: int | slice) -> Value | list[Value]:
        if isinstance(index, slice):
            return list(self._array[index].to_pylist())
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        found: Value = self._array[index % len(self)].as_py()
        return found

    def take(self, indexes: np.ndarray) -> ArrowRows[Value]:
        """The rows of `indexes`, int64."""
        return ArrowRows(self._array.take(pa.array(indexes)))


@dataclass(frozen=True)
class PairTable:
    """Photos with their queries; every column has n rows."""

    paths: Sequence[Path]
    images: ArrowRows[str]
    queries: ArrowRows[list[str]]
    """As typed, at least one a photo."""
    texts: ArrowRows[list[str]]
    """The same, cleaned."""
    languages: ArrowRows[list[str]]
    """Of each query: ISO 639-1."""
    groups: np.ndarray
    """`(n,)`, int64, 0..g-1: photos of one group are right for each other's queries."""
    categories: ArrowRows[str]
    splits: ArrowRows[str]
    clusters: np.ndarray | None = None
    """`(n,)`, int64; None where no clusters were assigned."""
    query_clusters: ArrowRows[list[int]] | None = None

    def __len__(self) -> int:
        return len(self.groups)

    def take(self, indexes: np.ndarray | Sequence[int]) -> PairTable:
        """Some of the rows, in that order; groups keep their numbers."""
        from visual_search.datasets import PathList

        rows = np.asarray(indexes, dtype=np.int64)
        return replace(
            self,
            paths=PathList(self.paths[row] for row in rows.tolist()),
            images=self.images.take(rows),
            queries=self.queries.take(rows),
            texts=self.texts.take(rows),
            languages=self.languages.take(rows),
            groups=self.groups[rows],
            categories=self.categories.take(rows),
            splits=self.splits.take(rows),
            clusters=None if self.clusters is None else self.clusters[rows],
            query_clusters=None if self.query_clusters is None else self.query_clusters.take(rows),
        )


def in_language(table: PairTable, language: str) -> tuple[np.ndarray, PairTable]:
    """The queries of one language, and the photos that have any.

    Args:
        table: any; clusters of queries are not kept.
        language: ISO 639-1; empty takes all.

    Returns:
        `(m,)`, int64, the rows that are left, and the table of them.

    Raises:
        UserError: when nothing is left.
    """
    if not language:
        return np.arange(len(table)), table
    rows, queries, texts = [], [], []
    for row, spoken in enumerate(table.languages):
        places = [place for place, said in enumerate(spoken) if said == language]
        if places:
            rows.append(row)
            queries.append([table.queries[row][place] for place in places])
            texts.append([table.texts[row][place] for place in places])
    if not rows:
        raise UserError(f"no photo has a query in the language {language!r}: it is ISO 639-1 (ru)")
    chosen = np.array(rows, dtype=np.int64)
    return chosen, replace(
        table.take(chosen),
        queries=ArrowRows(pa.array(queries, TEXTS)),
        texts=ArrowRows(pa.array(texts, TEXTS)),
        languages=ArrowRows(pa.array([[language] * len(q) for q in queries], TEXTS)),
        query_clusters=None,
    )


def open_pairs(path: Path) -> pq.ParquetFile:
    """The file, once its columns are checked.

    Raises:
        UserError: when it is missing, no parquet file, or without one of the columns.
    """
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; make it with dataset/image_text/text_cleaning.py or "
            "dataset/image_text/catalogue_pairs.py"
        ) from None
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is no readable parquet file: {error}") from error
    for field in SCHEMA:
        place = file.schema_arrow.get_field_index(field.name)
        if place < 0:
            raise UserError(f"{path} has no column {field.name!r}: it is no table of pairs")
        kind = file.schema_arrow.field(place).type
        if not kind.equals(field.type):
            raise UserError(f"{path}: column {field.name!r} is {kind}, {field.type} is needed")
    return file


def read_pairs(path: Path, split: str | None = None, root: Path | None = None) -> PairTable:
    """The table, or the rows of one split.

    Args:
        path: parquet, of :data:`SCHEMA`.
        split: `train` or `test`; None takes all rows.
        root: folder that `image_path` is relative to; the table's own when None.

    Raises:
        UserError: when the file is no such table, a row has no query or not as many texts as
            queries, or there is no row of that split.
    """
    from visual_search.datasets import PathList

    filters = None if split is None else pc.field("split") == split
    open_pairs(path)
    table = pq.read_table(path, filters=filters)
    if not table.num_rows:
        raise UserError(f"{path} has no row" + (f" of the split {split!r}" if split else ""))
    lengths = pc.list_value_length(table["queries"])
    wrong = pc.or_kleene(
        pc.less(lengths, 1), pc.not_equal(lengths, pc.list_value_length(table["texts"]))
    )
    place = pc.index(pc.fill_null(wrong, True), True).as_py()
    if place >= 0:
        raise UserError(
            f"{path}: the photo {table['image_path'][place].as_py()!r} has no query, or not as "
            "many texts as queries"
        )
    folder = path.parent if root is None else root
    clustered = "cluster" in table.column_names
    groups = table["group"].combine_chunks().dictionary_encode().indices
    return PairTable(
        paths=PathList(folder / name.as_py() for name in table["image_path"]),
        images=ArrowRows(table["image"]),
        queries=ArrowRows(table["queries"]),
        texts=ArrowRows(table["texts"]),
        languages=ArrowRows(table["language"]),
        groups=groups.to_numpy().astype(np.int64),
        categories=ArrowRows(table["category"]),
        splits=ArrowRows(table["split"]),
        clusters=table["cluster"].to_numpy().astype(np.int64) if clustered else None,
        query_clusters=ArrowRows(table["clusters"]) if clustered else None,
    )


def write_pairs(path: Path, table: pa.Table) -> None:
    """Write a table of :data:`SCHEMA`, with or without clusters, atomically.

    Raises:
        ValueError: for other columns.
    """
    with_clusters = "cluster" in table.column_names
    schema = pa.schema([*SCHEMA, *CLUSTER_FIELDS]) if with_clusters else SCHEMA
    with written_atomically(path) as temporary:
        pq.write_table(table.select(schema.names).cast(schema), temporary)
