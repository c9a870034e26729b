from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from visual_search.common.errors import UserError
from visual_search.run_folder import (
    Processes,
    load_state,
    newest_state,
    random_states,
    restore_random_states,
    save_state,
)

ALONE = Processes(0, 1, lambda: None)


def test_the_newest_complete_state_is_loaded_and_older_ones_are_gone(tmp_path: Path) -> None:
    assert newest_state(tmp_path) is None
    for step in (5, 20):
        weight = torch.arange(3.0) + step
        save_state(tmp_path, step, {"weight": weight, "step": step}, {"x": [1, "a"]}, ALONE)
    place = newest_state(tmp_path)
    assert place is not None
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000020"]
    common, own = load_state(place, ALONE)
    assert common["step"] == 20
    assert torch.equal(common["weight"], torch.arange(3.0) + 20)
    assert own == {"x": [1, "a"]}


def test_a_half_written_state_is_never_loaded(tmp_path: Path) -> None:
    save_state(tmp_path, 5, {"step": 5}, {}, ALONE)
    half = tmp_path / "step-00000010"
    half.mkdir()
    (half / "common.pt").write_bytes(b"half")
    place = newest_state(tmp_path)
    assert place is not None
    assert load_state(place, ALONE)[0] == {"step": 5}
    # The run comes to step 10 again and writes over what was left there.
    save_state(tmp_path, 10, {"step": 10}, {}, ALONE)
    place = newest_state(tmp_path)
    assert place == half
    assert load_state(place, ALONE)[0] == {"step": 10}


def test_a_state_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    save_state(tmp_path, 1, {}, {}, ALONE)
    place = newest_state(tmp_path)
    assert place is not None
    with pytest.raises(UserError, match="trained by 1 processes, this is one of 2"):
        load_state(place, Processes(0, 2, lambda: None))
    (place / "common.pt").write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(UserError, match=r"common\.pt is damaged"):
        load_state(place, ALONE)
    facts = json.loads((place / "complete.json").read_text())
    (place / "complete.json").write_text(json.dumps(facts | {"format": 99}))
    with pytest.raises(UserError, match="newer kit"):
        load_state(place, ALONE)


def test_code_in_a_state_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "run",))

    save_state(tmp_path / "state", 1, {}, {}, ALONE)
    place = newest_state(tmp_path / "state")
    assert place is not None
    torch.save({"x": Evil()}, place / "common.pt")
    with pytest.raises(UserError, match="damaged"):
        load_state(place, ALONE)
    assert not (tmp_path / "run").exists()


def test_random_generators_go_on_where_they_were(tmp_path: Path) -> None:
    torch.randn(3), np.random.rand(5), random.gauss(0, 1)
    save_state(tmp_path, 1, {}, {"random": random_states()}, ALONE)
    expected = torch.randn(4), np.random.normal(size=3), random.gauss(0, 1), random.random()
    place = newest_state(tmp_path)
    assert place is not None
    restore_random_states(load_state(place, ALONE)[1]["random"])
    assert torch.equal(torch.randn(4), expected[0])
    assert (np.random.normal(size=3) == expected[1]).all()
    assert (random.gauss(0, 1), random.random()) == expected[2:]
