"""A quick loopback server of photos, in a process of its own, for both sides of a comparison."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def photo_server(photos: Path) -> Iterator[str]:
    """Serve a folder of photos.

    Yields:
        An address; `<address>/<any number>.jpg` is one of the photos, in the order of their names.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(photos, theirs), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join()


def _serve(folder: Path, pipe: Any) -> None:
    import asyncio

    from aiohttp import web

    photos: list[bytes] = []

    async def answer(request: web.Request) -> web.Response:
        if not photos:  # read with the first request: the folder may be filled by then
            photos.extend(path.read_bytes() for path in sorted(folder.iterdir()))
        number = int(request.match_info["number"])
        return web.Response(body=photos[number % len(photos)], content_type="image/jpeg")

    async def run() -> None:
        application = web.Application()
        application.router.add_get("/{number}.jpg", answer)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=512)
        await site.start()
        assert site._server is not None
        pipe.send(site._server.sockets[0].getsockname()[1])  # type: ignore[attr-defined]
        await asyncio.Event().wait()

    asyncio.run(run())
