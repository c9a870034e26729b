import sys
import threading
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import pytest
from PIL import Image

from tests.commands import ran, refused
from tests.conftest import csv_rows
from visual_search.common.errors import UserError
from visual_search.data.dataset_info import (
    BLOCK,
    MOST_BROKEN_AT_THE_START,
    Broken,
    InfoRow,
    read_each,
    with_sizes,
    write_broken,
    write_dataset_info,
)
from visual_search.data.image_files import UnreadableImage


def test_answers_come_in_order_and_no_more_is_read_ahead_than_a_block() -> None:
    asked, threads = 0, threading.active_count()

    def endless() -> Iterator[Path]:
        nonlocal asked
        for asked in count():
            yield Path(str(asked))

    def slow_first(path: Path) -> int:
        time.sleep(0.05 if path.name == "0" else 0)
        if int(path.name) % 7 == 6:
            raise UnreadableImage("seven")
        return int(path.name)

    answers = list(islice(read_each(endless(), slow_first, 2), 500))
    assert [a for a in answers if isinstance(a, int)] == [i for i in range(500) if i % 7 != 6]
    assert sum(isinstance(answer, UnreadableImage) for answer in answers) == 71
    assert asked < BLOCK
    with pytest.raises(ZeroDivisionError):
        list(read_each([Path("a")], lambda path: 1 / 0))
    assert threading.active_count() <= threads + 2


def test_rows_to_table(tmp_path: Path) -> None:
    for name in "abc":
        Image.new("RGB", (30, 20)).save(tmp_path / f"{name}.png")
    (tmp_path / "d.png").write_bytes(b"")
    rows = [
        InfoRow("a.png", "x/1", 'a "red"\n shoe, new', (25, 5, 100, 10)),
        InfoRow("d.png", "x/1"),
        InfoRow("b.png", "x/2", evaluation_status="query", is_test=True),
        InfoRow("c.png", "x/2", bbox=(30, 0, 5, 5)),
        InfoRow("e.png", "x/2"),
    ]
    broken: Broken = []
    table, side = tmp_path / "out" / "dataset_info.csv", tmp_path / "out" / "broken.csv"
    written = write_dataset_info(
        table, with_sizes(rows, tmp_path, broken), ["title", "bbox", "evaluation_status"]
    )
    assert written == 2
    assert table.read_bytes().decode() == (
        "file_name,label,title,bbox,width,height,evaluation_status,is_test\n"
        'a.png,x/1,"a ""red"" shoe, new","25,5,5,10",30,20,,0\n'
        "b.png,x/2,,,30,20,query,1\n"
    )
    write_broken(side, broken)
    listed = csv_rows(side)
    assert [line["file_name"] for line in listed] == ["d.png", "c.png", "e.png"]
    assert "lies in its 30 x 20 pixels" in listed[1]["reason"]
    write_broken(side, [])
    assert not side.exists()


def test_a_failed_table_leaves_the_old_one(tmp_path: Path) -> None:
    table = tmp_path / "dataset_info.csv"
    write_dataset_info(table, [InfoRow("a", "b")])
    before = table.read_bytes()

    def failing() -> Iterator[InfoRow]:
        yield InfoRow("c", "d")
        raise UserError("no more")

    refused("no more", write_dataset_info, table, failing())
    refused("no image", write_dataset_info, table, [])
    assert table.read_bytes() == before
    assert list(tmp_path.iterdir()) == [table]


def test_a_wrong_folder_stops_early(tmp_path: Path) -> None:
    rows = (InfoRow(f"{number}.jpg", "a") for number in range(10 * MOST_BROKEN_AT_THE_START))
    refused("first 1000 images can be read", list, with_sizes(rows, tmp_path, []))


@pytest.mark.slow
def test_memory_is_flat(tmp_path: Path) -> None:
    """A hundred thousand more rows cost less than a tenth of what their text would."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from visual_search.data.dataset_info import *\n"
        "folder, rows = Path(sys.argv[1]), int(sys.argv[2])\n"
        "names = (InfoRow('a.png', f'label{i:060d}') for i in range(rows))\n"
        "sized = with_sizes(names, folder, [], read=lambda path: (8, 8))\n"
        "write_dataset_info(folder / 'dataset_info.csv', sized)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)\n"
    )
    peaks = [
        int(ran(sys.executable, "-c", code, tmp_path, rows).stdout) for rows in (20_000, 120_000)
    ]
    assert peaks[1] - peaks[0] < 100_000 * 80 * 0.1 + 2e6
