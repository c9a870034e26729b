import asyncio
import io
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from urllib.parse import quote, unquote

import pytest

from dataset import downloads
from dataset.dataset_creation_steps.engine import DownloadConfig
from dataset.downloads import Download, Downloader, Host, retry_after
from tests.commands import refused
from tests.conftest import draw_product
from tests.dataset.dataset_creation_steps.conftest import jpeg
from tests.dataset.dataset_creation_steps.image_server import PIXEL, ImageServer, running

pytestmark = pytest.mark.usefixtures("impatient")
LOOPBACK = DownloadConfig(size_hint=None, allow_private=True, timeout=1.0, rate=0, attempts=3)


@pytest.fixture(scope="module")
def server() -> Iterator[ImageServer]:
    with running(ImageServer({f"{n}.jpg": jpeg(n, 0) for n in range(200)})) as found:
        yield found


def fetch(urls: list[str], config: DownloadConfig = LOOPBACK) -> list[Download]:
    async def all_of_them() -> list[Download]:
        async with Downloader(config) as downloader:
            return list(await asyncio.gather(*(downloader.fetch(url) for url in urls)))

    return asyncio.run(all_of_them())


def reason(url: str, **changes: Any) -> str:
    (found,) = fetch([url], replace(LOOPBACK, **changes))
    assert found.data is None
    assert found.reason is not None
    return found.reason


def test_files_come_as_they_are_over_few_connections(server: ImageServer) -> None:
    before = server.connections
    config = DownloadConfig(allow_private=True, rate=0, connections=8)
    urls = [server.url(f"images/I/{n}.jpg") for n in range(200)]
    found = fetch(urls, config)
    assert [download.data for download in found] == [jpeg(n, 0) for n in range(200)]
    assert server.connections - before <= 8


def test_waiting_for_a_connection_is_not_the_servers_time() -> None:
    with running(ImageServer({f"{n}.jpg": jpeg(n, 0) for n in range(8)})) as slow:
        slow.delay = 0.2
        config = replace(LOOPBACK, connections=1, timeout=1.0, attempts=1)
        found = fetch([slow.url(f"images/I/{n}.jpg") for n in range(8)], config)
    assert [download.reason for download in found] == [None] * 8


@pytest.mark.parametrize("fault", ["429", "503", "moved"])
def test_what_passes_is_waited_for(server: ImageServer, fault: str) -> None:
    (found,) = fetch([server.url(f"{fault}/1.jpg")])
    assert found.data == jpeg(1, 0)


@pytest.mark.parametrize(
    ("fault", "expected", "requests"),
    [
        ("404", "HTTP 404", 1),
        ("down", "HTTP 503 (attempt 3 of 3)", 3),
        ("truncated", "the answer was cut short (attempt 3 of 3)", 3),
        ("reset", "the answer was cut short (attempt 3 of 3)", 3),
        ("html", "the server sent text/html, not an image", 1),
        ("loop", "more than 5 redirects", 6),
        ("file", "not an http(s) URL: 'file:///etc/passwd'", 1),
        ("empty", "empty (0 bytes)", 1),
        ("huge", "larger than 1000000 bytes", 1),
        ("slow", "no complete answer in time (attempt 2 of 2)", 2),
    ],
)
def test_what_does_not_pass_is_said(
    server: ImageServer, fault: str, expected: str, requests: int
) -> None:
    path = f"{fault}/2.jpg"
    attempts = 2 if fault == "slow" else 3
    assert reason(server.url(path), attempts=attempts, timeout=0.3, max_mb=1) == expected
    assert server.requests[f"/{path}"] == requests


def test_a_server_that_asks_for_a_pause_gets_it_for_all_its_files(server: ImageServer) -> None:
    start = time.monotonic()

    async def one_after_the_other() -> None:
        async with Downloader(LOOPBACK) as downloader:
            asked = asyncio.create_task(downloader.fetch(server.url("429/5.jpg")))
            await asyncio.sleep(0.3)
            await downloader.fetch(server.url("images/I/5.jpg"))
            await asked

    asyncio.run(one_after_the_other())
    assert server.times["/429/5.jpg"][1] - server.times["/429/5.jpg"][0] >= 1.0
    assert server.times["/images/I/5.jpg"][-1] - start >= 1.0


