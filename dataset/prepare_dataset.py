"""Make the training table of a public data set from what you downloaded.

Run from the repository root: python dataset/prepare_dataset.py --help
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dataset.archives import RECORD, unpack
from dataset.sources import MODULES, data_set
from visual_search.common.errors import UserError, run_command
from visual_search.common.files import read_json, write_json
from visual_search.common.ranges import whole_number

if TYPE_CHECKING:
    from dataset.sources.base import DataSet, Files
    from visual_search.data.dataset_info import Broken, InfoRow


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="prepare_dataset.py",
        description="Write dataset_info.csv of a public data set. Its archives are unpacked into "
        "the output folder, a folder is left as it is and its images are not copied. Without "
        "--source, what has a stable public address is downloaded; a run that was stopped goes on.",
    )
    add = parser.add_argument
    add("--dataset", required=True, choices=sorted(MODULES), help="which data set")
    add("--save_path", required=True, type=Path, help="folder of the table and of what is unpacked")
    add(
        "--source",
        type=Path,
        nargs="+",
        default=[],
        help="what you downloaded: archives (zip, tar, tar.gz …), or folders of them or of the "
        "unpacked data set",
    )
    add("--part", default="", help="of met: val or test alone; of glr: train or retrieval")
    add(
        "--verify",
        action="store_true",
        help="decode every image instead of reading its header: finds cut files, takes ten times "
        "as long",
    )
    add("--workers", type=whole_number(0), default=0, help="threads (default: four a core)")
    return parser.parse_args(arguments)


@dataclass
class Prepared:
    """What a table has."""

    table: Path
    broken: Broken = field(default_factory=list)
    rows: Counter[str] = field(default_factory=Counter)
    """By `train`, `test`, `query` and `gallery`."""
    labels: dict[str, int] = field(default_factory=dict)
    """And the lines of the table on which they come first."""

    def count(self, rows: Iterator[InfoRow]) -> Iterator[InfoRow]:
        """Pass the rows on and take note of them."""
        for line, row in enumerate(rows, 2):
            self.rows[row.evaluation_status or ("test" if row.is_test else "train")] += 1
            self.labels.setdefault(row.label, line)
            yield row


def prepare(
    name: str,
    save_path: Path,
    sources: Sequence[Path] = (),
    *,
    part: str = "",
    verify: bool = False,
    workers: int = 0,
) -> Prepared:
    """Write `dataset_info.csv`, and `broken_photos.csv` where some images cannot be read.

    Args:
        sources: archives, unpacked into `save_path`, and folders; empty: the data set is
            downloaded.
        part: one of the data set's parts, where it has some; empty is all of them.
        verify: decode every image, instead of reading its header only.
        workers: threads; 0 is four a core.

    Raises:
        UserError: for what is missing or damaged, with file and line, and what to do.
    """
    import pandas as pd

    from visual_search.common.progress import progress_bar
    from visual_search.data.dataset_info import (
        BROKEN_IMAGES,
        DATASET_INFO,
        with_sizes,
        write_broken,
        write_dataset_info,
    )
    from visual_search.data.image_files import stored_size
    from visual_search.data.images import decoded_size
    from visual_search.data.tables import tell_twins

    wanted = data_set(name)
    if part and part not in wanted.parts:
        parts = " and ".join(wanted.parts)
        raise UserError(f"--part {part}: {name} has " + (f"the parts {parts}" if parts else "none"))
    for source in sources:
        if not source.exists():
            raise UserError(f"{source} does not exist; get {wanted.title} from {wanted.page}")
        if source.is_dir() and save_path.resolve().is_relative_to(source.resolve()):
            raise UserError(
                f"--save_path {save_path} lies in {source}, which must stay as it is: choose a "
                "folder outside of it"
            )
    folders = [source for source in sources if source.is_dir()]
    archives = [source for source in sources if not source.is_dir()]
    if not sources:
        archives = _downloaded(wanted, save_path)
    files = _unpacked(wanted, folders, archives, save_path)
    files.part = part
    prepared = Prepared(save_path / DATASET_INFO)
    read = decoded_size if verify else stored_size
    with progress_bar(name, "image", iterable=_labelled(name, wanted.read(files))) as rows:
        sized = with_sizes(rows, save_path, prepared.broken, read=read, workers=workers)
        write_dataset_info(prepared.table, prepared.count(sized), wanted.columns)
    write_broken(save_path / BROKEN_IMAGES, prepared.broken)
    tell_twins(pd.Series(list(prepared.labels), list(prepared.labels.values())), prepared.table)
    return prepared


def _labelled(name: str, rows: Iterator[InfoRow]) -> Iterator[InfoRow]:
    """The rows with their labels by value, and the data set's name in front of them."""
    from visual_search.data.values import fault_of, value_of

    for row in rows:
        if fault := fault_of(row.label):
            raise UserError(f"the label of {row.file_name} is {row.label!r}; {fault}")
        yield row._replace(label=f"{name}/{value_of(row.label)}")


