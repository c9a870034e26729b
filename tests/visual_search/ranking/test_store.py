import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from visual_search.common import files
from visual_search.common.model_config import EmbedSettings
from visual_search.data import image_files
from visual_search.data.images import ImageItem, ImageProblem
from visual_search.ranking import store
from visual_search.ranking.embed import Embeddings, embed_images
from visual_search.ranking.store import model_folder, stored_features, weights_fingerprint


@pytest.fixture
def photos(tmp_path: Path) -> list[ImageItem]:
    """Eight files; what a photo's features are is told by its number."""
    items = []
    for number in range(8):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(bytes(number + 1))
        items.append(ImageItem(path))
    return items


class Maker:
    """Embeds a photo as its number, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, items: Sequence[ImageItem], part: str) -> Embeddings:
        self.asked.append([item.path.stem for item in items])
        rows = tuple(row for row, item in enumerate(items) if item.path.stem == "3")
        problems = tuple(ImageProblem(str(items[row].path), "empty") for row in rows)
        return Embeddings(rows_of(items), problems, rows)


def rows_of(items: Sequence[ImageItem]) -> Tensor:
    return torch.tensor([[float(item.path.stem), 1.0] for item in items])


def test_only_what_is_new_is_embedded(tmp_path: Path, photos: list[ImageItem]) -> None:
    make, folder = Maker(), tmp_path / "store"
    first = stored_features(folder, photos[:5], make)
    assert torch.equal(first.matrix, rows_of(photos[:5]))
    assert first.reasons == ("", "", "", "empty", "")
    mixed = [photos[6], photos[3], photos[3], photos[0]]
    second = stored_features(folder, mixed, make)
    assert torch.equal(second.matrix, rows_of(mixed))
    assert second.reasons == ("", "empty", "empty", "")
    assert (first.made, second.made) == (5, 1)
    assert make.asked == [["0", "1", "2", "3", "4"], ["6"]]
    # A photo that changed is another one, and so is another box.
    os.utime(photos[0].path, (1, 1))
    boxed = ImageItem(photos[1].path, (0, 0, 1, 1))
    assert stored_features(folder, [photos[0], boxed, photos[2]], make).made == 2


def test_a_killed_job_keeps_the_pieces_it_finished(
    tmp_path: Path, photos: list[ImageItem], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PIECE", 3)
    make = Maker()

    def killed_late(items: Sequence[ImageItem], part: str) -> Embeddings:
        if len(make.asked) == 2:
            raise KeyboardInterrupt
        return make(items, part)

    with pytest.raises(KeyboardInterrupt):
        stored_features(tmp_path / "store", photos, killed_late)
    found = stored_features(tmp_path / "store", photos, make)
    assert found.made == 2
    assert torch.equal(found.matrix, rows_of(photos))
    assert make.asked[-1] == ["6", "7"]


@pytest.mark.parametrize("cause", ["file cannot be read (Permission denied)", "model failed"])
def test_what_may_go_well_the_next_time_is_not_kept(
    tmp_path: Path, cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [ImageItem(tmp_path / f"{shade}.png") for shade in range(3)]
    for shade, item in enumerate(items):
        Image.new("RGB", (8, 8), (100 * shade, 50, 0)).save(item.path)
    items[0].path.write_bytes(b"")  # damaged for good
    items.append(ImageItem(items[1].path, (4, 4, 9, 9)))  # a good file with a bad box

    def model(pixels: Tensor) -> Tensor:
        if broken and "model" in cause and (pixels == 200).any():
            raise RuntimeError
        return F.normalize(pixels.float().mean(dim=(2, 3)))

    def opened(path: Path) -> BinaryIO:
        if broken and "file" in cause and path == items[2].path:
            raise PermissionError(13, "Permission denied")
        return files.open_regular(path)

    def make(some: Sequence[ImageItem], part: str) -> Embeddings:
        settings = EmbedSettings(batch_size=1)
        return embed_images(model, some, 8, device=torch.device("cpu"), settings=settings)

    monkeypatch.setattr(image_files, "open_regular", opened)
    broken, folder = True, tmp_path / "store"
    first = stored_features(folder, items, make)
    assert cause in first.reasons[2]
    broken = False
    second = stored_features(folder, items, make)
    assert (second.made, second.reasons) == (1, (first.reasons[0], "", "", first.reasons[3]))
    assert first.reasons[1] == ""
    assert "clipped" in first.reasons[3]
    torch.testing.assert_close(second.matrix[2], F.normalize(torch.tensor([200.0, 50, 0]), dim=0))
    assert stored_features(folder, items, make).made == 0


@pytest.mark.parametrize(
    "damage", [lambda data: data[:100], lambda data: data[:200] + b"????" + data[204:]]
)
def test_a_damaged_file_is_made_anew(
    tmp_path: Path,
    photos: list[ImageItem],
    damage: Callable[[bytes], bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    make, folder = Maker(), tmp_path / "store"
    stored_features(folder, photos, make)
    (piece,) = folder.iterdir()
    piece.write_bytes(damage(piece.read_bytes()))
    again = stored_features(folder, photos, make)
    assert torch.equal(again.matrix, rows_of(photos))
    assert again.made == 8
    assert "is damaged" in capsys.readouterr().out


def test_the_folder_changes_with_weights_and_settings(tmp_path: Path) -> None:
    state = {"a": torch.ones(2), "b": torch.zeros(1, dtype=torch.bfloat16)}
    other = {**state, "a": torch.tensor([1.0, 1.0 + 1e-7])}
    assert weights_fingerprint(state) == weights_fingerprint(dict(reversed(state.items())))
    folders = {
        model_folder(tmp_path, weights_fingerprint(state), {"input_size": 224}),
        model_folder(tmp_path, weights_fingerprint(state), {"input_size": 256}),
        model_folder(tmp_path, weights_fingerprint(other), {"input_size": 224}),
    }
    assert len(folders) == 3
