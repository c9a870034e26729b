"""Step 2: from the queries as typed to the table of pairs that training reads.

python dataset/image_text/text_cleaning.py dataset/image_text_photos.metadata.json
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset.image_text.text_normalization import (
    COMMON,
    CleaningConfig,
    CleaningRules,
    QueryRules,
    clean_words,
    language_of,
    reasons_to_drop,
    words_of,
)
from dataset.options import parsed
from visual_search.common.errors import UserError, run_command
from visual_search.common.files import remove_begun
from visual_search.common.locks import work_folder
from visual_search.common.processes import available_cores

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

EXAMPLES = 5
"""Dropped queries that are shown for each reason."""
BLOCK_IMAGES = 2000
GROUP_IMAGES = 10_000
"""Rows of a row group."""

Image = tuple[str, str, list[str]]
"""Id, file, queries as typed."""
Row = tuple[str, str, list[str], list[str], list[str]]
"""The same with the cleaned texts and the languages of the queries."""


@dataclass
class Cleaned:
    """Images with the queries that are left, and what became of the others."""

    rows: list[Row] = field(default_factory=list)
    read: int = 0
    """Queries in all."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Queries by the reason."""
    examples: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: str, query: str) -> None:
        """Count a query that is dropped."""
        self.dropped[reason] += 1
        shown = self.examples.setdefault(reason, [])
        if len(shown) < EXAMPLES and query not in shown:
            shown.append(query)

    def add_counts(self, other: Cleaned) -> None:
        """Count what another one dropped, too."""
        self.read += other.read
        self.dropped.update(other.dropped)
        for reason, queries in other.examples.items():
            shown = self.examples.setdefault(reason, [])
            shown += [query for query in queries if query not in shown][: EXAMPLES - len(shown)]


def clean_images(
    images: Sequence[Image], languages: tuple[str, ...], rules: CleaningRules, drop: QueryRules
) -> Cleaned:
    """Clean all queries of some images; one without a query that says something is left out."""
    found = Cleaned()
    for image, file, queries in images:
        found.read += len(queries)
        said = [words_of(query) for query in queries]
        spoken = [language_of(" ".join(words), languages) for words in said]
        pairs = zip(said, spoken, strict=True)
        texts = [clean_words(words, language, rules) for words, language in pairs]
        kept = []
        for number, reason in enumerate(reasons_to_drop(texts, drop)):
            if reason is None:
                kept.append(number)
            else:
                found.drop(reason, queries[number])
        if kept:
            queries, texts, spoken = (
                [column[number] for number in kept] for column in (queries, texts, spoken)
            )
            found.rows.append((image, file, queries, texts, spoken))
    return found


def pairs_file(metadata: Path) -> Path:
    """`X.pairs.parquet` for `X.metadata.json`."""
    return images_folder(metadata).with_name(f"{images_folder(metadata).name}.pairs.parquet")


def images_folder(metadata: Path) -> Path:
    """`X` for `X.metadata.json`, where `download_images.py` put the images."""
    return metadata.with_name(metadata.name.removesuffix(".metadata.json"))


def clean_queries(
    metadata: Path, output: Path, images: Path, config: CleaningConfig
) -> dict[str, Any]:
    """Write the table of pairs of what `download_images.py` wrote, whose files lie in `images`.

    Queries are cleaned by several processes into a file beside the output; how often each text
    stands there is counted meanwhile. A second pass drops those that stand at too many images.
    What was counted is returned, and written to `<output>.summary.json`.

    Raises:
        UserError: when the file is none of the kind, or no query is left.
    """
    from visual_search.common.files import write_json

    if not config.languages:
        raise UserError("languages is empty: name at least one, such as ru")
    if not metadata.is_file():
        raise UserError(f"{metadata} does not exist; make it with download_images.py")
    tally: Counter[str] = Counter()
    with work_folder(output.with_name(f".{output.name}.parts")) as work:
        remove_begun(output)
        first = _first_pass(metadata, work / "cleaned.parquet", config, tally)
        kept = _second_pass(work / "cleaned.parquet", output, images, config, first)
    counts = first.counts
    summary: dict[str, Any] = {
        "lines": dict(sorted(tally.items())),
        "queries": counts.read,
        "dropped": {
            reason: {"queries": count, "examples": counts.examples[reason]}
            for reason, count in counts.dropped.most_common()
        },
        **kept,
    }
    write_json(output.with_name(f"{output.name}.summary.json"), summary)
    return summary


