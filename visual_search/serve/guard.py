"""What stands before every request: who may ask, how often, how much, for how long."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from dataclasses import dataclass

from prometheus_client import Counter, Histogram
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUESTS = Counter("requests", "By method and status", ["method", "status"])
SECONDS = Histogram("request_seconds", "From the first byte to the last", ["method"])
HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""Of every answer; the page brings a content security policy of its own."""
WRITES = ("PUT", "DELETE")
CLIENTS = 10_000
log = logging.getLogger("visual_search.serve")


@dataclass(frozen=True)
class Limits:
    """What a client may take."""

    upload_bytes: int = 20 << 20
    """Of a request; of a change to a product, which needs the key, ten times that."""
    seconds: float = 20.0
    """Of a request, its upload included."""
    at_once: int = 64
    """Requests at a time, of all clients."""
    rate: float = 10.0
    """Searches a second of one client; other requests count a tenth of one."""
    burst: int = 40
    """Searches at once of one client."""
    key: str | None = None
    """That changes want; without one there are none."""
    hosts: tuple[str, ...] = ()
    """Names by which the service may be asked for; empty: any."""


class Refusal(HTTPException):
    """An answer that is not given: status, sentence, and after how many seconds to try again."""

    def __init__(self, status: int, sentence: str, retry: int = 0) -> None:
        super().__init__(status, sentence, {"retry-after": str(retry)} if retry else None)


def told(error: HTTPException) -> JSONResponse:
    """An error as the service answers it."""
    return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)


class Guard:
    """A middleware that lets through what may pass, and measures it."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self.limits, self.running = app, limits, 0
        self._buckets: dict[str, tuple[float, float]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, began, request = 0, time.perf_counter(), Request(scope)

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refused: HTTPException | None = None
        self.running += 1
        try:
            self._check(request)
            async with asyncio.timeout(self.limits.seconds):
                await self.app(scope, receive, answer)
        except HTTPException as error:
            refused = error
        except TimeoutError:
            refused = Refusal(503, "it took too long: try again", 1)
        except Exception:
            log.exception("%s %s failed", request.method, request.url.path)
            refused = Refusal(500, "the service failed")
        finally:
            self.running -= 1
        if refused and not status:  # else an answer is on its way; the server closes the connection
            await told(refused)(scope, receive, answer)
        taken = time.perf_counter() - began
        path = scope["raw_path"].decode("latin-1")  # as it was sent, so that it stays in its line
        method = request.method if request.method in ("GET", "POST", *WRITES) else "other"
        REQUESTS.labels(method, status).inc()
        SECONDS.labels(method).observe(taken)
        log.info("%s %s %d %.0f ms", request.method, path, status, taken * 1e3)

    def _check(self, request: Request) -> None:
        headers, path, limits = request.headers, request.url.path, self.limits
        if limits.hosts and headers.get("host", "").rsplit(":", 1)[0] not in limits.hosts:
            raise Refusal(421, f"ask for one of these hosts: {', '.join(limits.hosts)}")
        if path in ("/healthz", "/metrics"):
            return
        if request.method != "GET" and headers.get("sec-fetch-site") == "cross-site":
            raise Refusal(403, "pages of other sites may not ask")
        if self.running > limits.at_once:
            raise Refusal(503, "too many ask at once: try again", 1)
        self._take(request.client.host if request.client else "", path in ("/search", "/box"))
        most = limits.upload_bytes
        if request.method in WRITES:
            if limits.key is None:
                raise Refusal(403, "the service runs without VISUAL_SEARCH_API_KEY: no changes")
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), limits.key.encode()):
                raise Refusal(401, "changes need the header Authorization: Bearer <key>")
            most *= 10
        length = headers.get("content-length", "0")
        if "transfer-encoding" in headers or not length.isdecimal():
            raise Refusal(411, "say how long the upload is: Content-Length, and no chunks")
        if int(length) > most:
            raise Refusal(413, f"the upload is larger than {most >> 20} MB")

    def _take(self, client: str, is_search: bool) -> None:
        """Take from the client's bucket, which fills at the rate up to the burst."""
        now, cost = time.monotonic(), 1.0 if is_search else 0.1
        left, then = self._buckets.pop(client, (float(self.limits.burst), now))
        left = min(left + (now - then) * self.limits.rate, self.limits.burst)
        self._buckets[client] = (left - cost if left >= cost else left, now)
        if len(self._buckets) > CLIENTS:  # the one that was silent for longest
            del self._buckets[next(iter(self._buckets))]
        if left < cost:
            raise Refusal(429, "too many requests: ask more slowly", 1)
