"""Which photos are wanted, in an order that never changes: the number of a photo is for good.

The plan lies in the store (`.progress/plan.parquet`). Photos that are asked for later, of another
category or at a lower threshold, are put behind the others, so nothing is downloaded twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dataset.dataset_creation_steps.snapshots import row_count
from dataset.dataset_creation_steps.stored_pieces import plan_file
from visual_search.files import written_atomically

COLUMNS = ["asin", "role", "url", "mean_cosine"]


def read_selections(paths: Sequence[Path]) -> pd.DataFrame:
    """The photos of one or several tables of step 3, each photo of a product once.

    Raises:
        UserError: for a missing file or column.
    """
    for path in paths:
        row_count(path, COLUMNS)
    table = pd.concat([pq.read_table(path, columns=COLUMNS).to_pandas() for path in paths])
    table = table.sort_values(["asin", "role", "url"], kind="stable")
    return table.drop_duplicates(["asin", "url"]).reset_index(drop=True)


def extend_plan(root: Path, wanted: pd.DataFrame, piece_photos: int) -> pd.DataFrame:
    """Put what is not planned yet behind what is, in pieces of so many photos.

    Returns:
        The whole plan: asin, role, url, piece (number); its index is the photo's number.
    """
    path = plan_file(root)
    columns = ["asin", "role", "url", "piece"]
    old = pq.read_table(path).to_pandas() if path.is_file() else pd.DataFrame(columns=columns)
    known = pd.MultiIndex.from_frame(old[["asin", "url"]])
    new = wanted[~pd.MultiIndex.from_frame(wanted[["asin", "url"]]).isin(known)]
    if new.empty and path.is_file():
        return old
    first = int(old["piece"].max()) + 1 if len(old) else 0
    numbers = first + pd.RangeIndex(len(new)) // piece_photos
    new = new[["asin", "role", "url"]].assign(piece=numbers.to_numpy())
    plan = pd.concat([old.astype({"piece": "int64"}), new], ignore_index=True)[columns]
    with written_atomically(path) as temporary:
        table = pa.Table.from_pandas(plan, preserve_index=False)
        with pq.ParquetWriter(temporary, table.schema) as writer:
            for _, rows in plan.groupby("piece"):
                writer.write_table(table.slice(int(rows.index[0]), len(rows)))
    return plan
