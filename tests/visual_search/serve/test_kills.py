"""Real processes killed at random moments: what was acknowledged stays, what is there is whole."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.conftest import draw_product
from tests.visual_search.serve.conftest import stop_at_once, until
from tests.warm import start_python
from visual_search.serve.connections import start_server
from visual_search.serve.store import Store

KEY = "a key of sixteen or more"


def sources(store: Store) -> Any:
    return until(lambda: [model.source for model in store.models()])


@pytest.mark.slow
def test_a_killed_database_starts_again_by_itself(folder: Path) -> None:
    store = Store(str(folder), connections=2)
    store.add_model("runs/a", "a", 8)
    stop_at_once(folder, signal.SIGKILL)
    assert sources(store) == ["runs/a"]
    # In a new container another program may have the number that the killed server had.
    pid_file = folder / "pgdata/postmaster.pid"
    lines = pid_file.read_text().splitlines()
    stop_at_once(folder, signal.SIGKILL)
    while psutil.pid_exists(int(lines[0])):
        time.sleep(0.05)
    pid_file.write_text("\n".join(["1", *lines[1:]]) + "\n")
    # And a process that was killed while it wrote left half a list of those that use the server.
    (folder / "pgdata/.handle_pids.json").write_text("[][12")
    assert sources(store) == ["runs/a"]
    store.close()


def command(log: Path, module: str, *arguments: object) -> BaseProcess:
    environment = {"VISUAL_SEARCH_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
    words = ("-m", f"visual_search.{module}", *arguments)
    return start_python(*words, out=log, environment=environment)


def ended_well(process: BaseProcess) -> bool:
    process.join(120)
    return process.exitcode == 0


class Writer(threading.Thread):
    """Puts products and deletes them, and remembers what was acknowledged."""

    def __init__(self, address: str, images: list[bytes]) -> None:
        super().__init__(daemon=True)
        self.address, self.images, self.stopped = address, images, threading.Event()
        self.acknowledged: dict[str, str | None] = {}
        """By product: the title that must be there, or None where it must be gone."""
        self.open: str | None = None
        """The product whose change was not answered; it may be either way."""
        self.writes = 0

    def run(self) -> None:
        rng = random.Random(0)
        headers = {"Authorization": f"Bearer {KEY}"}
        while not self.stopped.wait(0.01):
            product, title = f"w{rng.randrange(8)}", f"title {self.writes}"
            gone = rng.random() < 0.2
            self.open = product
            address = f"{self.address}/products/{product}"
            files = [("images", (f"{n}.png", image)) for n, image in enumerate(self.images)]
            try:
                if gone:
                    done = httpx.delete(address, headers=headers, timeout=30)
                else:
                    data = {"product": json.dumps({"title": title})}
                    done = httpx.put(address, data=data, files=files, headers=headers, timeout=30)
            except httpx.HTTPError:
                self.acknowledged.pop(product, None)  # not answered: either way is right
                time.sleep(0.1)
                continue
            if done.status_code in (204, 404):
                self.acknowledged[product] = None if gone else title
                self.writes += 1
            else:
                self.acknowledged.pop(product, None)
            self.open = None


def check(store: Store, writer: Writer, images: int) -> None:
    known = store.products(list(writer.acknowledged))
    for product, title in dict(writer.acknowledged).items():
        if product == writer.open or title != writer.acknowledged.get(product):
            continue
        found = known.get(product)
        assert (found.title if found else None) == title
        assert found is None or len(found.images) == images
    # No half product: each has its images, each image its embedding.
    (model,) = store.models()
    assert len(store.missing(model)) == 0
    assert all(product.images for product in store.products(store.product_ids()).values())


@pytest.mark.slow
def test_thirty_kills_lose_nothing(folder: Path, tiny_export: Path, tmp_path: Path) -> None:
    for product in range(40):
        for photo in range(2):
            draw_product(product, photo).save(tmp_path / f"{product}_{photo}.png")
    lines = [json.dumps({"id": f"p{n}", "images": [f"{n}_0.png", f"{n}_1.png"]}) for n in range(40)]
    table, log = tmp_path / "products.jsonl", tmp_path / "log"
    table.write_text("\n".join(lines))
    index = ("main_index", "--database", folder, "--run", tiny_export, "--gallery", table)
    assert ended_well(command(log, *index))
    start_server(folder)  # holds it, so that only kills end it
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = ("main_serve", "--database", folder, "--port", port, "--uploads", tmp_path / "up",
             "--rate", 10_000)  # fmt: skip
    service, indexing = command(log, *serve), command(log, *index)
    address = f"http://127.0.0.1:{port}"
    images = [(tmp_path / f"1_{photo}.png").read_bytes() for photo in range(2)]
    writer = Writer(address, images)
    rng = random.Random(1)
    try:
        ready(address)
        writer.start()
        kills = ["service"] * 6 + ["database"] * 12 + ["index"] * 12
        for what in rng.sample(kills, len(kills)):
            time.sleep(rng.uniform(0.1, 1.0))
            if what == "service":
                service.kill()
                service.join()
                service = command(log, *serve)
            elif what == "database":
                stop_at_once(folder, signal.SIGKILL)
            else:
                table.write_text("\n".join(rng.sample(lines, len(lines))))
                os.utime(tmp_path / f"{rng.randrange(40)}_0.png", None)
                indexing.kill()
                indexing.join()
                indexing = command(log, *index)
            ready(address)
            before = writer.writes
            while writer.writes < before + 3:
                time.sleep(0.05)
        writer.stopped.set()
        writer.join(40)
        assert writer.writes >= 90
        assert ended_well(indexing)
        assert ended_well(command(log, *index))
        store = Store(str(folder), connections=2)
        check(store, writer, 2)
        assert {f"p{n}" for n in range(40)} <= store.product_ids()
        store.close()
    finally:
        writer.stopped.set()
        for process in (service, indexing):
            process.kill()
            process.join()


def ready(address: str) -> None:
    until(lambda: httpx.get(f"{address}/healthz", timeout=5).status_code == 200, 180)