def test_a_pause_that_is_too_long_ends_it_and_holds_the_other_files_up(
    server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as is allowed, with a rate as well as without one."""
    monkeypatch.setattr(downloads, "LONGEST_WAIT", 0.5)
    monkeypatch.setattr(downloads, "BACKOFF", 0.2)
    for number, rate in ((7, 0.0), (8, 100.0)):
        config = replace(LOOPBACK, rate=rate)
        found = fetch([server.url(f"{fault}/{number}.jpg") for fault in ("429", "503")], config)
        assert found[0].reason == "HTTP 429 (attempt 1 of 3)"
        assert found[1].data == jpeg(number, 0)
        (asked,) = server.times[f"/429/{number}.jpg"]
        # With a rate the first request may still be waiting for its turn, and is held up, too.
        _, second, _ = server.times[f"/503/{number}.jpg"]
        assert second - asked >= 0.5


@pytest.mark.parametrize(
    "address",
    # 127.0.0.1 as one number, and in other spellings
    ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"],
)
def test_addresses_that_are_not_public_are_refused(server: ImageServer, address: str) -> None:
    before = server.connections
    found = reason(f"http://{address}:{server.port}/images/I/0.jpg", allow_private=False)
    assert any(part in found for part in ("not a public", "no address", "not a canonical"))
    assert server.connections == before


def test_a_redirect_to_a_private_address_is_refused_even_where_private_ones_are_allowed() -> None:
    secret = ImageServer({"secret.jpg": jpeg(0, 0)})
    with running(secret):
        inside = f"http://localhost:{secret.port}/images/I/secret.jpg"
        with running(ImageServer({}, private=inside)) as server:
            assert reason(server.url("private/x.jpg")) == "refused: not a public address"
    assert not secret.requests


def test_a_name_that_changes_its_address_reaches_nothing(
    server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is public when it is looked at, and this machine when it is connected to."""
    asked: list[str] = []

    async def rebound(_: object, host: str, port: int, *args: Any, **more: Any) -> list[Any]:
        asked.append(host)
        address = ("127.0.0.1", port)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address)]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", rebound)
    before = server.connections
    assert reason(f"http://photos.example.com:{server.port}/images/I/0.jpg", allow_private=False)
    assert asked == ["photos.example.com"]
    assert server.connections == before


@pytest.mark.parametrize(
    ("url", "words"),
    [
        *((url, "not an http(s) URL") for url in ("", "photo.jpg", "ftp://example.com/x.jpg")),
        *((url, "URL") for url in ("http://", "http://[::1/x", "http://a:b/")),
        # With private addresses allowed the host is looked at before anything else.
        *((f"http://{host}/x.jpg", "") for host in ("é" * 70, "é" * 300 + ".com")),
    ],
)
def test_what_is_no_address_is_said_without_a_request(url: str, words: str) -> None:
    assert words in reason(url)


def test_requests_to_a_host_are_spaced_evenly() -> None:
    async def turns() -> list[float]:
        host, start = Host(rate=50, connections=1), time.monotonic()
        times: list[float] = []

        async def one() -> None:
            await host.turn()
            times.append(time.monotonic() - start)

        await asyncio.gather(*(one() for _ in range(11)))
        return times

    times = asyncio.run(turns())
    assert times == sorted(times)
    assert 0.19 <= times[-1] <= 0.6


def test_retry_after_is_seconds_or_a_date() -> None:
    assert [retry_after(value) for value in (None, "7", "-3")] == [None, 7.0, 0.0]
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 95 <= (retry_after(date) or 0) <= 101
    for value in (
        *("soon", "nan", "inf", "-inf", "1e400", "9" * 5000, "", "\xff", "٣", "0x10", "7, 8"),
        "Wed, 21 Oct 99999999999999 07:28:00 GMT",
        "Wed, 99999999999999 Oct 2015 07:28:00 GMT",
        "Wed, 21 Oct 2015 07:28:99999999999999 GMT",
        "Wed, 21 Oct 2015 07:28:00 +99999999999999",
        "Wed, 21 Oct 0000 07:28:00 GMT",
    ):
        assert (retry_after(value) or 0.0) >= 0  # nothing is raised


