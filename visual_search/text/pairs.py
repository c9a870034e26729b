"""Images and the queries they were chosen for: the table that image–text training reads.

One row is one image with all its queries (`pairs.parquet`); :data:`SCHEMA` says which columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from visual_search.common.errors import UserError
from visual_search.common.files import check_regular, written_atomically
from visual_search.data.values import NO_VALUE, in_small_letters
from visual_search.text.config import PairDataConfig

if TYPE_CHECKING:
    from visual_search.data.images import ImageItem

TEXTS = pa.list_(pa.string())

SCHEMA = pa.schema(
    [
        ("image_path", pa.string()),  # relative to the folder of the images
        ("image", pa.string()),  # its id, as the source has it
        ("queries", TEXTS),  # as typed; at least one
        ("texts", TEXTS),  # the same, cleaned
        ("language", TEXTS),  # of each query: ISO 639-1
        ("group", pa.string()),  # images of a group are relevant to each other's queries
        ("category", pa.string()),  # empty where there is none
        ("split", pa.string()),  # "train" trains, nothing else does
    ]
)

CLUSTER_FIELDS = [
    ("clusters", pa.list_(pa.int32())),  # of each query
    ("cluster", pa.int32()),  # of the image: of the mean of its queries' embeddings
]
"""What `cluster_texts.py assign` adds."""

TRAIN, TEST = "train", "test"

Column = pd.arrays.ArrowExtensionArray
"""A sequence of Python values, each made when it is asked for.

Millions of lists of texts stay in one block of memory, which worker processes share.
"""


@dataclass(frozen=True)
class PairTable:
    """Images with their queries; every column has n rows."""

    paths: Sequence[Path]
    queries: Column
    """Lists of texts: as typed, at least one an image."""
    texts: Column
    """The same, cleaned."""
    languages: Column
    """Of each query: ISO 639-1."""
    groups: np.ndarray
    """`(n,)`, int64, 0..g-1: images of one group are relevant to each other's queries."""
    categories: Column
    clusters: np.ndarray | None = None
    """`(n,)`, int64; None where no clusters were assigned."""

    def __len__(self) -> int:
        return len(self.groups)

    def items(self) -> list[ImageItem]:
        """The images, to be embedded."""
        from visual_search.data.images import ImageItem

        return [ImageItem(path) for path in self.paths]

    def texts_of(self, image: int, column: str) -> list[str]:
        """An image's `queries`, as typed, or `texts`, cleaned, without repeats.

        A query of which cleaning left nothing is still what was typed.
        """
        own = self.texts if column == "texts" else self.queries
        texts = [text for text in own[image] if text.strip()]
        return list(dict.fromkeys(texts or self.queries[image]))

    def take(self, indexes: np.ndarray | Sequence[int]) -> PairTable:
        """Some of the rows, in that order; groups keep their numbers."""
        from visual_search.data.datasets import PathList

        rows = np.asarray(indexes, dtype=np.int64)
        columns = ("queries", "texts", "languages", "groups", "categories")
        taken: dict[str, Any] = {name: getattr(self, name).take(rows) for name in columns}
        if self.clusters is not None:
            taken["clusters"] = self.clusters[rows]
        return replace(self, paths=PathList(self.paths[row] for row in rows.tolist()), **taken)


def in_language(table: PairTable, language: str) -> tuple[np.ndarray, PairTable]:
    """The queries of one language (ISO 639-1; empty: all), and the images that have any.

    Returns the rows that are left, `(m,)`, int64, and the table of them.

    Raises:
        UserError: when nothing is left.
    """
    if not language:
        return np.arange(len(table)), table
    names = ("queries", "texts", "languages")
    lists = {name: pa.array(getattr(table, name)) for name in names}
    said = {"row": pc.list_parent_indices(lists["queries"])}
    said |= {name: pc.list_flatten(values) for name, values in lists.items()}
    kept = pa.table(said).filter(pc.field("languages") == language)
    kept = kept.group_by("row", use_threads=False).aggregate([(name, "list") for name in names])
    if not kept.num_rows:
        raise UserError(f"no image has a query in the language {language!r}: it is ISO 639-1 (ru)")
    rows = kept["row"].to_numpy()
    queries, texts, languages = (Column(kept[f"{name}_list"]) for name in names)
    return rows, replace(table.take(rows), queries=queries, texts=texts, languages=languages)


