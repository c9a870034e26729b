"""Reading a configuration: YAML files and command-line options to frozen dataclasses.

Only this module and the entry points know jsonargparse; all below takes plain values.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import os
import re
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from visual_search.common.errors import UserError
from visual_search.common.files import read_yaml
from visual_search.common.keys import type_hints
from visual_search.common.ranges import check_ranges
from visual_search.common.unused import unused
from visual_search.common.words import spelled_out
from visual_search.config import PhaseConfig

Config = typing.TypeVar("Config")

KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}


def parse_phase(
    parser: jsonargparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> tuple[jsonargparse.Namespace, PhaseConfig, str]:
    """A phase of images with classes: :func:`parse_config` of a :class:`PhaseConfig`."""
    return parse_config(parser, PhaseConfig, arguments)


def parse_config(
    parser: jsonargparse.ArgumentParser,
    kind: type[Config],
    arguments: Sequence[str] | None = None,
) -> tuple[jsonargparse.Namespace, Config, str]:
    """Add the options of a phase to `parser` and parse.

    Args:
        parser: with the entry point's own options.
        kind: the phase's dataclass.
        arguments: of the command line, options and words: see `common/words.py`.

    Returns:
        The other arguments of `parser`; the phase; and its YAML, complete with defaults.

    Raises:
        UserError: naming file and key, for a key nobody knows, a value of a wrong type and a
            number out of its range.
    """
    parser.exit_on_error = False
    parser.add_argument("--config", action="config", help="YAML file; several merge left to right")
    whole: Any = kind
    for part in dataclasses.fields(whole):
        hint = type_hints(whole)[part.name]
        if dataclasses.is_dataclass(hint):
            default = typing.cast(Any, hint)()
            parser.add_argument(f"--{part.name}", type=hint, default=default, sub_configs=True)
        else:
            parser.add_argument(
                f"--{part.name}", type=hint, default=part.default, help=_described(part.name, kind)
            )
    arguments = spelled_out(sys.argv[1:] if arguments is None else arguments, kind)
    origins: dict[str, Path] = {}
    for word, path in itertools.pairwise(arguments):
        if word == "--config":
            origins.update(_checked_keys(Path(path), kind))
    for word in arguments:  # what is typed comes last, so no file is to blame for it
        origins.pop(word[2:].partition("=")[0], None)
    try:
        parsed = parser.parse_args(arguments)
    except (jsonargparse.ArgumentError, TypeError) as error:
        raise UserError(_with_origin(str(error), origins, parser)) from error
    made = parser.instantiate(parsed)
    phase = whole(**{part.name: made[part.name] for part in dataclasses.fields(whole)})
    check_ranges(phase, where=lambda key: f"{origins[key]}: " if key in origins else "")
    return made, phase, yaml.safe_dump(dataclasses.asdict(phase), sort_keys=False)


def tell_unused(phase: Any, arguments: Sequence[str] | None = None) -> None:
    """Say of each key that was set and changes nothing that it does; the first process alone.

    Args:
        phase: as read.
        arguments: of the command line: what is typed there counts as set, be it the default.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    words = spelled_out(sys.argv[1:] if arguments is None else arguments, type(phase))
    typed = {word[2:].partition("=")[0] for word in words if word.startswith("--")}
    for sentence in unused(phase, typed):
        print(f"note: {sentence}", flush=True)


def read_config(run: Path) -> PhaseConfig:
    """The complete config that a run was trained with.

    Raises:
        UserError: when the folder has none.
    """
    path = run / "config.yml"
    if not path.is_file():
        raise UserError(f"{run} has no config.yml; name a run folder, runs/<name>")
    return parse_phase(jsonargparse.ArgumentParser(), ["--config", str(path)])[1]


def read_part(path: Path, kind: type[Config]) -> Config:
    """A dataclass from a file of its own, such as `config/backbone/efficientnet_lite0.yml`.

    Raises:
        UserError: naming file and key.
    """
    _checked_keys(path, kind)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--part", type=kind, sub_configs=True)
    try:
        parsed = parser.parse_args([f"--part={path}"])
    except (jsonargparse.ArgumentError, TypeError) as error:
        raise UserError(f"{path}: {_last_cause(str(error))}") from error
    part = parser.instantiate(parsed).part
    check_ranges(part, where=lambda key: f"{path}: ")
    return part


def _described(name: str, kind: type) -> str:
    match = re.search(rf"^\s*{name}: (.+)$", kind.__doc__ or "", re.MULTILINE)
    return match.group(1) if match else name


def _checked_keys(path: Path, kind: Any, prefix: str = "") -> dict[str, Path]:
    """The file each dotted key comes from; refuses keys that `kind` does not have."""
    values = read_yaml(path, "the config")
    if values is None:
        raise UserError(f"the config {path} is empty")
    return _walk(path, values, kind, prefix)


def _walk(path: Path, values: Any, kind: Any, prefix: str) -> dict[str, Path]:
    if not isinstance(values, dict):
        place = f"{path}: {prefix.rstrip('.')}" if prefix else f"the config {path}"
        raise UserError(f"{place} must be a table of keys and values, not {values!r}")
    hints = type_hints(kind)
    origins: dict[str, Path] = {}
    for key, value in values.items():
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(hints)}"
            raise UserError(f"{path}: unknown key '{prefix}{key}'; {advice}")
        if value is None and type(None) not in typing.get_args(hints[key]):
            raise UserError(f"{path}: {prefix}{key} is empty; write a value, or leave the key out")
        origins[f"{prefix}{key}"] = path
        entry = (typing.get_args(hints[key]) or (None,))[0]
        if dataclasses.is_dataclass(entry):  # a list of tables
            if not isinstance(value, list):
                raise UserError(f"{path}: {prefix}{key} must be a list of tables, not {value!r}")
            for number, part in enumerate(value):
                origins |= _walk(path, part, entry, f"{prefix}{key}.{number}.")
        if not dataclasses.is_dataclass(hints[key]):
            continue
        if isinstance(value, str):  # a part in its own file, named relative to this one
            origins |= _checked_keys(path.parent / value, hints[key], f"{prefix}{key}.")
        else:
            origins |= _walk(path, value, hints[key], f"{prefix}{key}.")
    return origins


def _with_origin(
    message: str, origins: dict[str, Path], parser: jsonargparse.ArgumentParser
) -> str:
    message = _last_cause(message)
    found = re.search(r'key "([\w.]+)"', message)
    if found and found.group(1) in origins:
        return f"{origins[found.group(1)]}: {message}"
    if option := re.match(r"unrecognized arguments: (--[\w.-]+)", message):
        near = difflib.get_close_matches(option.group(1), parser._option_string_actions, 1)
        return f"there is no option {option.group(1)}" + (
            f"; did you mean {near[0]}?" if near else ""
        )
    return message


def _last_cause(message: str) -> str:
    """The innermost of jsonargparse's nested messages, on one line."""
    _, key, cause = message.rpartition("Parser key ")
    message = " ".join((key + cause).replace("Parser key", "key").split())
    message = re.sub(r"Expected a (?:typing\.)?Literal\[(.*?)\]\.", r"expected one of \1.", message)
    return re.sub(
        r"Expected a <class '(\w+)'>",
        lambda kind: f"expected {KINDS.get(kind[1], kind[1])}",
        message,
    )