def _downloaded(data_set: DataSet, save_path: Path) -> list[Path]:
    from dataset.sources.download import download

    if not data_set.downloads:
        raise UserError(
            f"{data_set.title} has no address that anyone may download it from: get it from "
            f"{data_set.page} and name its archives or their folder with --source "
            f"({data_set.layout})"
        )
    folder = save_path / "downloads"
    return [download(wanted, folder, data_set.page) for wanted in data_set.downloads]


def _unpacked(
    data_set: DataSet, folders: Sequence[Path], archives: Sequence[Path], save_path: Path
) -> Files:
    """The files of the data set, after everything that has to be unpacked is.

    Archives within folders and within archives are found by their official names.
    """
    from dataset.sources.base import Files

    waiting = list(archives)
    if folders:
        given = Files(folders, save_path, data_set.layout)
        missing = [name for name, held in data_set.archives.items() if not given.has(held)]
        waiting += given.archives(missing)
    for archive in waiting:
        _unpack_once(archive, save_path)
    new = waiting
    while new:
        inner = Files([save_path], save_path, data_set.layout).archives(data_set.archives)
        new = [archive for archive in inner if _unpack_once(archive, save_path)]
    return Files([*folders, save_path] if waiting else folders, save_path, data_set.layout)


def _unpack_once(archive: Path, folder: Path) -> bool:
    """Unpack an archive, unless the folder's record says that it was; whether it was done now."""
    done: dict[str, list[int]] = {}
    # Without a record everything is gone through again; what is there is kept.
    with suppress(FileNotFoundError, ValueError):
        done = read_json(folder / RECORD)
    name, status = str(archive.resolve()), archive.stat()
    state = [status.st_size, status.st_mtime_ns]
    if done.get(name) == state:
        return False
    unpack(archive, folder)
    write_json(folder / RECORD, done | {name: state})
    return True


def main() -> None:
    """Prepare the table, and say what it has and what comes next."""
    arguments = parse_arguments()
    given = {name: getattr(arguments, name) for name in ("part", "verify", "workers")}
    prepared = prepare(arguments.dataset, arguments.save_path, arguments.source, **given)
    rows = ", ".join(f"{count} {status}" for status, count in prepared.rows.items())
    print(
        f"{prepared.table}: {sum(prepared.rows.values())} images ({rows}), "
        f"{len(prepared.labels)} labels"
    )
    if prepared.broken:
        from visual_search.data.dataset_info import BROKEN_IMAGES

        file, reason = prepared.broken[0]
        print(
            f"{len(prepared.broken)} images are left out, for example {file} ({reason}): see "
            f"{arguments.save_path / BROKEN_IMAGES}"
        )
    print(
        f"Train on it: name it in dataset.tables (dataset/README.md), or check it: "
        f"python dataset/check_table.py {prepared.table}"
    )


if __name__ == "__main__":
    run_command(main)