def open_pairs(path: Path) -> pq.ParquetFile:
    """The file, once its columns are checked.

    Raises:
        UserError: when it is missing, no parquet file, or without one of the columns.
    """
    try:
        check_regular(path)
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
        UserError: when the file is no such table, a row has no path, group or query, or not as many
            texts or languages as queries, or there is no row of that split.
    """
    from visual_search.data.datasets import PathList

    filters = None if split is None else pc.field("split") == split
    open_pairs(path)
    table = pq.read_table(path, filters=filters)
    if not table.num_rows:
        raise UserError(f"{path} has no row" + (f" of the split {split!r}" if split else ""))
    groups = _refuse_bad_rows(path, table)
    folder = path.parent if root is None else root
    clustered = "cluster" in table.column_names
    return PairTable(
        paths=PathList(folder / name.as_py() for name in table["image_path"]),
        queries=Column(table["queries"]),
        texts=Column(table["texts"]),
        languages=Column(table["language"]),
        groups=groups.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64),
        categories=Column(table["category"]),
        clusters=table["cluster"].to_numpy().astype(np.int64) if clustered else None,
    )


def _refuse_bad_rows(path: Path, table: pa.Table) -> pa.ChunkedArray:
    """The groups by value; images without one would all be right for each other's queries."""
    lengths = pc.list_value_length(table["queries"])
    wrong = pc.less(lengths, 1)
    for column in ("texts", "language"):
        wrong = pc.or_kleene(wrong, pc.not_equal(lengths, pc.list_value_length(table[column])))
    groups = pc.utf8_normalize(pc.utf8_trim_whitespace(table["group"]), form="NFC")
    no_value = pa.array(sorted(NO_VALUE))
    for fault, what in (
        (wrong, "no query, or not as many texts or languages as queries"),
        (pc.is_in(pc.fill_null(table["image_path"], ""), value_set=no_value), "no path"),
        (pc.is_in(pc.fill_null(groups, ""), value_set=no_value), "no group"),
    ):
        place = pc.index(pc.fill_null(fault, True), True).as_py()
        if place >= 0:
            image = table["image_path"][place].as_py() or table["image"][place].as_py()
            raise UserError(f"{path}: the image {image!r} has {what}")
    return groups


def write_pairs(path: Path, table: pa.Table) -> None:
    """Write a table of :data:`SCHEMA`, with or without clusters, atomically.

    Raises:
        ValueError: for other columns.
    """
    with_clusters = "cluster" in table.column_names
    schema = pa.schema([*SCHEMA, *CLUSTER_FIELDS]) if with_clusters else SCHEMA
    with written_atomically(path) as temporary:
        pq.write_table(table.select(schema.names).cast(schema), temporary)


@dataclass(frozen=True)
class ChosenTexts:
    """The texts of a batch."""

    texts: list[str]
    owners: np.ndarray | None
    """`(len(texts),)`, int64: the row of the batch that each is of; None where each has one."""
    ids: np.ndarray
    """`(n,)`, int64: equal where rows have the same texts, in all processes."""


class QueryTexts:
    """Draws a query of each image, or takes all; the draw depends on (seed, epoch, image) alone."""

    def __init__(self, table: PairTable, dataset: PairDataConfig) -> None:
        """`dataset` says which column, how many of an image's queries, and the draws' seed."""
        self.table, self.dataset = table, dataset
        _, self.first, self.groups = np.unique(table.groups, return_index=True, return_inverse=True)
        """`first` is the first image of each product; `groups`, `(n,)`: the products, 0..g-1."""

    def of(self, image: int) -> list[str]:
        """The texts that image `image` may be shown with, without repeats."""
        return self.table.texts_of(image, self.dataset.text_column)

    def everything(self, most: int = 50_000) -> list[str]:
        """The texts of the images, of at most so many spread over the table."""
        step = max(len(self.table) // most, 1)
        return [text for image in range(0, len(self.table), step) for text in self.of(image)]

    def chosen(self, images: np.ndarray, labels: np.ndarray, epoch: int) -> ChosenTexts:
        """The texts of a batch.

        Args:
            images: `(n,)`, the images that were asked for.
            labels: `(n,)`, the products of those that are shown: where a broken image was
                replaced by one of another product, its texts are that product's.
            epoch: of the draw.
        """
        texts: list[str] = []
        owners: list[int] = []
        keys: list[str] = []
        draws = self.dataset.queries_per_photo == "draw"
        for row, (image, label) in enumerate(zip(images.tolist(), labels.tolist(), strict=True)):
            shown = image if self.groups[image] == label else int(self.first[label])
            known = self.of(shown)
            if draws:
                draw = np.random.SeedSequence([self.dataset.seed, epoch, shown]).generate_state(1)
                known = [known[int(draw[0]) % len(known)]]
            texts += known[: self.dataset.most_queries]
            owners += [row] * len(known[: self.dataset.most_queries])
            keys.append("\n".join(sorted(set(in_small_letters(known)))))
        every_row_one = len(texts) == len(keys)
        return ChosenTexts(
            texts,
            None if every_row_one else np.array(owners),
            pd.util.hash_array(np.array(keys, dtype=object), categorize=False).view(np.int64),
        )
