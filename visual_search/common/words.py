"""Settings as other kits spell them: `backbone=openclip_vit_b32 batch_size=32`, parts by name.

A part is a file of `config/<part>/`: `--backbone openclip_vit_b32`, or `backbone=openclip_vit_b32`,
is `--backbone config/backbone/openclip_vit_b32.yml`.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from visual_search.common.errors import UserError
from visual_search.common.keys import keys_of

PARTS = {
    "dataset": "dataset", "backbone": "backbone", "margin": "margin", "pairs": "pairs",
    "optim": "optim", "optimizer": "optim",
}  # fmt: skip
"""By word, the part of the configuration; its files are in `config/<part>/`."""
EVALUATION = "evaluation/data"
"""The word that chooses what validation ranks: the development set of a task or of a data set."""
KEYS = {
    "batch_size": "dataset.batch_size", "num_workers": "dataset.num_workers",
    "img_size": "dataset.input_size", "image_size": "dataset.input_size",
    "input_size": "dataset.input_size", "seed": "dataset.seed", "random_seed": "dataset.seed",
    "epochs": "train.epochs", "lr": "optim.head_lr", "learning_rate": "optim.head_lr",
    "weight_decay": "optim.weight_decay", "grad_clip": "optim.gradient_clip",
    "accumulation_steps": "train.accumulate", "mixed_precision": "train.precision",
    "embedding_size": "neck.dimension", "exp_name": "name", "run_name": "name", "name": "name",
    "runs": "runs", "work_dir": "runs",
}  # fmt: skip
"""By word, the option."""
MAIN_CONFIG = "metric_learning.yml"
"""What settings in words, of images with classes, are added to where no --config is given."""
_WORD = re.compile(r"(?!-)([\w./]+)=(.*)", re.DOTALL)


def config_folder() -> Path:
    """`config/` here, else that of the project."""
    here = Path("config")
    return here if here.is_dir() else Path(__file__).resolve().parent.parent.parent / "config"


def spelled_out(arguments: Sequence[str], kind: Any) -> list[str]:
    """Command-line arguments with words and names of parts as options: files first, keys last.

    A list of one needs no brackets: `--train.trackers wandb`.

    Args:
        arguments: options, and words `key=value` among them.
        kind: the configuration's dataclass.

    Raises:
        UserError: for a word or a part that there is not, with the nearest that there is.
    """
    ranked: list[tuple[int, list[str]]] = []
    words = False
    keys = {key.name: key for key in keys_of(kind())}
    lists = {name for name, key in keys.items() if isinstance(key.default, tuple)}
    for option in _options(arguments):
        found = _WORD.fullmatch(option[0])
        if found:
            option, words = _translated(found[1], found[2], keys), True
        name = option[0].removeprefix("--").partition("=")[0]
        part = PARTS.get(name) if option[0].startswith("--") else None
        if part and len(option) == 2:
            option = [option[0], _part_file(part, option[1])]
        if name in lists and len(option) == 2 and not option[1].startswith("["):
            option = [option[0], f"[{option[1]}]"]
        ranked.append((0 if name == "config" else 1 if part else 2, option))
    if words and "margin.name" in keys and all(rank for rank, _ in ranked):
        ranked.append((0, ["--config", str(config_folder() / MAIN_CONFIG)]))
    ordered = sorted(ranked, key=lambda entry: entry[0])
    return [word for _, option in ordered for word in option]


def default_name(arguments: Sequence[str]) -> str:
    """Of a run without --name: the parts that were named, else the stem of its last config.

    Raises:
        UserError: where there is neither.
    """
    names = [found[2] for word in arguments if (found := _WORD.fullmatch(word))
             if found[1] in (*PARTS, EVALUATION)]  # fmt: skip
    files = [option[-1] for option in _options(arguments) if option[0].startswith("--config")]
    if not names and not files:
        raise UserError("give the run a name: --name NAME; it is kept in runs/<name>")
    return "_".join(names) or Path(files[-1].rpartition("=")[2]).stem


def _options(arguments: Sequence[str]) -> Iterable[list[str]]:
    """Each option with its value, each word by itself."""
    left = list(arguments)
    while left:
        option = [left.pop(0)]
        if option[0].startswith("--") and "=" not in option[0]:
            if left and not left[0].startswith("--"):
                option.append(left.pop(0))
        elif option[0].startswith("--"):
            key, _, value = option[0].partition("=")
            option = [key, value]
        yield option


def _translated(word: str, value: str, known: Iterable[str]) -> list[str]:
    if word == EVALUATION:
        return [f"--dataset.dev_set={json.dumps(_dev_set(value))}"]
    if word in PARTS:
        return [f"--{PARTS[word]}", value]
    if word in KEYS:
        return [f"--{KEYS[word]}", value]
    if word in known:
        return [f"--{word}", value]
    near = difflib.get_close_matches(word, [*PARTS, *KEYS, EVALUATION, *known], n=1, cutoff=0.5)
    advice = f"did you mean {near[0]}={value}?" if near else f"known: {', '.join([*PARTS, *KEYS])}"
    raise UserError(f"{word}={value}: there is no setting {word!r}; {advice}")


def _part_file(part: str, value: str) -> str:
    """The file of a part's name; what is a file, or YAML of its own, stays."""
    if not re.fullmatch(r"\w+", value) or Path(value).is_file():
        return value
    folder = config_folder() / part
    path = folder / f"{value}.yml"
    if not path.is_file():
        raise UserError(_absent(f"--{part} {value}", value, folder))
    return str(path)


def _dev_set(value: str) -> Any:
    """The development set of the task, or of the data set, of this name."""
    for folder in ("evaluation", "dataset"):
        path = config_folder() / folder / f"{value}.yml"
        if path.is_file():
            return (yaml.safe_load(path.read_text("utf-8")) or {}).get("dev_set", {})
    raise UserError(_absent(f"{EVALUATION}={value}", value, config_folder() / "dataset"))


def _absent(said: str, value: str, folder: Path) -> str:
    names = sorted(path.stem for path in folder.glob("*.yml"))
    near = difflib.get_close_matches(value, names, n=1)
    advice = f"did you mean {near[0]}? " if near else ""
    return f"{said}: there is no {folder}/{value}.yml; {advice}There are {', '.join(names)}"
