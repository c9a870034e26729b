"""The downloader against a server on this machine that misbehaves in every way we know."""

import errno
import hashlib
import http.client
import random
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dataset import public_addresses
from dataset.sources.base import Download
from dataset.sources.download import CHUNK, download
from tests.commands import refused, stopped
from tests.dataset.dataset_creation_steps.image_server import QuietHandler, listening
from visual_search.common.errors import UserError

CONTENT = random.Random(0).randbytes(600_000)
PAGE = "https://example.org/get-it-here"


@dataclass
class Behaviour:
    """What the server does; each request takes the next of `cuts`."""

    address: str = ""
    content: bytes = CONTENT
    cuts: list[int] = field(default_factory=list)
    """Bytes after which a connection is broken."""
    ranges: bool = True
    etag: str = '"one"'
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
            known = {"ETag": behaviour.etag, "Content_Type": behaviour.content_type}
            start, status = 0, 200
            if wanted and behaviour.ranges and self.headers.get("If-Range") == behaviour.etag:
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


def get(address: str, folder: Path, **known: object) -> Path:
    return download(Download(address, **known), folder, PAGE, private=True, pause=0.001)  # type: ignore[arg-type]


def test_a_file_is_checked_and_not_fetched_twice(server: Behaviour, tmp_path: Path) -> None:
    known = {"size": len(CONTENT), "md5": hashlib.md5(CONTENT).hexdigest()}
    for _ in range(2):
        file = get(server.address, tmp_path, **known)
        assert file == tmp_path / "train.tar.gz"
        assert file.read_bytes() == CONTENT
    assert server.requests == [None]
    assert list(tmp_path.iterdir()) == [file]


def test_a_broken_connection_goes_on_where_it_was(server: Behaviour, tmp_path: Path) -> None:
    server.cuts = [100_000, 0, 50_000, 0, 0, 0]
    assert get(server.address, tmp_path).read_bytes() == CONTENT
    assert server.requests[:3] == [None, "bytes=100000-", "bytes=100000-"]
    assert server.requests[-1] == "bytes=150000-"


