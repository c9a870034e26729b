"""Step 2: from the queries as typed to the table of pairs that training reads.

python dataset/image_text/text_cleaning.py dataset/image_text_photos.metadata.json
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset.image_text.text_normalization import (
    CleaningConfig,
    clean_words,
    language_of,
    why_uninformative,
    words_of,
)
from dataset.options import parsed
from visual_search.common.errors import UserError, print_next, run_command
from visual_search.common.files import remove_begun
from visual_search.common.locks import work_folder
from visual_search.common.processes import available_cores

if TYPE_CHECKING:
    import numpy as np

EXAMPLES = 5
"""Dropped queries that are shown for each reason."""
BLOCK_IMAGES = 2000
GROUP_IMAGES = 10_000
"""Rows of a row group."""
OF_QUERIES = ("queries", "texts", "language")
"""Columns with a value for each query."""

Image = tuple[str, str, list[str]]
"""Id, file, queries as typed."""
Cleaned = tuple[list[dict[str, Any]], list[tuple[str, str]]]
"""Rows with `image`, `file` and :data:`OF_QUERIES`; the dropped queries, each with its reason."""


@dataclass
class Counts:
    """What became of the queries."""

    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """By the reason."""
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def drop(self, reason: str, query: str) -> None:
        """Count a query that is dropped."""
        self.dropped[reason] += 1
        shown = self.examples[reason]
        if len(shown) < EXAMPLES and query not in shown:
            shown.append(query)


def clean_images(images: Sequence[Image], config: CleaningConfig) -> Cleaned:
    """Clean all queries of some images; one without a query that says something is left out."""
    rows: list[dict[str, Any]] = []
    dropped: list[tuple[str, str]] = []
    for image, file, queries in images:
        kept: dict[str, list[str]] = {name: [] for name in OF_QUERIES}
        seen: set[str] = set()
        for query in queries:
            words = words_of(query)
            language = language_of(" ".join(words), tuple(config.languages))
            text = clean_words(words, language, config.words)
            reason = why_uninformative(text, config.drop)
            if not reason and text in seen:
                reason = "the same query of the same image"
            seen.add(text)
            if reason:
                dropped.append((reason, query))
                continue
            for name, value in zip(OF_QUERIES, (query, text, language), strict=True):
                kept[name].append(value)
        if kept["queries"]:
            rows.append({"image": image, "file": file, **kept})
    return rows, dropped


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

    Queries are cleaned by several processes into a file beside the output. A second pass drops
    those whose text stands at too many images. What was counted is returned, and written to
    `<output>.summary.json`.

    Raises:
        UserError: when the file is none of the kind, or no query is left.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from dataset.dataset_creation_steps.snapshots import keys
    from visual_search.common.files import write_json
    from visual_search.text.pairs import SCHEMA

    if not config.languages:
        raise UserError("languages is empty: name at least one, such as ru")
    if not metadata.is_file():
        raise UserError(f"{metadata} does not exist; make it with download_images.py")
    counts, tally = Counts(), Counter[str]()
    columns = [SCHEMA.field(name) for name in ("image", *OF_QUERIES)]
    schema = pa.schema([*columns, ("file", pa.string())])
    texts, files = [keys([])], [keys([])]
    with work_folder(output.with_name(f".{output.name}.parts")) as work:
        remove_begun(output)
        cleaned = work / "cleaned.parquet"
        with pq.ParquetWriter(cleaned, schema) as writer:
            for rows, dropped in _cleaned(_blocks(metadata, tally, counts), config):
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                texts.append(keys([text for row in rows for text in row["texts"]]))
                files.append(keys([row["file"] for row in rows]))
                for reason, query in dropped:
                    counts.drop(reason, query)
        most = config.drop.max_photo_share * sum(map(len, files))
        common = _more_often(texts, max(most, config.drop.min_common_photos - 1))
        kept = _write_pairs(cleaned, output, images, common, _more_often(files, 1), config, counts)
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


def _blocks(metadata: Path, tally: Counter[str], counts: Counts) -> Iterator[list[Image]]:
    """Images and queries, some thousand at a time."""
    from dataset.image_text.query_lines import QueryLine, read_lines
    from visual_search.common.progress import progress_bar

    with progress_bar(f"cleaning {metadata.name}", "image") as bar:
        for rows in read_lines(metadata, tally, QueryLine):
            if any(line.file is None for _, line in rows):
                raise UserError(
                    f'{metadata} has lines without "file": give the file that download_images.py '
                    "wrote, not the one it read"
                )
            images = [(image, str(line.file), line.queries) for image, line in rows]
            counts.read += sum(len(queries) for *_, queries in images)
            for start in range(0, len(images), BLOCK_IMAGES):
                yield images[start : start + BLOCK_IMAGES]
            bar.update(len(images))


def _cleaned(blocks: Iterator[list[Image]], config: CleaningConfig) -> Iterator[Cleaned]:
    """The blocks, cleaned by several processes, in their order."""
    from sklearn.utils.parallel import Parallel, delayed

    yield clean_images(next(blocks, []), config)
    calls = (delayed(clean_images)(block, config) for block in blocks)
    workers = config.workers or available_cores()
    yield from Parallel(workers, return_as="generator", pre_dispatch="4*n_jobs")(calls)


def _more_often(found: list[np.ndarray], limit: float) -> np.ndarray:
    """The keys that occur more than `limit` times."""
    import numpy as np

    each, times = np.unique(np.concatenate(found), return_counts=True)
    return each[times > limit]


def _write_pairs(
    cleaned: Path,
    output: Path,
    images: Path,
    common: np.ndarray,
    repeated: np.ndarray,
    config: CleaningConfig,
    counts: Counts,
) -> dict[str, Any]:
    """Drop the texts whose keys are `common`, and write the rest as pairs.

    Images of the same content, a `repeated` file, are right for each other's queries, and so are
    others with exactly the same texts. Such a group is on one side: nothing is tested that was seen
    in training.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from dataset.dataset_creation_steps.snapshots import keys
    from visual_search.common.files import written_atomically
    from visual_search.text.pairs import SCHEMA, TEST, TRAIN

    prefix = Path(os.path.relpath(images.resolve(), output.parent.resolve()))
    kept, languages = Counter[str](), Counter[str]()
    with written_atomically(output) as temporary, pq.ParquetWriter(temporary, SCHEMA) as writer:
        for batch in pq.ParquetFile(cleaned).iter_batches(GROUP_IMAGES):
            each = {name: pc.list_flatten(batch[name]) for name in OF_QUERIES}
            said = pa.table({"row": pc.list_parent_indices(batch["texts"]), **each})
            gone = np.isin(keys(said["texts"].to_pylist()), common)
            for query in said["queries"].filter(gone).to_pylist():
                counts.drop("stands at too many images", query)
            said = said.filter(~gone)
            lists = [(name, "list") for name in OF_QUERIES]
            left = said.group_by("row", use_threads=False).aggregate(lists)
            batch = batch.take(left["row"].combine_chunks())
            files = batch["file"].to_pylist()
            sides = ["texts " + "\n".join(sorted(own)) for own in left["texts_list"].to_pylist()]
            for place in np.flatnonzero(np.isin(keys(files), repeated)):
                sides[place] = f"photo {files[place]}"
            groups = keys(sides)
            tests = groups % 100_000 < round(config.test_share * 100_000)
            columns = {name: left[f"{name}_list"] for name in OF_QUERIES} | {
                "image": batch["image"],
                "image_path": [str(prefix / file) for file in files],
                "group": [f"{group:016x}" for group in groups.tolist()],
                "category": [""] * len(files),
                "split": np.where(tests, TEST, TRAIN),
            }
            writer.write_table(pa.table(columns, schema=SCHEMA))
            languages.update(said["language"].to_pylist())
            kept["photos"] += len(files)
            kept["kept queries"] += said.num_rows
            kept["test photos"] += int(tests.sum())
        if not kept["photos"]:
            raise UserError(
                f"no query is left of {counts.read}: dropped were {dict(counts.dropped)}; look at "
                "`languages` and `drop`"
            )
    return {**kept, "languages": dict(languages.most_common())}


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
    print_next("dataset/image_text/text_statistics.py", output)


if __name__ == "__main__":
    run_command(main)
