"""What stands before every request: who may ask, how often, how much, for how long."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""Of every answer; the page brings a content security policy of its own."""
WRITES = ("PUT", "DELETE")
UNLIMITED = ("/healthz", "/metrics")
CLIENTS = 10_000
log = logging.getLogger("visual_search.serve")


@dataclass(frozen=True)
class Limits:
    """What a client may take.

    Args:
        upload_bytes: of a request; of a change to a product, which needs the key, ten times that.
        seconds: of a request, its upload included.
        at_once: requests at a time, of all clients.
        rate: searches a second of one client; other requests count a tenth of one.
        burst: searches at once of one client.
    """

    upload_bytes: int = 20 << 20
    seconds: float = 20.0
    at_once: int = 64
    rate: float = 10.0
    burst: int = 40


class Refusal(Exception):
    """An answer that is not given: status, sentence, and after how many seconds to try again."""

    def __init__(self, status: int, sentence: str, retry: int = 0) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.retry = status, sentence, retry


class Guard:
    """An ASGI application round another, which sees only what may pass."""

    def __init__(
        self,
        app: Application,
        limits: Limits,
        *,
        key: str | None,
        hosts: tuple[str, ...],
        registry: CollectorRegistry,
    ) -> None:
        """
        Args:
            app: what is guarded.
            limits: what a client may take.
            key: that changes want; without one there are none.
            hosts: names by which the service may be asked for; empty: any.
            registry: of the metrics.
        """
        self.app, self.limits, self.key, self.hosts = app, limits, key, hosts
        self.running = 0
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._requests = Counter(
            "requests", "Requests by method and status", ["method", "status"], registry=registry
        )
        self._seconds = Histogram(
            "request_seconds", "From the first byte to the last", ["method"], registry=registry
        )

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._most_bytes(scope))
        began = time.perf_counter()
        self.running += 1
        try:
            self._check(scope, exchange.headers)
            async with asyncio.timeout(self.limits.seconds):
                await self.app(scope, exchange.receive, exchange.send)
            if exchange.too_large:
                raise exchange.too_large
        except Refusal as refusal:
            await exchange.refuse(refusal)
        except TimeoutError:
            await exchange.refuse(Refusal(503, "it took too long: try again", 1))
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            await exchange.refuse(exchange.too_large or Refusal(500, "the service failed"))
        finally:
            self.running -= 1
            seconds = time.perf_counter() - began
            method = scope["method"] if scope["method"] in ("GET", "POST", *WRITES) else "other"
            self._requests.labels(method, str(exchange.status)).inc()
            self._seconds.labels(method).observe(seconds)
            log.info("%s %s %s %.3f s", scope["method"], scope["path"], exchange.status, seconds)

    def _most_bytes(self, scope: Message) -> int:
        return self.limits.upload_bytes * (10 if scope["method"] in WRITES else 1)

    def _check(self, scope: Message, headers: dict[str, str]) -> None:
        if self.hosts and headers.get("host", "").rsplit(":", 1)[0] not in self.hosts:
            raise Refusal(421, f"ask for one of these hosts: {', '.join(self.hosts)}")
        if scope["path"] in UNLIMITED:
            return
        if self.running > self.limits.at_once:
            raise Refusal(503, "too many ask at once: try again", 1)
        self._take(scope)
        if scope["method"] in WRITES:
            self._check_key(headers)
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            raise Refusal(400, "content-length is no number")
        if int(length) > self._most_bytes(scope):
            raise _too_large(self._most_bytes(scope))

    def _check_key(self, headers: dict[str, str]) -> None:
        if self.key is None:
            raise Refusal(403, "the service was started without VISUAL_SEARCH_API_KEY: no changes")
        given = headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self.key.encode()):
            raise Refusal(401, "changes need the header Authorization: Bearer <key>")

    def _take(self, scope: Message) -> None:
        """Take from the client's bucket, which fills at the rate up to the burst."""
        client, now = (scope.get("client") or ("",))[0], time.monotonic()
        left, then = self._buckets.pop(client, (float(self.limits.burst), now))
        left = min(left + (now - then) * self.limits.rate, self.limits.burst)
        cost = 1.0 if scope["path"] in ("/search", "/box") else 0.1
        enough = left >= cost
        self._buckets[client] = (left - cost * enough, now)
        if len(self._buckets) > CLIENTS:
            self._buckets.popitem(last=False)
        if not enough:
            raise Refusal(429, "too many requests: ask more slowly", 1)


def _too_large(most: int) -> Refusal:
    return Refusal(413, f"the upload is larger than {most >> 20} MB")


class _Exchange:
    """One request as it is read, and its answer as it is written."""

    def __init__(self, scope: Message, receive: Receive, send: Send, most: int) -> None:
        self._receive, self._send, self._most, self._seen = receive, send, most, 0
        self.headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        self.status = 0
        self.too_large: Refusal | None = None

    async def receive(self) -> Message:
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        if self._seen > self._most:
            self.too_large = _too_large(self._most)
            return {"type": "http.disconnect"}
        return message

    async def send(self, message: Message) -> None:
        if self.too_large:
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            given = {name.lower() for name, _ in message["headers"]}
            more = {k.encode(): v.encode() for k, v in HEADERS.items() if k.encode() not in given}
            message = {**message, "headers": [*message["headers"], *more.items()]}
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        if self.status:
            return  # an answer is on its way; the server closes the connection
        self.too_large = None
        headers = [(b"content-type", b"application/json")]
        if refusal.retry:
            headers.append((b"retry-after", str(refusal.retry).encode()))
        body = json.dumps({"error": refusal.sentence}).encode()
        await self.send(
            {"type": "http.response.start", "status": refusal.status, "headers": headers}
        )
        await self.send({"type": "http.response.body", "body": body})
