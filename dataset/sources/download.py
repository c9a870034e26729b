"""Downloading large public files: continued where they were cut off, checked at the end."""

from __future__ import annotations

import hashlib
import http.client
import socket
import ssl
import time
import urllib.error
import urllib.request
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

from dataset.public_addresses import AddressRefused, public_socket, url_problem
from dataset.sources.base import Download
from visual_search.common.errors import UserError
from visual_search.common.files import naming, write_text
from visual_search.common.progress import progress_bar

TIMEOUT = 60  # seconds without a byte
ATTEMPTS = 5  # in a row without a new byte
CHUNK = 1 << 18
BROKEN = (TimeoutError, ConnectionError, ssl.SSLError)
"""What a network does that may do better a moment later."""
UNFINISHED, VALIDATOR = ".unfinished", ".validator"


def download(
    wanted: Download, folder: Path, page: str, *, private: bool = False, pause: float = 1.0
) -> Path:
    """Get a file into a folder, or what is still missing of it; one that is there is whole.

    Args:
        page: where a person gets it, for the error.
        private: whether the address may be one of a private network.
        pause: seconds before the second attempt; each further one waits twice as long.

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
    failures = 0
    while True:
        before = part.stat().st_size if part.is_file() else 0
        try:
            _fetch_rest(wanted, part, page, private)
            break
        except (*BROKEN, http.client.HTTPException, _Unfinished) as error:
            grown = part.is_file() and part.stat().st_size > before
            failures = 1 if grown else failures + 1
            if failures == ATTEMPTS:
                raise _failed(wanted, page, f"the connection broke {ATTEMPTS} times") from error
            time.sleep(pause * 2 ** (failures - 1))
    _check(wanted, part, page)
    part.replace(file)
    _validator(part).unlink(missing_ok=True)
    return file


class _Unfinished(Exception):
    """The server stopped before the end, or cannot answer now."""


def _fetch_rest(wanted: Download, part: Path, page: str, private: bool) -> None:
    start = part.stat().st_size if part.is_file() else 0
    try:
        response = _request(wanted, part, start, private)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing behind what we have: whole, or of another version
            if _total(error.headers) != start:
                part.unlink()
                raise _Unfinished from error
            return
        if error.code in (408, 429) or error.code >= 500:
            raise _Unfinished from error
        raise _failed(wanted, page, f"the server says {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, AddressRefused):
            raise UserError(f"{wanted.url} leads into a private network: {error.reason}") from error
        untrusted = isinstance(error.reason, ssl.SSLCertVerificationError)
        if isinstance(error.reason, BROKEN) and not untrusted:
            raise _Unfinished from error
        raise _failed(wanted, page, str(error.reason)) from error
    with response:
        _receive(response, wanted, part, start, page)


def _request(wanted: Download, part: Path, start: int, private: bool) -> HTTPResponse:
    request = urllib.request.Request(wanted.url, headers={"User-Agent": "visual-search-kit"})
    validator = _validator(part)
    if start and validator.is_file():
        # Sends the rest only if the file is still the one that was begun.
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", validator.read_text(encoding="utf-8"))
    _refuse_others(wanted.url)
    # A proxy would look the name up itself, behind the check.
    checked = () if private else (_Public, urllib.request.ProxyHandler({}))
    opener = urllib.request.build_opener(_CheckedRedirects, *checked)
    return opener.open(request, timeout=TIMEOUT)


def _receive(response: HTTPResponse, wanted: Download, part: Path, start: int, page: str) -> None:
    """Append what comes; from the start where the server does not know ranges."""
    if response.headers.get_content_type() == "text/html":
        raise _failed(wanted, page, "the server sends a web page instead")
    part_of = response.headers.get("Content-Range") or ""
    continued = response.status == 206 and part_of.startswith(f"bytes {start}-")
    start = start if continued else 0
    total = _total(response.headers)
    if wanted.size is not None and total not in (None, wanted.size):
        raise _failed(wanted, page, f"it has {total} bytes there, {wanted.size} are expected")
    mark = response.headers.get("ETag") or response.headers.get("Last-Modified")
    if mark and not mark.startswith("W/"):
        write_text(_validator(part), mark)
    else:
        _validator(part).unlink(missing_ok=True)
    with (
        naming(part),
        part.open("ab" if continued else "wb", buffering=0) as handle,
        progress_bar(wanted.name, "B", total=total, initial=start, unit_scale=True) as bar,
    ):
        while chunk := _next_chunk(response):
            view = memoryview(chunk)
            while view:  # a nearly full disk takes a part before it refuses the rest
                view = view[handle.write(view) :]
            bar.update(len(chunk))
    if total is not None and part.stat().st_size != total:
        raise _Unfinished


def _next_chunk(response: HTTPResponse) -> bytes:
    """What comes next; whatever goes wrong there is the network's fault, and may pass."""
    try:
        return response.read(CHUNK)
    except OSError as error:
        raise _Unfinished from error


def _validator(part: Path) -> Path:
    return part.with_name(part.name + VALIDATOR)


def _total(headers: Any) -> int | None:
    """Bytes of the whole file, if the server says so."""
    whole = (headers.get("Content-Range") or "").rpartition("/")[2]
    if whole.isdigit():
        return int(whole)
    length = headers.get("Content-Length") or ""
    return int(length) if length.isdigit() and "Content-Range" not in headers else None


def _check(wanted: Download, part: Path, page: str) -> None:
    size = part.stat().st_size
    if wanted.size is not None and size != wanted.size:
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


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect to http and https only."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        _refuse_others(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _refuse_others(url: str) -> None:
    if problem := url_problem(url):
        raise UserError(problem)


class _Public(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
    """Connects to public addresses alone; what is checked is the address that it connects to."""

    def http_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(_connecting_by(http.client.HTTPConnection), req)

    def https_open(self, req: urllib.request.Request) -> HTTPResponse:
        context = ssl.create_default_context()
        return self.do_open(_connecting_by(http.client.HTTPSConnection), req, context=context)


def _connecting_by(kind: Any) -> Any:
    def make(*arguments: Any, **options: Any) -> Any:
        made = kind(*arguments, **options)
        made._create_connection = _connect_to_public
        return made

    return make


def _connect_to_public(
    address: tuple[str, int], timeout: float, source_address: object = None
) -> socket.socket:
    """As `socket.create_connection`, to the first address of the name that answers."""
    failed: OSError = OSError(f"{address[0]} has no address")
    for info in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
        connection = public_socket(info)
        try:
            connection.settimeout(timeout)
            connection.connect(info[4])
            return connection
        except OSError as error:
            connection.close()
            failed = error
    raise failed
