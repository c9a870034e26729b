"""What a retrieval task is: `config/evaluation/*.yml`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from visual_search.dataset_config import DevSetConfig


@dataclass(frozen=True)
class TextTaskConfig:
    """Texts and photos that are right for each other.

    Args:
        pairs: table of pairs (parquet); with it the task is between texts and photos.
        root: folder its paths are relative to; empty is the table's own.
        split: which of its rows take part; empty takes all.
        text_column: queries, as typed, or texts, cleaned.
        language: ISO 639-1: only queries in it take part; empty: all.
        direction: what asks for what.
    """

    pairs: str = ""
    root: str = ""
    split: str = "test"
    text_column: Literal["queries", "texts"] = "queries"
    language: str = ""
    direction: Literal["text-to-photo", "photo-to-text"] = "text-to-photo"


@dataclass(frozen=True)
class TaskConfig:
    """A retrieval task: whose photos are asked for, among which, and how that is scored.

    Args:
        title: in tables and reports; empty is the file's name.
        domain: tasks of one domain are averaged together, such as products, food, art.
        query_domain: regular expression over the path of a query; what its group matches is the
            query's domain, such as ([a-z]+)_final/ for the categories of Stanford Online Products.
        dev_set: the photos, in the challenge's layout or as a table.
        texts: instead, texts and photos, for runs of visual_search.main_clip.
        rows: of a table: held-out ones, or all, for a data set that nothing here trains on.
        protocol: of a table: auto ranks queries against the gallery where evaluation_status says
            so, else each photo against all others; leave-one-out does the latter in any case.
        select: regular expression over the paths of a table; only rows it is found in take part.
        distractors: queries with nothing to find stay, and count in GAP.
        metric: what the competition or the papers report; the headline of the task.
        prepare: what to do where the photos are not there, for the message.
    """

    title: str = ""
    domain: str = "products"
    query_domain: str = ""
    dev_set: DevSetConfig = field(default_factory=DevSetConfig)
    texts: TextTaskConfig = field(default_factory=TextTaskConfig)
    rows: Literal["held-out", "all"] = "held-out"
    protocol: Literal["auto", "leave-one-out"] = "auto"
    select: str = ""
    distractors: bool = False
    metric: Literal[
        "mAP@1000",
        "mP@5",
        "R@1",
        "R@5",
        "R@10",
        "R@100",
        "MAP@R",
        "R-precision",
        "GAP",
    ] = "mAP@1000"
    prepare: str = ""