@dataclass
class _FirstPass:
    counts: Cleaned
    common: np.ndarray
    """Keys of texts that stand at too many images, sorted."""
    repeated: np.ndarray
    """Keys of files that several images have, sorted."""


def _first_pass(
    metadata: Path, path: Path, config: CleaningConfig, tally: Counter[str]
) -> _FirstPass:
    """Clean everything, and count."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from dataset.dataset_creation_steps.snapshots import keys
    from visual_search.text.pairs import TEXTS

    names = {"image": pa.string(), "file": pa.string()}
    schema = pa.schema([*names.items(), *((name, TEXTS) for name in ("queries", "texts", "langs"))])
    counts, texts, files = Cleaned(), [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
    with pq.ParquetWriter(path, schema) as writer:
        for block in _cleaned(_blocks(metadata, tally), config):
            counts.add_counts(block)
            if block.rows:
                columns = [list(column) for column in zip(*block.rows, strict=True)]
                texts.append(keys([text for row in columns[3] for text in row]))
                files.append(keys(columns[1]))
                writer.write_table(pa.table(columns, schema=schema))
    images = sum(map(len, files))
    limit = max(config.drop.max_photo_share * images, config.drop.min_common_photos - 1)
    return _FirstPass(counts, _more_often(texts, limit), _more_often(files, 1))


def _more_often(found: list[np.ndarray], limit: float) -> np.ndarray:
    """The keys that occur more than `limit` times, sorted."""
    import numpy as np

    each, times = np.unique(np.concatenate(found), return_counts=True)
    return each[times > limit]


def _blocks(metadata: Path, tally: Counter[str]) -> Iterator[list[Image]]:
    """Images and queries, some thousand at a time."""
    from dataset.image_text.query_lines import read_queries
    from visual_search.common.progress import progress_bar

    with progress_bar(f"cleaning {metadata.name}", "image") as bar:
        for rows in read_queries(metadata, tally):
            if any(line.file is None for _, line in rows):
                raise UserError(
                    f'{metadata} has lines without "file": give the file that download_images.py '
                    "wrote, not the one it read"
                )
            images = [(image, str(line.file), line.queries) for image, line in rows]
            for start in range(0, len(images), BLOCK_IMAGES):
                yield images[start : start + BLOCK_IMAGES]
            bar.update(len(images))


def _cleaned(blocks: Iterator[list[Image]], config: CleaningConfig) -> Iterator[Cleaned]:
    """The blocks, cleaned by several processes, in their order."""
    import multiprocessing

    workers = config.workers or available_cores()
    rules = (tuple(config.languages), config.words, config.drop)
    yield clean_images(next(blocks, []), *rules)
    second = next(blocks, None)
    if second is None:
        return
    # Not forked: the engine's threads may hold locks. Linear algebra on one core each.
    pool = ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        initializer=os.putenv,
        initargs=("OMP_NUM_THREADS", "1"),
    )
    waiting: deque[Future[Cleaned]] = deque()
    with pool:
        waiting.append(pool.submit(clean_images, second, *rules))
        for block in blocks:
            waiting.append(pool.submit(clean_images, block, *rules))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _second_pass(
    path: Path, output: Path, images: Path, config: CleaningConfig, first: _FirstPass
) -> dict[str, Any]:
    """Drop what stands at too many images, and write the rest as pairs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from visual_search.common.files import written_atomically
    from visual_search.text.pairs import SCHEMA, TEST

    prefix = Path(os.path.relpath(images.resolve(), output.parent.resolve()))
    kept: Counter[str] = Counter()
    languages: Counter[str] = Counter()
    with written_atomically(output) as temporary, pq.ParquetWriter(temporary, SCHEMA) as writer:
        for batch in pq.ParquetFile(path).iter_batches(GROUP_IMAGES):
            rows = list(_informative_rows(batch, first))
            _add_groups(rows, first.repeated, config.test_share)
            for row in rows:
                row["image_path"] = str(prefix / row.pop("file"))
                kept["photos"] += 1
                kept["kept queries"] += len(row["queries"])
                kept["test photos"] += row["split"] == TEST
                languages.update(row["language"])
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
        if not kept["photos"]:
            raise UserError(
                f"no query is left of {first.counts.read}: dropped were "
                f"{dict(first.counts.dropped)}; look at `languages` and `drop`"
            )
    return {**kept, "languages": dict(languages.most_common())}