@pytest.mark.parametrize(
    "error",
    [
        ssl.SSLError(1, "[SSL: DECRYPTION_FAILED_OR_BAD_RECORD_MAC] bad record mac"),
        ssl.SSLEOFError(8, "EOF occurred in violation of protocol"),
        OSError(errno.EHOSTUNREACH, "No route to host"),
    ],
)
def test_an_error_while_reading_is_the_networks(
    error: OSError, server: Behaviour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the disk's: it is tried again, from where it was."""
    read, calls = http.client.HTTPResponse.read, iter(range(100))

    def fails_once(response: http.client.HTTPResponse, amount: int | None = None) -> bytes:
        if next(calls) == 1:
            raise error
        return read(response, amount)

    monkeypatch.setattr(http.client.HTTPResponse, "read", fails_once)
    assert get(server.address, tmp_path).read_bytes() == CONTENT
    assert server.requests == [None, f"bytes={CHUNK}-"]


def test_a_broken_handshake_is_tried_again_but_no_wrong_certificate(
    server: Behaviour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, errors = urllib.request.OpenerDirector.open, [ssl.SSLError(1, "record layer failure")]

    def fails(*given: Any, **more: Any) -> Any:
        if errors:
            raise urllib.error.URLError(errors.pop())
        return opened(*given, **more)

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", fails)
    assert get(server.address, tmp_path / "a").read_bytes() == CONTENT
    errors.append(ssl.SSLCertVerificationError(1, "self-signed certificate"))
    refused("self-signed certificate", get, server.address, tmp_path / "b")
    assert len(server.requests) == 1


def test_another_run_goes_on_too(server: Behaviour, tmp_path: Path) -> None:
    server.cuts = [100_000, 0, 0, 0, 0, 0]
    refused(rf"connection broke 5 times; get .* {PAGE} yourself", get, server.address, tmp_path)
    server.requests.clear()
    server.cuts.clear()
    assert get(server.address, tmp_path).read_bytes() == CONTENT
    assert server.requests == ["bytes=100000-"]


def test_a_server_without_ranges_begins_anew(server: Behaviour, tmp_path: Path) -> None:
    server.ranges, server.cuts = False, [100_000]
    assert get(server.address, tmp_path).read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_begins_anew(server: Behaviour, tmp_path: Path) -> None:
    server.cuts = [100_000, 0, 0, 0, 0, 0]
    with pytest.raises(UserError):
        get(server.address, tmp_path)
    server.content, server.etag = CONTENT[::-1], '"two"'
    server.cuts.clear()
    assert get(server.address, tmp_path).read_bytes() == CONTENT[::-1]


def test_a_run_killed_just_before_the_end_needs_nothing_more(
    server: Behaviour, tmp_path: Path
) -> None:
    (tmp_path / "train.tar.gz.unfinished").write_bytes(CONTENT)
    (tmp_path / "train.tar.gz.unfinished.validator").write_text('"one"')
    assert get(server.address, tmp_path).read_bytes() == CONTENT
    assert server.requests == [f"bytes={len(CONTENT)}-"]
    # More than the server has is of another file.
    (tmp_path / "train.tar.gz").unlink()
    (tmp_path / "train.tar.gz.unfinished").write_bytes(CONTENT + b"x")
    (tmp_path / "train.tar.gz.unfinished.validator").write_text('"one"')
    assert get(server.address, tmp_path).read_bytes() == CONTENT


def test_a_busy_server_is_asked_again(server: Behaviour, tmp_path: Path) -> None:
    server.statuses = [503, 429, 500]
    assert get(server.address, tmp_path).read_bytes() == CONTENT
    assert len(server.requests) == 4


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_missing_file_names_the_page(status: int, server: Behaviour, tmp_path: Path) -> None:
    server.statuses = [status]
    refused(f"{status}.*{PAGE} yourself", get, server.address, tmp_path)
    assert len(server.requests) == 1


def test_a_web_page_is_no_archive(server: Behaviour, tmp_path: Path) -> None:
    server.content_type = "text/html; charset=utf-8"
    refused("a web page", get, server.address, tmp_path)


def test_a_wrong_size_or_checksum_is_not_kept(server: Behaviour, tmp_path: Path) -> None:
    for known, words in (
        ({"size": 600_001}, "600000 bytes there, 600001 are expected"),
        ({"md5": "0" * 32}, "its md5 is"),
        ({"sha256": "0" * 64}, "its sha256 is"),
    ):
        refused(words, get, server.address, tmp_path, **known)
        assert not (tmp_path / "train.tar.gz").exists()
        assert not list(tmp_path.glob("*.unfinished"))


def test_nobody_listens(tmp_path: Path) -> None:
    refused("connection broke 5 times", get, "http://127.0.0.1:9/x.zip", tmp_path)


def test_private_networks_are_not_asked(server: Behaviour, tmp_path: Path) -> None:
    refused("private network", download, Download(server.address), tmp_path, PAGE)
    assert not server.requests
    refused("not an http", get, "file:///etc/passwd", tmp_path)
    server.redirect = "ftp://127.0.0.1/x"
    refused("not an http", get, server.address, tmp_path)
    server.redirect = server.address.replace("train.tar.gz", "moved")
    assert get(server.address, tmp_path).read_bytes() == CONTENT


def test_the_address_that_is_connected_to_is_the_one_that_is_checked(
    server: Behaviour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, asked = socket.getaddrinfo, []

    def resolve(host: str, *others: object, **more: object) -> object:
        asked.append(host)
        return known("127.0.0.1", *others, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    named = Download(server.address.replace("127.0.0.1", "shop.example"))
    refused("127.0.0.1 is not a public address", download, named, tmp_path, PAGE)
    assert asked == ["shop.example"]  # a second answer could be another
    # Where the first address is public, a redirect is checked as well; no proxy is asked.
    answers = iter([True, False])
    monkeypatch.setattr(public_addresses, "is_public", lambda _: next(answers, True))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server.redirect = server.address.replace("train.tar.gz", "moved")
    refused("private network", download, named, tmp_path, PAGE)
    assert asked == ["shop.example", "shop.example", "127.0.0.1"]
    assert download(named, tmp_path, PAGE).read_bytes() == CONTENT


def test_a_full_disk_is_told(
    server: Behaviour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    try:
        said = stopped(lambda: print(get(server.address, tmp_path))).splitlines()[-1]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert said.startswith(f"error: {tmp_path / 'train.tar.gz.unfinished'}: File too large: ")
    assert get(server.address, tmp_path).read_bytes() == CONTENT
