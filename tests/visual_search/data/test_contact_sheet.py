from pathlib import Path

import numpy as np
from PIL import Image

from tests.conftest import draw_product
from visual_search.data.contact_sheet import (
    CAPTION,
    CELL,
    GAP,
    Cell,
    caption_font,
    write_contact_sheet,
)


def test_captions_have_letters_of_more_languages_than_one() -> None:
    def drawn(letter: str) -> bytes:
        return bytes(caption_font().getmask(letter))

    missing = drawn("\U0010fffd")
    for letter in "яЖёñßżΩ":
        assert drawn(letter) not in (missing, drawn("?"))


def test_rows_stand_below_each_other_in_their_frames(tmp_path: Path) -> None:
    draw_product(1, 0).save(tmp_path / "a.png")
    cells = [Cell(tmp_path / "a.png", "диван\n0.5", "red"), Cell(tmp_path / "gone.png", "?", "red")]
    assert write_contact_sheet(tmp_path / "sheet.jpg", [cells, cells[:1]]) == 2
    sheet = np.asarray(Image.open(tmp_path / "sheet.jpg")).astype(int)
    height = CELL + CAPTION + GAP
    assert sheet.shape[:2] == (2 * height + GAP, 2 * (CELL + GAP) + GAP)
    for top, left in ((GAP, GAP), (GAP, CELL + 2 * GAP), (GAP + height, GAP)):
        red = sheet[top + 1, left + 20]
        assert red[0] > 180
        assert red[1:].max() < 90
        # Below the photo stands its caption, dark on white.
    assert sheet[GAP + CELL : GAP + CELL + CAPTION, GAP : GAP + CELL].min() < 100
    assert sheet[GAP + height + 75, CELL + 2 * GAP + 75].min() > 240
