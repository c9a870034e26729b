from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from visual_search.embed import Embeddings
from visual_search.embedding_cache import cached_embeddings, embeddings_fingerprint
from visual_search.images import ImageItem, ImageProblem

MADE = Embeddings(torch.eye(3), (ImageProblem("a.jpg", "the file is empty"),))


def never() -> Embeddings:
    raise AssertionError("the entry was there")


def test_the_second_call_reads_what_the_first_kept(tmp_path: Path) -> None:
    first, kept = cached_embeddings(tmp_path / "cache", "f", lambda: MADE)
    assert not kept
    second, kept = cached_embeddings(tmp_path / "cache", "f", never)
    assert kept
    assert torch.equal(first.matrix, second.matrix)
    assert second.problems == MADE.problems


@pytest.mark.parametrize("length", [0, 10, 300])
def test_a_damaged_entry_is_made_anew(
    tmp_path: Path, length: int, capsys: pytest.CaptureFixture[str]
) -> None:
    cached_embeddings(tmp_path, "f", lambda: MADE)
    (entry,) = tmp_path.iterdir()
    entry.write_bytes(entry.read_bytes()[:length])
    again, kept = cached_embeddings(tmp_path, "f", lambda: MADE)
    assert not kept
    assert torch.equal(again.matrix, MADE.matrix)
    assert "is damaged" in capsys.readouterr().out
    assert cached_embeddings(tmp_path, "f", never)[1]


def test_the_fingerprint_changes_with_all_that_matters(tmp_path: Path) -> None:
    photo = tmp_path / "a.jpg"
    photo.write_bytes(b"abc")
    os.utime(photo, (1, 1))
    item = ImageItem(photo, (1, 2, 3, 4))
    seen = {embeddings_fingerprint("w", [item], {"input_size": 224})}
    assert embeddings_fingerprint("w", [item], {"input_size": 224}) in seen
    others = [
        embeddings_fingerprint("v", [item], {"input_size": 224}),
        embeddings_fingerprint("w", [item], {"input_size": 256}),
        embeddings_fingerprint("w", [item, item], {"input_size": 224}),
        embeddings_fingerprint("w", [ImageItem(photo, (1, 2, 3, 5))], {"input_size": 224}),
        embeddings_fingerprint("w", [ImageItem(tmp_path / "b.jpg")], {"input_size": 224}),
    ]
    os.utime(photo, (2, 2))
    others.append(embeddings_fingerprint("w", [item], {"input_size": 224}))
    photo.write_bytes(b"abcd")
    os.utime(photo, (1, 1))
    others.append(embeddings_fingerprint("w", [item], {"input_size": 224}))
    assert len({*seen, *others}) == len(others) + 1
