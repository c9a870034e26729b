"""Downloading many small files politely: pooled connections, limits, retries, reasons.

    async with Downloader(DownloadConfig()) as downloader:
        download = await downloader.fetch(url)

Nothing is raised for a URL: a :class:`Download` has the bytes, or the reason why there are none.
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import ssl
import threading
import time
import weakref
from collections import defaultdict
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import aiohttp
from yarl import URL

from dataset.public_addresses import NOT_PUBLIC, public_socket, url_problem
from visual_search.data.image_files import FORMATS, UnreadableImage, open_image
from visual_search.data.images import decode_image

if TYPE_CHECKING:
    from dataset.dataset_creation_steps.engine import DownloadConfig

AGENT = "visual-search/0.1 (image data set builder)"

BACKOFF = 0.5
"""Seconds before the second attempt; doubled for each one after it."""
LONGEST_WAIT = 60.0
"""Seconds: where a server asks for more, the file gets no further attempt and the server's other
files a pause of this length."""
REDIRECTS = 5
"""At most so many in a row; they are no attempts."""

RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
"""What a server says when it may answer otherwise a moment later."""
REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
NOT_THERE = {"HTTP 400", "HTTP 403", "HTTP 404", "HTTP 410"}

TRIED = " (attempt "
"""Stands in the reason of a failure that may pass."""
REFUSED, TOO_LARGE = f"refused: {NOT_PUBLIC}", "larger than "
"""Begin the reasons of what another `allow_private` or `max_mb` may let in."""

REFUSED_TYPES = ("text/", "application/json", "application/xml", "application/xhtml")
"""Media types that no image has: a page saying that something went wrong."""

EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg"} | {name: name.lower() for name in FORMATS[1:]}
"""Of the formats that are compared and kept."""

MIN_SIDE = 16
"""Pixels; a shop's server sends a single transparent pixel in place of an image that it lost."""


class Download(NamedTuple):
    """What came of one URL: `data`, or None and the reason."""

    data: bytes | None
    reason: str | None


def may_pass(reason: str | None) -> bool:
    """Whether a failure of that reason is worth another try, on another day or otherwise set."""
    return reason is not None and (TRIED in reason or reason.startswith((REFUSED, TOO_LARGE)))


class Failed(Exception):
    """An attempt that gave no file."""

    def __init__(self, reason: str, retry: bool = False, wait: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.retry, self.wait = reason, retry, wait


class Host:
    """Turns of requests to a host: evenly spaced, and none in a pause that it asks for."""

    def __init__(self, rate: float, connections: int) -> None:
        self.slot = asyncio.Semaphore(connections)
        self._spacing = 1.0 / rate if rate > 0 else 0.0
        self._free = self._paused = 0.0

    async def turn(self) -> None:
        """Return when the next request may go out."""
        while True:
            now = time.monotonic()
            start = max(now, self._free, self._paused)
            # The place in the queue is taken before the wait, so turns stay in order.
            self._free = start + self._spacing
            if start > now:
                await asyncio.sleep(start - now)
            # Meanwhile the host may have asked for a pause that this place lies in.
            if self._paused <= start:
                return

    def pause(self, seconds: float) -> None:
        """No further request for so many seconds, nor from those in the queue."""
        self._paused = max(self._paused, time.monotonic() + seconds)


class Downloader:
    """Fetches URLs; one for each event loop, shared by all tasks that run there."""

    def __init__(self, config: DownloadConfig) -> None:
        self.config = config
        self._hosts = defaultdict[str, Host](partial(Host, config.rate, config.connections))
        self._sessions: dict[bool, aiohttp.ClientSession] = {}

    async def __aenter__(self) -> Downloader:
        return self

    async def __aexit__(self, *_: object) -> None:
        await _close(self._sessions)

    def _session(self, private: bool) -> aiohttp.ClientSession:
        """The connections to any address, or to public ones only."""
        if private not in self._sessions:
            if not self._sessions:
                loop = asyncio.get_running_loop()
                weakref.finalize(self, _close_dropped, self._sessions, loop)
            factory = None if private else public_socket
            self._sessions[private] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, socket_factory=factory),
                timeout=aiohttp.ClientTimeout(total=self.config.timeout),
                headers={"User-Agent": AGENT, "Accept": "image/*,*/*;q=0.5"},
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,  # through a proxy, the address connected to is the proxy's
            )
        return self._sessions[private]

    async def fetch_image(self, url: str) -> Download:
        """An image in the wanted size; where the server has no such size, as it is.

        The bytes are looked at: what does not begin as an image of at least some pixels is refused.
        """
        sized = url if self.config.size_hint is None else sized_image(url, self.config.size_hint)
        found = await self.fetch(sized)
        if sized != url and found.reason in NOT_THERE:
            found = await self.fetch(url)
        problem = found.reason if found.data is None else image_problem(found.data)
        return Download(None if problem else found.data, problem)

    async def fetch(self, url: str) -> Download:
        """One http or https file. Errors that may pass are tried again, with growing pauses.

        Whatever goes wrong is the URL's own reason: nothing that a server says ends the job.
        """
        wait = BACKOFF
        for attempt in range(1, self.config.attempts + 1):
            try:
                return Download(await self._attempt(url), None)
            except Exception as error:
                failed = failure(error)
                pause = failed.wait if failed.wait is not None else wait * random.uniform(0.5, 1.0)
                last = attempt == self.config.attempts or pause > LONGEST_WAIT
                if not failed.retry or last:
                    tried = f"{TRIED}{attempt} of {self.config.attempts})" if failed.retry else ""
                    return Download(None, f"{failed.reason}{tried}")
                await asyncio.sleep(pause)
                wait *= 2
        raise AssertionError("the last attempt returns")

    async def _attempt(self, url: str) -> bytes:
        # A private host may be named by the table itself, never by a redirect from elsewhere.
        trusted: str | None = None
        for number in range(REDIRECTS + 1):
            if problem := url_problem(url):
                raise Failed(problem)
            target = URL(url)
            name = target.host or ""
            if number == 0 and self.config.allow_private:
                trusted = name
            host, session = self._hosts[name], self._session(private=name == trusted)
            await host.turn()
            # Waiting for a connection of our own is no time that the server takes.
            async with host.slot, session.get(target, allow_redirects=False) as response:
                if response.status not in REDIRECT_STATUSES:
                    return await self._body(response, host)
                place = response.headers.get("Location")
                if not place:
                    raise Failed(f"HTTP {response.status} without a place to go to")
                url = str(response.url.join(URL(place)))
        raise Failed(f"more than {REDIRECTS} redirects")

    async def _body(self, response: aiohttp.ClientResponse, host: Host) -> bytes:
        if response.status != 200:
            wait = retry_after(response.headers.get("Retry-After"))
            if wait is not None:
                host.pause(min(wait, LONGEST_WAIT))
            raise Failed(f"HTTP {response.status}", response.status in RETRIED_STATUSES, wait)
        kind = response.content_type if "Content-Type" in response.headers else ""
        if kind.startswith(REFUSED_TYPES):
            raise Failed(f"the server sent {kind}, not an image")
        limit = int(self.config.max_mb * 1e6)
        too_large = Failed(f"{TOO_LARGE}{limit} bytes")
        if (response.content_length or 0) > limit:
            raise too_large
        chunks, size = [], 0
        async for chunk in response.content.iter_any():
            size += len(chunk)
            if size > limit:
                raise too_large
            chunks.append(chunk)
        if not size:
            raise Failed("empty (0 bytes)")
        return b"".join(chunks)


