"""The downloader against a server on this machine that misbehaves in every way we know."""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dataset import public_addresses
from dataset.public_addresses import is_public
from dataset.sources import download as module
from dataset.sources.base import Download
from dataset.sources.download import download
from tests.commands import refused, stopped
from tests.dataset.dataset_creation_steps.image_server import QuietHandler, listening

pytestmark = pytest.mark.usefixtures("near")
CONTENT = random.Random(0).randbytes(600_000)
PAGE = "https://example.org/get-it-here"


@dataclass
class Behaviour:
    """What the server does; each request takes the next of `cuts` and `statuses`."""

    address: str = ""
    content: bytes = CONTENT
    etag: str = '"one"'
    cuts: list[int] = field(default_factory=list)
    """Bytes after which a connection is broken."""
    ranges: bool = True
    statuses: list[int] = field(default_factory=list)
    content_type: str = "application/gzip"
    redirect: str = ""
    requests: list[str | None] = field(default_factory=list)
    """The Range header of each request."""


@pytest.fixture
def server() -> Iterator[Behaviour]:
    behaviour = Behaviour()

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            behaviour.requests.append(wanted)
            if behaviour.redirect and self.path != "/moved":
                self.answer(status=302, Location=behaviour.redirect)
            elif behaviour.statuses:
                self.answer(status=behaviour.statuses.pop(0))
            else:
                self.send_content(wanted)

        def send_content(self, wanted: str | None) -> None:
            total = len(behaviour.content)
            known = {"Content_Type": behaviour.content_type, "ETag": behaviour.etag}
            start, status = 0, 200
            if wanted and behaviour.ranges and self.headers["If-Range"] == behaviour.etag:
                start, status = int(wanted.removeprefix("bytes=").rstrip("-")), 206
                if start >= total:
                    self.answer(status=416, Content_Range=f"bytes */{total}")
                    return
                known["Content_Range"] = f"bytes {start}-{total - 1}/{total}"
            body, length = behaviour.content[start:], None
            if behaviour.cuts:
                body, length = body[: behaviour.cuts.pop(0)], len(body)
            self.answer(body, status, length, **known)

    with listening(Handler) as port:
        behaviour.address = f"http://127.0.0.1:{port}/train.tar.gz"
        yield behaviour


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine counts as a public one, and is asked again at once."""
    monkeypatch.setattr(public_addresses, "is_public", lambda _: True)
    monkeypatch.setattr(module, "PAUSE", 0.001)


def get(address: str, folder: Path, **known: object) -> Path:
    return download(Download(address, **known), folder, PAGE)  # type: ignore[arg-type]


def test_a_file_is_checked_and_not_fetched_twice(server: Behaviour, tmp_path: Path) -> None:
    known = {"size": len(CONTENT), "md5": hashlib.md5(CONTENT).hexdigest()}
    server.redirect = server.address.replace("train.tar.gz", "moved")
    for _ in range(2):
        file = get(server.address, tmp_path, **known)
        assert file == tmp_path / "train.tar.gz"
        assert file.read_bytes() == CONTENT
    assert server.requests == [None, None]
    assert list(tmp_path.iterdir()) == [file]


def test_what_broke_off_goes_on_where_it_was(server: Behaviour, tmp_path: Path) -> None:
    """In this run and in the next one; a busy server is asked again."""
    server.cuts, server.statuses = [100_000, 0, 50_000, 0, 0, 0, 0], [503, 429]
    words = rf"the answer was cut short; get .* {PAGE} yourself"
    refused(words, get, server.address, tmp_path)
    first = [*[None] * 3, *["bytes=100000-"] * 2, *["bytes=150000-"] * 4]
    assert server.requests == first
    assert get(server.address, tmp_path).read_bytes() == CONTENT
    assert server.requests == [*first, "bytes=150000-"]


def test_a_server_without_ranges_begins_anew(server: Behaviour, tmp_path: Path) -> None:
    server.ranges, server.cuts = False, [100_000]
    assert get(server.address, tmp_path).read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_begins_anew(server: Behaviour, tmp_path: Path) -> None:
    server.cuts = [100_000, 0, 0, 0, 0, 0]
    refused("cut short", get, server.address, tmp_path)
    server.content, server.etag, server.cuts = CONTENT[::-1], '"two"', []
    assert get(server.address, tmp_path).read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("more", [b"", b"x"])
def test_a_run_killed_just_before_the_end_needs_nothing_more(
    more: bytes, server: Behaviour, tmp_path: Path
) -> None:
    """More than the server has is of another file."""
    (tmp_path / "train.tar.gz.unfinished").write_bytes(CONTENT + more)
    (tmp_path / "train.tar.gz.unfinished.validator").write_text('"one"')
    assert get(server.address, tmp_path).read_bytes() == CONTENT
    assert server.requests == [f"bytes={len(CONTENT + more)}-", *([None] if more else [])]


@pytest.mark.parametrize(
    ("changes", "known", "words"),
    [
        ({"statuses": [404]}, {}, f"the server says 404 .*{PAGE} yourself"),
        ({"content_type": "text/html; charset=utf-8"}, {}, "a web page"),
        ({"redirect": "ftp://127.0.0.1/x"}, {}, "ftp://"),
        ({}, {"size": 600_001}, "600000 bytes came, 600001 are expected"),
        ({}, {"md5": "0" * 32}, "its md5 is"),
        ({}, {"sha256": "0" * 64}, "its sha256 is"),
    ],
)
def test_what_does_not_pass_is_said_and_not_kept(
    changes: dict[str, object],
    known: dict[str, object],
    words: str,
    server: Behaviour,
    tmp_path: Path,
) -> None:
    vars(server).update(changes)
    refused(words, get, server.address, tmp_path, **known)
    assert len(server.requests) == 1
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".validator"]


def test_nobody_listens(tmp_path: Path) -> None:
    refused("the connection failed", get, "http://127.0.0.1:9/x.zip", tmp_path)


def test_private_networks_are_not_asked(
    server: Behaviour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor behind a redirect of a public machine, and no proxy."""
    monkeypatch.setattr(public_addresses, "is_public", is_public)
    refused("not a public address", get, server.address, tmp_path)
    assert not server.requests
    answers = iter([True, False, False])  # localhost may have two addresses
    monkeypatch.setattr(public_addresses, "is_public", lambda _: next(answers, True))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server.redirect = server.address.replace("127.0.0.1", "localhost").replace("train", "moved")
    refused("not a public address", get, server.address, tmp_path)
    assert server.requests == [None]


def test_a_full_disk_is_told(server: Behaviour, tmp_path: Path) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    try:
        said = stopped(lambda: print(get(server.address, tmp_path))).splitlines()[-1]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert said.startswith(f"error: {tmp_path / 'train.tar.gz.unfinished'}: File too large: ")
    assert get(server.address, tmp_path).read_bytes() == CONTENT
