"""Every command's YAML file: what is wrong with it is a sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonargparse
import pytest

from tests.commands import refused
from visual_search.config_reader import parse_phase, read_backbone
from visual_search.phase_chain import read_chain
from visual_search.tuning import read_search_space

READERS: dict[str, Callable[[Path], Any]] = {
    "config": lambda path: parse_phase(jsonargparse.ArgumentParser(), ["--config", str(path)]),
    "part": read_backbone,
    "chain": read_chain,
    "search": read_search_space,
}
FAULTS = {
    "not closed": (b"a: [", "is not valid YAML: "),
    "no date": (b"a: 2020-13-45", "is not valid YAML: "),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_file_is_named(reader: str, fault: str, tmp_path: Path) -> None:
    content, words = FAULTS[fault]
    path = tmp_path / "a.yml"
    path.write_bytes(content)
    refused(rf"a\.yml {words}", READERS[reader], path)
