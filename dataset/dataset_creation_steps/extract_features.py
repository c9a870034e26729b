"""Step 2: an embedding of every image of the shop and of the buyers; no image is kept.

python dataset/dataset_creation_steps/extract_features.py X.parquet --run runs/arcface_2nd
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset.dataset_creation_steps.engine import (
    DownloadConfig,
    Filling,
    add_filling_options,
    failures_file,
    filling,
    in_project,
    print_failures,
    start_engine,
)
from visual_search.common.errors import UserError, print_next, run_command
from visual_search.common.files import write_csv
from visual_search.common.ranges import real_number

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ["asin", "product_images", "user_images"]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="extract_features.py",
        description="Step 2: download and embed every image of a parquet file of step 1 into "
        "<parquet>_NNNNN.embeddings, one for each thousand products. Killed at any "
        "moment, the same command goes on where it was.",
    )
    add = parser.add_argument
    add("parquet", type=Path, help="of get_pairs.py")
    add(
        "--run",
        type=Path,
        help="the model: a run, a checkpoint or an export; default: the newest of runs/ with "
        "arcface_2nd in its name",
    )
    add(
        "--gpus",
        type=real_number(0),
        default=0.0,
        help="of the cluster, for each model (%(default)s)",
    )
    add(
        "--overwrite",
        action="store_true",
        help="delete snapshots of another model, input or size and make them anew",
    )
    add_filling_options(parser, "--products", "of one snapshot")
    return parser.parse_args(arguments)


def second_phase() -> Path:
    """The newest finished run of a second phase, `runs/*arcface_2nd*`."""
    runs = in_project(Path("runs"))
    found = [path for path in runs.glob("*arcface_2nd*") if (path / "best/model.json").is_file()]
    newest = max(found, key=lambda path: (path / "best/model.json").stat().st_mtime, default=None)
    return newest or runs / "arcface_2nd"


def extract(
    parquet: Path, run: Path, how: Filling, *, gpus: float = 0.0, overwrite: bool = False
) -> None:
    """Write the snapshots of step 1's table that are missing, by the model of `run`, and say so.

    Args:
        how: its pieces are products, those of a snapshot.
        gpus: of a cluster, for each of its workers' models.
        overwrite: delete snapshots of something else, and make these, too. Those of this model,
            table and size stay, so that a killed call can be repeated as it was.

    Raises:
        UserError: when file or model is missing, the snapshots are of another model, or no image
            could be embedded.
    """
    import pyarrow as pa

    from dataset.dataset_creation_steps import snapshots
    from visual_search.data import leak_record
    from visual_search.model import checkpoint

    snapshots.remove_leftovers(parquet.parent, parquet.name, f"{parquet.stem}_mean_")
    count = -(-snapshots.row_count(parquet, COLUMNS) // how.piece)
    source = snapshots.fingerprint(
        leak_record.fingerprint(parquet),
        checkpoint.fingerprint(run),
        f"{how.download.size_hint} {how.piece}",
    )
    for number, path in snapshots.snapshot_files(parquet).items():
        if number < count and snapshots.source_of(path) == source:
            continue
        if not overwrite:
            raise UserError(
                f"{path} was made from another input or another model: start with "
                "--overwrite, or name the same --run, --size-hint and --products"
            )
        path.unlink()

    done = snapshots.snapshot_files(parquet)
    again = {
        number
        for number, path in done.items()
        if how.retry_failed and snapshots.split(snapshots.read_snapshot(path))[0].num_rows
    }

    def rows_of(number: int) -> pa.Table:
        if number in again:
            failed, _ = snapshots.split(snapshots.read_snapshot(done[number]))
            return failed.select(["asin", "role", "url"])
        start = number * how.piece
        return image_rows(snapshots.read_rows(parquet, start, start + how.piece, COLUMNS))

    numbers = sorted({*range(count)} - {*done} | {*again})
    if numbers:
        for number, table in snapshots.through_stages(
            f"embedding {parquet.name}",
            numbers,
            rows_of,
            _stages(run, how.download, gpus),
            how.distributed,
            again,
        ):
            table = table.select(snapshots.IMAGES.names).cast(snapshots.IMAGES)
            if number in again:
                _, others = snapshots.split(snapshots.read_snapshot(done[number]))
                table = pa.concat_tables([others.cast(snapshots.IMAGES), table])
            snapshots.write_snapshot(snapshots.snapshot_file(parquet, number), table, source)
    embedded, failures = _summed(parquet, count)
    print_failures(failures, "without an embedding")
    print(
        f"{embedded} images embedded, {failures.total()} not ({failures_file(parquet)}); "
        f"{count} snapshots, {count - len(numbers)} of them from an earlier call",
        flush=True,
    )
    if not embedded:
        raise UserError(
            "no image could be embedded; the reasons are above (--retry-failed tries again)"
        )


def image_rows(products: pa.Table) -> pa.Table:
    """The images of some products, those of one together: asin, role and url."""
    import pyarrow as pa

    from dataset.dataset_creation_steps.snapshots import IMAGES

    rows = [
        {"asin": row["asin"], "role": role, "url": url}
        for row in products.to_pylist()
        for role, column in (("product", "product_images"), ("user", "user_images"))
        for url in row[column]
    ]
    schema = pa.schema([IMAGES.field(name) for name in ("asin", "role", "url")])
    return pa.Table.from_pylist(rows, schema=schema)


def _stages(run: Path, config: DownloadConfig, gpus: float) -> Callable[[Any], Any]:
    """Fetch and embed: a frame with `url` gets `vector` and `reason`."""
    import daft
    from daft import col

    from dataset.dataset_creation_steps.embedding import EmbedStage
    from dataset.dataset_creation_steps.image_store import FetchStage

    fetch: Any = FetchStage(config).fetch
    # A model in each worker process, with its share of GPUs.
    embed = daft.cls(EmbedStage, gpus=gpus, use_process=False)(str(run.resolve())).embed

    def stages(frame: Any) -> Any:
        frame = frame.with_column("got", fetch(col("url")))
        frame = frame.with_column("made", embed(col("got")["data"]))
        reason = col("got")["reason"].fill_null(col("made")["reason"])
        frame = frame.with_columns({"vector": col("made")["vector"], "reason": reason})
        return frame.exclude("got", "made")

    return stages


def _summed(parquet: Path, count: int) -> tuple[int, Counter[str]]:
    """Images with an embedding, and reasons of those without; the list of them is written."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from dataset.dataset_creation_steps.snapshots import IMAGES, read_snapshot, snapshot_file

    embedded, failed = 0, [IMAGES.empty_table()]
    for number in range(count):
        table = read_snapshot(snapshot_file(parquet, number))
        embedded += table["reason"].null_count
        failed.append(table.filter(pc.is_valid(table["reason"])).cast(IMAGES))
    found = pa.concat_tables(failed).drop("vector").to_pandas()
    write_csv(failures_file(parquet), found)
    return embedded, Counter(found["reason"].tolist())


def main() -> None:
    """Write the snapshots and say what came of the images."""
    arguments = parse_arguments()
    start_engine(arguments.runner, arguments.ray_address)
    parquet: Path = arguments.parquet
    run = arguments.run or second_phase()
    print(f"the model that compares is {run}", flush=True)
    how, gpus = filling(arguments), arguments.gpus
    extract(parquet, run, how, gpus=gpus, overwrite=arguments.overwrite)
    print_next("dataset/dataset_creation_steps/analyse_pairs.py", parquet)


if __name__ == "__main__":
    run_command(main)
