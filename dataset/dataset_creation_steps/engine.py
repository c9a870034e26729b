"""The engine under all steps: Daft, on this machine or on a Ray cluster, with the same code."""

from __future__ import annotations

import argparse
import os
import re
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from visual_search.common.errors import UserError
from visual_search.common.ranges import (
    Amount,
    Count,
    CountFrom1,
    Positive,
    check_ranges,
    whole_number,
)

Runner = Literal["native", "ray"]
_started: list[Runner] = []
"""The runner of this process; Daft takes one only."""


def add_runner_options(parser: argparse.ArgumentParser) -> None:
    """`--runner` and `--ray-address`."""
    parser.add_argument(
        "--runner",
        choices=get_args(Runner),
        default="native",
        help="native: this machine; ray: a cluster, which sees the same folders (%(default)s)",
    )
    parser.add_argument(
        "--ray-address",
        default="auto",
        help="of the cluster's head, host:port; auto: the one that runs on this machine",
    )


def start_engine(runner: Runner, ray_address: str = "auto") -> None:
    """Let Daft run the queries of this process on `runner`; a second call changes nothing.

    Raises:
        UserError: when there is no cluster.
    """
    if runner in _started:
        return
    # No report of its use to Daft's makers, no bars of its own between ours.
    os.environ.setdefault("DAFT_ANALYTICS_ENABLED", "0")
    os.environ.setdefault("DAFT_PROGRESS_BAR", "0")
    # Workers import the checkout that this process runs in, whatever is installed.
    root = str(Path(__file__).resolve().parents[2])
    known = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([root, *known]))
    import daft

    if runner == "native":
        daft.set_runner_native()
    else:
        _join_ray(ray_address)
        daft.set_runner_ray(noop_if_initialized=True)
    _started.append(runner)


def _join_ray(address: str) -> None:
    import ray

    if ray.is_initialized():
        return
    names = ("PYTHONPATH", "DAFT_PROGRESS_BAR", "DAFT_ANALYTICS_ENABLED")
    environment = {name: os.environ[name] for name in names}
    try:
        ray.init(
            address=address,
            runtime_env={"env_vars": environment},
            log_to_driver=False,
            logging_level="warning",
        )
    except (ConnectionError, ValueError) as error:
        raise UserError(
            f"no Ray cluster at {address!r}: start one with `ray start --head` and, on the other "
            f"machines, `ray start --address HOST:6379` ({str(error).splitlines()[0]})"
        ) from error


@dataclass(frozen=True)
class DownloadConfig:
    """How images are downloaded: `download` of a config, or options of a command.

    Attributes:
        size_hint: ask Amazon for images of this longest side, pixels (_SL500_); 0: as uploaded.
        rate: requests a second to a host; 0: any.
        connections: open to a host at a time.
        timeout: seconds for one attempt, from connecting to the last byte.
        attempts: for errors that may pass.
        max_mb: of one image.
        allow_private: also addresses that are not public, such as this machine's own.
    """

    size_hint: Count | None = 500
    rate: Amount = 100.0
    connections: CountFrom1 = 32
    timeout: Positive = 30.0
    attempts: CountFrom1 = 4
    max_mb: Positive = 20.0
    allow_private: bool = False

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Filling:
    """How a folder of images, or a table of their embeddings, is filled."""

    download: DownloadConfig
    piece: int = 1000
    """Images, or products, between two records of what is done."""
    distributed: bool = False
    """Whether each piece may be worked on by another machine; all of them see the folder."""
    retry_failed: bool = False
    """Try images again that failed for what may have passed, or for a limit of `download`."""


def add_filling_options(
    parser: argparse.ArgumentParser,
    piece: str = "--piece-photos",
    of: str = "images between two records of what is done",
    *,
    size_hint: bool = True,
) -> None:
    """Those of :class:`Filling`, its `piece` by that name, and where it runs.

    `size_hint` is there where addresses may be Amazon's.
    """
    add, text = parser.add_argument, f"{of} (%(default)s)"
    add(piece, dest="piece", metavar="N", type=whole_number(1), default=1000, help=text)
    text = "try again what failed for a passing reason, by --max-mb or without --allow-private"
    add("--retry-failed", action="store_true", help=text)
    group = parser.add_argument_group("downloading")
    helps = dict(re.findall(r"^        (\w+): (.+)\.$", DownloadConfig.__doc__ or "", re.MULTILINE))
    for field in fields(DownloadConfig):
        option, text = f"--{field.name.replace('_', '-')}", helps[field.name]
        if isinstance(field.default, bool):
            group.add_argument(option, action="store_true", help=text)
        elif size_hint or field.name != "size_hint":
            kind = type(field.default)
            text += " (%(default)s)"
            group.add_argument(option, type=kind, default=field.default, help=text)
    add_runner_options(parser)


def filling(arguments: argparse.Namespace) -> Filling:
    """What :func:`add_filling_options` read; without `size_hint`, addresses stay as they are."""
    given = {"size_hint": None, **vars(arguments)}
    download = DownloadConfig(**{field.name: given[field.name] for field in fields(DownloadConfig)})
    return Filling(download, given["piece"], given["runner"] == "ray", given["retry_failed"])


def failures_file(work: Path) -> Path:
    """Beside a folder or a table: its images that could not be had, each with its reason."""
    return work.with_name(f"{work.name}.failures.csv")


def print_failures(failures: Counter[str], what: str) -> None:
    """The most frequent reasons."""
    for reason, count in failures.most_common(10):
        print(f"{count:8d} {what}: {reason}")


def in_project(path: Path) -> Path:
    """A path of the project from wherever a command is typed.

    Args:
        path: relative to the project's root; as it is where its first folder is here, too.
    """
    root = Path(__file__).resolve().parent.parent.parent
    return path if Path(path.parts[0]).is_dir() else root / path