def _informative_rows(batch: pa.RecordBatch, first: _FirstPass) -> Iterator[dict[str, Any]]:
    """The rows of a batch without the queries that stand at too many images."""
    import numpy as np

    from dataset.dataset_creation_steps.snapshots import keys

    rows = batch.to_pylist()
    common = np.isin(keys([text for row in rows for text in row["texts"]]), first.common)
    ends = np.cumsum([len(row["texts"]) for row in rows])
    names = {"queries": "queries", "texts": "texts", "language": "langs"}
    for row, dropped in zip(rows, np.split(common, ends[:-1]), strict=True):
        for number in np.flatnonzero(dropped).tolist():
            first.counts.drop(COMMON, row["queries"][number])
        left = np.flatnonzero(~dropped).tolist()
        if left:
            yield {"image": row["image"], "file": row["file"], "category": ""} | {
                name: [row[source][number] for number in left] for name, source in names.items()
            }


def _add_groups(rows: list[dict[str, Any]], repeated: np.ndarray, test_share: float) -> None:
    """Which images are right for each other's queries, and who tests.

    Images of the same content are one group, and so are images with exactly the same texts.
    A group is on one side: nothing is tested that was seen in training.
    """
    import numpy as np

    from dataset.dataset_creation_steps.snapshots import keys
    from visual_search.text.pairs import TEST, TRAIN

    if not rows:
        return
    same_file = np.isin(keys([row["file"] for row in rows]), repeated)
    sides = [
        f"photo {row['file']}" if same else "texts " + "\n".join(sorted(row["texts"]))
        for row, same in zip(rows, same_file, strict=True)
    ]
    for row, key in zip(rows, keys(sides).tolist(), strict=True):
        row["group"] = f"{key:016x}"
        row["split"] = TEST if key % 100_000 < round(test_share * 100_000) else TRAIN


def main() -> None:
    """Clean and say what is left."""
    import jsonargparse

    parser = jsonargparse.ArgumentParser(
        prog="text_cleaning.py",
        description="Clean the queries of metadata.json, drop those that say nothing, and write "
        "the table of pairs (parquet) that training reads. Rules: config/image_text/cleaning.yml.",
        exit_on_error=False,
    )
    parser.add_argument("metadata", type=Path, help="X.metadata.json of download_images.py")
    parser.add_argument("--config", action="config", help="YAML file; several merge left to right")
    parser.add_argument("--output", type=Path | None, help="the table (default: X.pairs.parquet)")
    parser.add_argument("--photos", type=Path | None, help="folder of the images (default: X)")
    parser.add_class_arguments(CleaningConfig)
    values = parsed(parser)
    metadata, images = values.pop("metadata"), values.pop("photos")
    output = values.pop("output") or pairs_file(metadata)
    config = CleaningConfig(**values)
    summary = clean_queries(metadata, output, images or images_folder(metadata), config)
    for reason, found in summary["dropped"].items():
        examples = ", ".join(repr(query) for query in found["examples"][:3])
        print(f"{found['queries']:8d} dropped: {reason} ({examples})")
    print(
        f"{output}: {summary['photos']} images ({summary['test photos']} to test with), "
        f"{summary['kept queries']} of {summary['queries']} queries; languages: "
        + ", ".join(f"{name} {count}" for name, count in summary["languages"].items())
    )
    print(f"next: python dataset/image_text/text_statistics.py {output}")


if __name__ == "__main__":
    run_command(main)
