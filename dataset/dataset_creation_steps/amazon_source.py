"""Amazon's files as a source of Daft's: rows with photos, and at the end what was counted.

Daft's own `read_json` stops at the first broken line and at a gzip file that was cut short, and
tells neither how many lines it read; so the reading is :mod:`json_lines`, the engine is Daft's.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pyarrow as pa
from daft.io.pushdowns import Pushdowns
from daft.io.source import DataSource, DataSourceTask
from daft.recordbatch import RecordBatch
from daft.schema import Schema

from dataset.dataset_creation_steps.amazon_records import READERS, Fields, Row
from dataset.dataset_creation_steps.json_lines import is_gzip, read_objects

ROWS = pa.schema(
    [
        ("asin", pa.string()),
        ("title", pa.string()),
        ("urls", pa.list_(pa.string())),
        # Only in the last row of a task: its counts, as JSON.
        ("tally", pa.string()),
    ]
)

# Bytes of a plain file that one task reads; a gzipped file is one task.
TASK_BYTES = 256 << 20
BATCH_ROWS = 4096


class AmazonFile(DataSource):
    """The rows of a file of reviews or of products that have photos."""

    def __init__(self, path: Path, kind: str, task_bytes: int = TASK_BYTES) -> None:
        self.path, self.kind, self.task_bytes = path, kind, task_bytes

    @property
    def name(self) -> str:
        return f"{self.kind} of {self.path.name}"

    @property
    def schema(self) -> Schema:
        return Schema.from_pyarrow_schema(ROWS)

    async def get_tasks(self, pushdowns: Pushdowns) -> AsyncIterator[DataSourceTask]:
        """One task for each part of the file."""
        if is_gzip(self.path):
            yield _Part(self.path, self.kind, 0, -1)
            return
        size = os.path.getsize(self.path)
        for start in range(0, max(size, 1), self.task_bytes):
            yield _Part(self.path, self.kind, start, start + self.task_bytes)


class _Part(DataSourceTask):
    def __init__(self, path: Path, kind: str, start: int, end: int) -> None:
        self.path, self.kind, self.start, self.end = path, kind, start, end

    @property
    def schema(self) -> Schema:
        return Schema.from_pyarrow_schema(ROWS)

    async def read(self) -> AsyncIterator[RecordBatch]:
        """Batches of rows, the counts last."""
        tally: Counter[str] = Counter()
        reader = READERS[self.kind]
        rows: list[Row] = []
        for block in read_objects(self.path, tally, Fields, self.start, self.end):
            rows += [row for fields in block if (row := reader(fields, tally)) is not None]
            if len(rows) >= BATCH_ROWS:
                yield _batch(rows)
                rows = []
        yield _batch(rows, tally)


def _batch(rows: list[Row], tally: Counter[str] | None = None) -> RecordBatch:
    table: list[tuple[str | None, str | None, list[str] | None, str | None]]
    table = [(*row, None) for row in rows]
    if tally is not None:
        table.append((None, None, None, json.dumps(tally)))
    columns = {name: [row[at] for row in table] for at, name in enumerate(ROWS.names)}
    return RecordBatch.from_arrow_record_batches([pa.record_batch(columns, schema=ROWS)], ROWS)