ANSWERS = {
    "retry-after": b"HTTP/1.1 503 x\r\nRetry-After: Wed, 21 Oct 99999999999999 07:28:00 GMT\r\n"
    b"Content-Length: 0\r\n\r\n",
    "no HTTP": b"SSH-2.0-OpenSSH_9\r\n",
    "nothing": b"",
    "status": b"HTTP/1.1 99999999999 x\r\n\r\n",
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: -7\r\n\r\n",
    "long header": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
    "encoding": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "media type": b"HTTP/1.1 200 OK\r\nContent-Type: \xff;;;=\r\nContent-Length: 0\r\n\r\n",
    "place": b"HTTP/1.1 302 x\r\nLocation: http://[::1\r\nContent-Length: 0\r\n\r\n",
    "port": b"HTTP/1.1 302 x\r\nLocation: http://a:99999999/\r\nContent-Length: 0\r\n\r\n",
    "host": b"HTTP/1.1 302 x\r\nLocation: http://\xe9%00" + b"a" * 300 + b"/\r\n\r\n",
}


def test_whatever_a_server_says_is_the_reason_of_its_own_file() -> None:
    def serve(listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                name = connection.recv(4096).split(b" ")[1].decode().strip("/")
                connection.sendall(ANSWERS[unquote(name)])

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, args=(listening,), daemon=True).start()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        found = fetch([address + quote(name) for name in ANSWERS], replace(LOOPBACK, attempts=2))
    for name, download in zip(ANSWERS, found, strict=True):
        assert download.data is None, name
        assert download.reason, name
    assert found[0].reason == "HTTP 503 (attempt 2 of 2)"


HOST = "https://images-na.ssl-images-amazon.com/images/I/"


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("71eG75FTJJL._SY88.jpg", "71eG75FTJJL"),
        ("71eG75FTJJL._SL500_.jpg", "71eG75FTJJL"),
        ("71eG75FTJJL._SX38_SY50_CR,0,0,38,50_.jpg", "71eG75FTJJL"),
        ("71eG75FTJJL.jpg", "71eG75FTJJL"),
        ("41+aB-%2B_L._SS40_.jpg", "41+aB-%2B_L"),
    ],
)
def test_any_size_of_an_image_is_the_same_image(name: str, stored: str) -> None:
    assert downloads.sized_image(HOST + name, 500) == f"{HOST}{stored}._SL500_.jpg"
    assert downloads.sized_image(HOST + name, 0) == f"{HOST}{stored}.jpg"
    for url in ("http://shop.example/photo._SY88.jpg", f"{HOST}x.jpg?size=2", f"file:///{name}"):
        assert downloads.sized_image(url, 500) == downloads.sized_image(url, 0) == url


def encoded(kind: str, side: int = 64) -> bytes:
    data, image = io.BytesIO(), draw_product(1, 1, side)
    more = {"save_all": True, "append_images": [draw_product(1, 2, side)]} if kind == "MPO" else {}
    image.save(data, kind, **more)
    return data.getvalue()


@pytest.mark.parametrize("kind", list(downloads.EXTENSIONS))
@pytest.mark.parametrize("whole", [False, True])
def test_every_format_that_is_kept_passes(kind: str, whole: bool) -> None:
    assert downloads.image_problem(encoded(kind), whole=whole) is None
    assert downloads.extension(encoded(kind)) == downloads.EXTENSIONS[kind]


def test_a_cut_image_is_found_where_all_of_it_is_read() -> None:
    data = encoded("JPEG", 256)[:-200]
    assert downloads.image_problem(data) is None
    assert "truncated" in (downloads.image_problem(data, whole=True) or "")


@pytest.mark.parametrize("whole", [False, True])
def test_what_is_no_image_to_keep_is_said(whole: bool) -> None:
    """By the step that compares images and by the one that keeps them alike."""
    assert downloads.image_problem(PIXEL, whole=whole) == "1 x 1 pixels are too few"
    assert "web page" in (downloads.image_problem(b"<html>sorry</html>", whole=whole) or "")
    assert downloads.image_problem(encoded("PPM"), whole=whole)


@pytest.mark.parametrize("name", ["connections", "timeout", "attempts", "max_mb"])
def test_limits_of_nothing_are_refused(name: str) -> None:
    refused(f"{name} is 0; it must be (above 0|1 or more)", replace, LOOPBACK, **{name: 0})
