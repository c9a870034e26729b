"""Downloading many small files politely: pooled connections, limits, retries, reasons.

    async with Downloader(DownloadLimits()) as downloader:
        download = await downloader.fetch(url)

Nothing is raised for a URL: a :class:`Download` has the bytes, or the reason why there are none.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import threading
import time
import weakref
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import TracebackType

import aiohttp
from yarl import URL

from dataset.public_addresses import NOT_PUBLIC, public_socket, url_problem

AGENT = "visual-search/0.1 (image data set builder)"

RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
"""What a server says when it may answer otherwise a moment later."""

REDIRECTS = frozenset({301, 302, 303, 307, 308})

TRIED = " (attempt "
"""Stands in the reason of a failure that may pass."""

REFUSED_TYPES = ("text/", "application/json", "application/xml", "application/xhtml")
"""Media types that no photo has: a page saying that something went wrong."""


@dataclass(frozen=True)
class DownloadLimits:
    """How far a download may go.

    Attributes:
        max_bytes: of one file.
        timeout: seconds for one attempt, from connecting to the last byte.
        attempts: at most so many for one URL, redirects not counted.
        backoff: seconds before the second attempt, doubled for each one after it.
        longest_wait: seconds; where a server asks for more (Retry-After), the file gets no further
            attempt and the server's others a pause of this length.
        connections: open to one host at a time.
        rate: requests a second to one host; 0 is no limit.
        redirects: at most so many in a row.
        allow_private: also addresses that are not public, such as this machine's own; a redirect
            still leads to another host only where that is public.
    """

    max_bytes: int = 20_000_000
    timeout: float = 30.0
    attempts: int = 4
    backoff: float = 0.5
    longest_wait: float = 60.0
    connections: int = 32
    rate: float = 100.0
    redirects: int = 5
    allow_private: bool = False


@dataclass(frozen=True)
class Download:
    """What came of one URL: `data`, or None and the reason."""

    url: str
    data: bytes | None
    reason: str | None


def may_pass(reason: str | None) -> bool:
    """Whether a failure of that reason is worth another try on another day."""
    return reason is not None and TRIED in reason


class _Failed(Exception):
    """An attempt that gave no file."""

    def __init__(self, reason: str, retry: bool = False, wait: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.retry, self.wait = reason, retry, wait


class HostPace:
    """Evenly spaced turns for requests to each host, and pauses that a host asks for."""

    def __init__(self, rate: float) -> None:
        self._spacing = 1.0 / rate if rate > 0 else 0.0
        self._free: dict[str, float] = {}
        self._paused: dict[str, float] = {}

    async def turn(self, host: str) -> None:
        """Return when the next request to `host` may go out."""
        while True:
            now = time.monotonic()
            start = max(now, self._free.get(host, 0.0), self._paused.get(host, 0.0))
            # The place in the queue is taken before the wait, so turns stay in order.
            self._free[host] = start + self._spacing
            if start > now:
                await asyncio.sleep(start - now)
            # Meanwhile the host may have asked for a pause that this place lies in.
            if self._paused.get(host, 0.0) <= start:
                return

    def pause(self, host: str, seconds: float) -> None:
        """No further request to `host` for so many seconds, nor from those in the queue."""
        until = time.monotonic() + seconds
        self._paused[host] = max(self._paused.get(host, 0.0), until)


class Downloader:
    """Fetches URLs; one for each event loop, shared by all tasks that run there."""

    def __init__(self, limits: DownloadLimits) -> None:
        self.limits = limits
        self._pace = HostPace(limits.rate)
        self._sessions: dict[bool, aiohttp.ClientSession] = {}

    async def __aenter__(self) -> Downloader:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def _session(self, private: bool) -> aiohttp.ClientSession:
        """The connections to any address, or to public ones only."""
        if private not in self._sessions:
            if not self._sessions:
                loop = asyncio.get_running_loop()
                weakref.finalize(self, _close_dropped, self._sessions, loop)
            connector = aiohttp.TCPConnector(
                limit=0,
                limit_per_host=self.limits.connections,
                socket_factory=None if private else public_socket,
            )
            self._sessions[private] = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=self.limits.timeout),
                headers={"User-Agent": AGENT, "Accept": "image/*,*/*;q=0.5"},
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,  # through a proxy, the address connected to is the proxy's
            )
        return self._sessions[private]

    async def close(self) -> None:
        """Close the connections."""
        await _closed(self._sessions)

    async def fetch(self, url: str) -> Download:
        """One file. Errors that may pass are tried again, with growing pauses.

        Args:
            url: http or https.
        """
        wait = self.limits.backoff
        for attempt in range(1, self.limits.attempts + 1):
            try:
                return Download(url, await self._attempt(url), None)
            except _Failed as failed:
                pause = failed.wait if failed.wait is not None else wait * random.uniform(0.5, 1.0)
                last = attempt == self.limits.attempts or pause > self.limits.longest_wait
                if not failed.retry or last:
                    tried = f"{TRIED}{attempt} of {self.limits.attempts})" if failed.retry else ""
                    return Download(url, None, f"{failed.reason}{tried}")
                await asyncio.sleep(pause)
                wait *= 2
        raise AssertionError("the last attempt returns")

    async def _attempt(self, url: str) -> bytes:
        trusted: str | None = None
        for number in range(self.limits.redirects + 1):
            problem = url_problem(url)
            if problem:
                raise _Failed(problem)
            try:
                if number == 0 and self.limits.allow_private:
                    trusted = URL(url).host
                found = await self._request(url, trusted)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                raise _failure(error) from error
            if isinstance(found, bytes):
                return found
            url = found
        raise _Failed(f"more than {self.limits.redirects} redirects")

    async def _request(self, url: str, trusted: str | None) -> bytes | str:
        """The body, or where a redirect leads; `trusted` is the host that need not be public."""
        target = URL(url)
        await self._pace.turn(target.host or "")
        session = self._session(private=target.host == trusted)
        async with session.get(target, allow_redirects=False) as response:
            if response.status in REDIRECTS:
                place = response.headers.get("Location")
                if not place:
                    raise _Failed(f"HTTP {response.status} without a place to go to")
                return str(response.url.join(URL(place)))
            if response.status != 200:
                raise self._refusal(response)
            kind = response.content_type if "Content-Type" in response.headers else ""
            if kind.startswith(REFUSED_TYPES):
                raise _Failed(f"the server sent {kind}, not an image")
            return await self._body(response)

    def _refusal(self, response: aiohttp.ClientResponse) -> _Failed:
        wait = retry_after(response.headers.get("Retry-After"))
        if wait is not None:
            self._pace.pause(response.url.host or "", min(wait, self.limits.longest_wait))
        return _Failed(f"HTTP {response.status}", response.status in RETRIED_STATUSES, wait)

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        limit = self.limits.max_bytes
        too_large = _Failed(f"larger than {limit} bytes")
        if (response.content_length or 0) > limit:
            raise too_large
        chunks, size = [], 0
        async for chunk in response.content.iter_any():
            size += len(chunk)
            if size > limit:
                raise too_large
            chunks.append(chunk)
        if not size:
            raise _Failed("empty (0 bytes)")
        return b"".join(chunks)


async def _closed(sessions: dict[bool, aiohttp.ClientSession]) -> None:
    while sessions:
        await sessions.popitem()[1].close()


def _close_dropped(
    sessions: dict[bool, aiohttp.ClientSession], loop: asyncio.AbstractEventLoop
) -> None:
    """Close what a downloader left open that was dropped, or lives on until the program ends."""
    if not sessions or not loop.is_running():
        return
    closing = asyncio.run_coroutine_threadsafe(_closed(sessions), loop)
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
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) if seconds == seconds else None


def _failure(error: Exception) -> _Failed:
    """The reason in words, and whether another attempt is worth it."""
    # A host with several addresses reports several errors as one; only the text remains.
    if NOT_PUBLIC in str(getattr(error, "os_error", "")):
        return _Failed(f"refused: {NOT_PUBLIC}")
    if isinstance(error, TimeoutError):
        return _Failed("no complete answer in time", retry=True)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        passing = error.errno == socket.EAI_AGAIN
        return _Failed(f"the host has no address ({error.os_error})", retry=passing)
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return _Failed(f"no trusted connection ({error})")
    if isinstance(error, aiohttp.ClientPayloadError):
        return _Failed("the answer was cut short", retry=True)
    if isinstance(error, aiohttp.ClientConnectionError | OSError):
        return _Failed(f"the connection failed ({_short(error)})", retry=True)
    return _Failed(f"no valid answer ({_short(error)})")


def _short(error: Exception) -> str:
    return str(getattr(error, "os_error", None) or error)[:120] or type(error).__name__
