"""Downloading large public files: continued where they were cut off, checked at the end."""

from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path

import aiohttp

from dataset.downloads import AGENT, RETRIED_STATUSES, Failed, failure
from dataset.public_addresses import public_socket
from dataset.sources.base import Download
from visual_search.common.errors import UserError
from visual_search.common.files import naming, write_text
from visual_search.common.progress import progress_bar

TIMEOUT = 60  # seconds without a byte
ATTEMPTS = 5  # in a row without a new byte
PAUSE = 1.0  # seconds before the second attempt; doubled for each one after it
CHUNK = 1 << 18
UNFINISHED = ".unfinished"


def download(wanted: Download, folder: Path, page: str) -> Path:
    """Get a file into a folder, or what is still missing of it; one that is there is whole.

    Args:
        page: where a person gets it, for the error.

    Raises:
        UserError: naming the page, when the server cannot be reached or does not have the file,
            and when it sends something else.
        OSError: naming the file, when the disk is full.
    """
    file = folder / wanted.name
    if file.is_file():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + UNFINISHED)
    attempts = 0
    while True:
        before = _size(part)
        try:
            asyncio.run(_fetch_rest(wanted, part))
            break
        except (aiohttp.ClientError, TimeoutError, Failed) as error:
            attempts = 1 if _size(part) > before else attempts + 1
            why = failure(error)
            if not why.retry or attempts == ATTEMPTS:
                raise _failed(wanted, page, why.reason) from error
            time.sleep(PAUSE * 2 ** (attempts - 1))
    _check(wanted, part, page)
    part.replace(file)
    _validator(part).unlink(missing_ok=True)
    return file


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _validator(part: Path) -> Path:
    """Which version of the file was begun, by the server's word."""
    return part.with_name(f"{part.name}.validator")


async def _fetch_rest(wanted: Download, part: Path) -> None:
    """Append what is missing; all of it where the server knows no ranges."""
    start, mark = _size(part), _validator(part)
    headers = {"User-Agent": AGENT, "Accept-Encoding": "identity"}
    if start and mark.is_file():
        # Sends the rest only if the file is still the one that was begun.
        headers |= {"Range": f"bytes={start}-", "If-Range": mark.read_text("utf-8")}
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(socket_factory=public_socket),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT, sock_read=TIMEOUT),
        auto_decompress=False,
    )
    async with session, session.get(wanted.url, headers=headers) as response:
        if response.status == 416:  # nothing behind what we have: whole, or of another version
            if response.headers.get("Content-Range") != f"bytes */{start}":
                part.unlink()
                raise Failed("the file is another one now", retry=True)
            return
        if response.status not in (200, 206):
            retry = response.status in RETRIED_STATUSES
            raise Failed(f"the server says {response.status} {response.reason}", retry)
        if response.content_type == "text/html":
            raise Failed("the server sends a web page instead")
        continued = response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        start = start if continued else 0
        version = response.headers.get("ETag") or response.headers.get("Last-Modified") or "W/"
        mark.unlink(missing_ok=True)
        if not version.startswith("W/"):
            write_text(mark, version)
        total = response.content_length and start + response.content_length
        with (
            part.open("ab" if continued else "wb", buffering=0) as handle,
            progress_bar(wanted.name, "B", total=total, initial=start, unit_scale=True) as bar,
        ):
            async for chunk in response.content.iter_chunked(CHUNK):
                view = memoryview(chunk)
                with naming(part):
                    while view:  # a nearly full disk takes a part before it refuses the rest
                        view = view[handle.write(view) :]
                bar.update(len(chunk))


def _check(wanted: Download, part: Path, page: str) -> None:
    size = _size(part)
    if wanted.size not in (None, size):
        part.unlink()
        raise _failed(wanted, page, f"{size} bytes came, {wanted.size} are expected")
    for kind, expected in (("md5", wanted.md5), ("sha256", wanted.sha256)):
        if not expected:
            continue
        with part.open("rb") as handle:
            found = hashlib.file_digest(handle, kind).hexdigest()
        if found != expected:
            part.unlink()
            raise _failed(wanted, page, f"its {kind} is {found}, expected {expected}")


def _failed(wanted: Download, page: str, why: str) -> UserError:
    return UserError(
        f"{wanted.url} could not be downloaded: {why}; get the data set from {page} yourself and "
        "name its folder or archives with --source"
    )
