"""A loopback server of images with every fault that the internet has to offer."""

import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath


class ImageServer:
    """Serves `images` (name to bytes) below `/images/I/`, and faults below their own names.

    `/404/…`, `/429/…` (once, with Retry-After, then the image), `/503/…` (twice), `/down/…`
    (always 503), `/slow/…` (longer than anyone waits), `/truncated/…` (fewer bytes than
    announced), `/cut/…` (half an image, well announced), `/html/…`, `/page/…` (a page that says it
    is an image), `/loop/…`, `/private/…` (redirects to `private`), `/moved/…` (to the image),
    `/file/…` (to a file:// address), `/pixel/…`, `/empty/…`, `/huge/…`, `/reset/…`.
    """

    def __init__(self, images: dict[str, bytes], private: str = "http://10.0.0.1/") -> None:
        self.images, self.private = images, private
        self.requests: Counter[str] = Counter()
        self.times: dict[str, list[float]] = {}
        self.connections = 0
        self.port = 0
        self.delay, self.slow = 0.0, 3.0

    def image(self, path: str) -> bytes:
        """As Amazon's servers do, an image is there in all sizes; `exact/…` is in one only."""
        name = PurePosixPath(path).name
        if "/exact/" in path:
            return self.images.get(f"exact/{name}", b"")
        return self.images.get(re.sub(r"\._\w+_?\.", ".", name), b"")

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}"


PIXEL = (
    b"GIF89a\x01\x00\x01\x00\x80\x00\x00\xff\xff\xff\x00\x00\x00!\xf9\x04\x01\x00\x00\x00\x00,\x00"
    b"\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"
)


class QuietHandler(BaseHTTPRequestHandler):
    """Answers by one call, and writes no log."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def answer(
        self, body: bytes = b"", status: int = 200, length: int | None = None, **headers: str
    ) -> None:
        """`length` is announced in place of the body's; headers are named with `_` for `-`."""
        if length is not None:
            self.close_connection = True
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, *_: object) -> None:
        pass


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """The free port that a server of this machine answers at."""
    with _Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()


@contextmanager
def running(server: ImageServer) -> Iterator[ImageServer]:
    """The server, on a free port."""
    lock = threading.Lock()

    class Handler(QuietHandler):
        def setup(self) -> None:
            with lock:
                server.connections += 1
            super().setup()

        def do_GET(self) -> None:
            with lock:
                server.requests[self.path] += 1
                seen = server.requests[self.path]
                server.times.setdefault(self.path, []).append(time.monotonic())
            if server.delay:
                time.sleep(server.delay)
            parts = PurePosixPath(self.path).parts
            image = server.image(self.path)
            fault = parts[1] if len(parts) > 1 else ""
            try:
                self.faulty(fault, image, seen)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def faulty(self, fault: str, image: bytes, seen: int) -> None:
            moved = "/images/I/" + PurePosixPath(self.path).name
            places = {"loop": self.path, "private": server.private, "moved": moved}
            places["file"] = "file:///etc/passwd"
            half = image[: len(image) // 2]
            bodies = {"cut": half, "huge": image + b"\0" * 3_000_000}
            bodies |= {"html": b"<html>sorry</html>", "page": b"<!DOCTYPE html><html>sorry</html>"}
            bodies |= {"pixel": PIXEL, "empty": b"", "429": image, "503": image, "slow": image}
            kinds = {"html": "text/html; charset=utf-8", "pixel": "image/gif"}
            kind = kinds.get(fault, "image/jpeg")
            if fault == "slow":
                time.sleep(server.slow)
            if fault == "images" and image:
                self.answer(image, Content_Type=kind)
            elif fault == "429" and seen == 1:
                self.answer(status=429, Retry_After="1")
            elif (fault == "503" and seen <= 2) or fault == "down":
                self.answer(b"busy", 503, Content_Type="text/plain")
            elif fault in ("truncated", "reset"):
                self.answer(half, length=len(image), Content_Type=kind)
                if fault == "reset":
                    off = b"\x01\x00\x00\x00\x00\x00\x00\x00"  # linger on, 0 s: RST, not FIN
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, off)
            elif fault in places:
                self.answer(status=302, Location=places[fault])
            elif fault in bodies:
                self.answer(bodies[fault], Content_Type=kind)
            else:
                self.answer(b"no such image", 404, Content_Type="text/plain")

    with listening(Handler) as server.port:
        yield server