async def _close(sessions: dict[bool, aiohttp.ClientSession]) -> None:
    while sessions:
        await sessions.popitem()[1].close()


def _close_dropped(
    sessions: dict[bool, aiohttp.ClientSession], loop: asyncio.AbstractEventLoop
) -> None:
    """Close what a downloader left open that was dropped, or lives on until the program ends."""
    if not sessions or not loop.is_running():
        return
    closing = asyncio.run_coroutine_threadsafe(_close(sessions), loop)
    if threading.get_ident() != getattr(loop, "_thread_id", None):
        closing.result(timeout=5)


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110, 10.2.3): a number, or a date.

    Returns:
        At least 0; None where there is no such header, or one that says nothing.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except Exception:  # the parser raises whatever it stumbles over, OverflowError say
            return None
    return max(0.0, seconds) if seconds == seconds else None


def failure(error: Exception) -> Failed:
    """The reason in words, and whether another attempt is worth it."""
    if isinstance(error, Failed):
        return error
    # A host with several addresses reports several errors as one; only the text remains.
    if NOT_PUBLIC in str(getattr(error, "os_error", "")):
        return Failed(REFUSED)
    if isinstance(error, TimeoutError):
        return Failed("no complete answer in time", retry=True)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        passing = error.errno == socket.EAI_AGAIN
        return Failed(f"the host has no address ({error.os_error})", retry=passing)
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return Failed(f"no trusted connection ({error})")
    if isinstance(error, aiohttp.ClientPayloadError):
        return Failed("the answer was cut short", retry=True)
    words = str(getattr(error, "os_error", None) or error)[:120] or type(error).__name__
    if isinstance(error, aiohttp.ClientConnectionError | OSError):
        return Failed(f"the connection failed ({words})", retry=True)
    return Failed(f"no valid answer ({words})")


# What stands between the id and the extension asks for a size or a cut-out: `._SY88`,
# `._SX38_SY50_CR,0,0,38,50_`.
_AMAZON = re.compile(
    r"^(?P<head>https?://[^?#]*/images/[A-Z]/[^/?#.]+)(?:\._[^/?#]*)?(?P<end>\.\w+)$"
)


def sized_image(url: str, side: int) -> str:
    """The address of the same image, its longest side scaled to so many pixels by Amazon's server.

    Two addresses of one image give the same text; another form than Amazon's is returned as it is,
    and 0 asks for the image as it was uploaded.
    """
    found = _AMAZON.match(url)
    if not found:
        return url
    return found["head"] + (f"._SL{side}_" if side else "") + found["end"]


def image_problem(data: bytes, *, whole: bool = False) -> str | None:
    """What is wrong with the bytes of an image, None for nothing; `whole` decodes it to its end."""
    try:
        width, height = open_image(data).size
        if whole:
            decode_image(data)
    except UnreadableImage as error:
        return str(error)
    if min(width, height) < MIN_SIDE:
        return f"{width} x {height} pixels are too few"
    return None


def extension(data: bytes) -> str:
    """`jpg` and so on, for an image that has no problem."""
    return EXTENSIONS[open_image(data).format or ""]
