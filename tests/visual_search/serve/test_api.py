"""The service by HTTP: what it answers, what it refuses, and that nothing leaks."""

from __future__ import annotations

import asyncio
import io
import json
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.commands import stopped
from tests.conftest import draw_product
from tests.hostile import CONTENTS
from tests.visual_search.serve.conftest import make_service
from visual_search import main_serve
from visual_search.serve.api import create_app
from visual_search.serve.calibration import Calibration
from visual_search.serve.guard import Limits
from visual_search.serve.service import Service, _thumbnail
from visual_search.serve.store import Store

KEY = "a key of sixteen or more"
WRITER = {"Authorization": f"Bearer {KEY}"}


def client_of(service: Service, **options: Any) -> TestClient:
    limits = Limits(**{"key": KEY, "rate": 1e6, "burst": 10**6, **options})
    return TestClient(create_app(service, limits), raise_server_exceptions=False)


@pytest.fixture
def client(service: Service) -> TestClient:
    return client_of(service)


@pytest.fixture
def writer(address: str, tiny_export: Path, shop: Path, tmp_path: Path) -> Iterator[TestClient]:
    """A service whose products may change."""
    made = make_service(address, [tiny_export], shop, tmp_path / "uploads")
    yield client_of(made)
    made.close()
    made.store.close()


def png(product: int, photo: int) -> bytes:
    buffer = io.BytesIO()
    draw_product(product, photo).save(buffer, "PNG")
    return buffer.getvalue()


def search(client: TestClient, image: bytes | None = None, **form: Any) -> Any:
    files = {"image": ("photo.png", image)} if image is not None else None
    done = client.post("/search", data=form, files=files)
    assert done.status_code == 200, done.text
    return done.json()


def test_an_indexed_image_finds_its_product(client: TestClient) -> None:
    answer = search(client, png(3, 0), k=5)
    assert len(answer["hits"]) == 5
    first = answer["hits"][0]
    assert first["score"] == pytest.approx(1, abs=2e-3)
    assert first["product"] == {
        "id": "p3",
        "title": "Shape 3 <b>&",
        "category": "square",
        "price": 30.0,
        "in_stock": False,
        "attributes": {"colour": 3},
    }
    assert len({hit["product"]["id"] for hit in answer["hits"]}) == 5
    boxed = search(client, png(3, 1), box="2,2,60,60", k=1)
    assert boxed["hits"][0]["score"] == pytest.approx(1, abs=2e-3)


def test_more_like_an_image_finds_itself_first_and_images_by_themselves(client: TestClient) -> None:
    image = search(client, png(5, 0))["hits"][0]["image"]
    answer = search(client, like=image, per="image", k=24)
    assert answer["hits"][0]["image"] == image
    assert len({hit["image"] for hit in answer["hits"]}) == 24


@pytest.mark.parametrize(
    ("form", "kept"),
    [
        ({"category": "round"}, lambda n: n % 2 == 0),
        ({"category": ["round", "square"], "price_min": 30, "price_max": 80}, range(3, 9)),
        ({"in_stock": "true"}, lambda n: n % 3 > 0),
        ({"attributes": '{"colour": 2}'}, lambda n: n % 4 == 2),
        ({"category": "none such"}, ()),
        ({"category": "", "price_min": "", "attributes": "", "in_stock": ""}, range(12)),
    ],
    ids=["category", "price", "in_stock", "attributes", "nothing", "empty"],
)
def test_only_what_passes_the_filters_is_found(
    client: TestClient, form: dict[str, Any], kept: Any
) -> None:
    passes = kept if callable(kept) else kept.__contains__
    hits = search(client, png(1, 5), k=50, **form)["hits"]
    assert {hit["product"]["id"] for hit in hits} == {f"p{n}" for n in range(12) if passes(n)}


def test_a_product_is_put_found_changed_and_deleted(writer: TestClient) -> None:
    facts = {"product": json.dumps({"title": "Нож", "price": 5}), "boxes": "[[0, 0, 64, 64]]"}
    path = "/products/new/with a slash"
    images = {"images": ("a.png", png(40, 0))}
    assert writer.put(path, data=facts, files=images, headers=WRITER).status_code == 204
    first = search(writer, png(40, 0))["hits"][0]
    assert (first["product"]["id"], first["product"]["title"]) == ("new/with a slash", "Нож")
    assert first["score"] > 0.99
    only_facts = {"product": '{"title": "Ложка"}'}
    assert writer.put(path, data=only_facts, headers=WRITER).status_code == 204
    told = writer.get(path).json()
    assert (told["title"], told["price"], len(told["images"])) == ("Ложка", None, 1)
    shown = writer.get(f"/images/{told['images'][0]}")
    assert Image.open(io.BytesIO(shown.content)).size == (64, 64)
    assert writer.delete(path, headers=WRITER).status_code == 204
    assert writer.get(path).status_code == 404
    assert writer.delete(path, headers=WRITER).status_code == 404
    assert writer.get(f"/images/{told['images'][0]}").status_code == 404


def test_a_damaged_image_leaves_the_product_as_it_was(writer: TestClient) -> None:
    before = writer.get("/products/p1").json()
    files = [("images", ("a.png", png(40, 0))), ("images", ("b.png", b"no image"))]
    done = writer.put("/products/p1", data={"product": "{}"}, files=files, headers=WRITER)
    assert done.status_code == 422
    assert writer.get("/products/p1").json() == before


def test_a_picture_is_decoded_once_as_it_was_when_it_was_indexed(
    writer: TestClient, store: Store
) -> None:
    (first, _) = writer.get("/products/p1").json()["images"]
    shown = writer.get(f"/images/{first}?size=40").content
    before = _thumbnail.cache_info()
    assert writer.get(f"/images/{first}?size=40").content == shown
    after = _thumbnail.cache_info()
    assert (after.hits, after.misses) == (before.hits + 1, before.misses)
    assert Image.open(io.BytesIO(shown)).size == (40, 40)
    # Of another image, another picture; of none, none.
    with store.connection() as connection:
        connection.execute("UPDATE images SET fingerprint = 'changed' WHERE id = %s", (first,))
        connection.execute("UPDATE images SET path = '/none' WHERE id = %s", (first + 1,))
    writer.get(f"/images/{first}?size=40")
    assert _thumbnail.cache_info().misses == after.misses + 1
    assert writer.get(f"/images/{first + 1}").status_code == 404


def test_a_lead_is_over_another_product(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is counted, and nobody's is where filters leave one product."""
    lead = Calibration((0, 1), ([0.0, 1.0], [0.0, 1.0]), ([0.0, 1.0], [0.0, 1.0]), 0.0, 100)
    (model,) = service.models.values()
    monkeypatch.setattr(service, "models", {model.id: replace(model, calibration=lead)})
    client, shown = client_of(service), png(3, 0)
    first, second = search(client, shown, k=2)["hits"]
    for form in ({}, {"k": 1}, {"per": "image", "k": 1}, {"per": "image", "k": 30}):
        said = search(client, shown, **form)["probability"]
        assert said == pytest.approx(first["score"] - second["score"], abs=2e-4)
    assert search(client, shown, price_min=110)["probability"] == 0


def test_clicks_belong_to_a_query_and_a_product(client: TestClient, service: Service) -> None:
    query = search(client, png(2, 0))["query"]
    told = {"query": query, "product": "p2"}
    assert client.post("/clicks", data=told).status_code == 204
    assert client.post("/clicks", data={**told, "product": "none"}).status_code == 404
    said = client.post("/clicks", data={**told, "query": "x"}).json()["error"]
    assert said.startswith("query: String should match")
    with service.store.connection() as connection:
        row = connection.execute("SELECT product FROM clicks WHERE query = %s", (query,)).fetchone()
        kept = connection.execute("SELECT image FROM queries WHERE id = %s", (query,)).fetchone()
    assert row == ("p2",)
    assert kept == (None,)  # images are kept where that is asked for
    assert list(service.uploads.rglob("*")) == []


CROSS_SITE = {"headers": {"sec-fetch-site": "cross-site"}}
CHUNKS = {
    "content": (bytes(1000) for _ in range(100)),
    "headers": {"content-type": "multipart/form-data; boundary=x"},
}
HERE = {"hosts": ("localhost",)}


@pytest.mark.parametrize(
    ("limits", "method", "path", "sent", "status"),
    [
        ({}, "DELETE", "/products/p1", {}, 401),
        ({}, "PUT", "/products/p1", {"data": {"product": "{}"}}, 401),
        ({}, "DELETE", "/products/p1", {"headers": {"Authorization": "Bearer wrong"}}, 401),
        ({}, "DELETE", "/products/p1", {"headers": {b"Authorization": "ключ".encode()}}, 401),
        ({"key": None}, "DELETE", "/products/p1", {"headers": WRITER}, 403),
        ({}, "POST", "/search", {"data": {"like": 1}, **CROSS_SITE}, 403),
        ({}, "GET", "/", CROSS_SITE, 200),
        (HERE, "GET", "/about", {"headers": {"host": "localhost:8000"}}, 200),
        (HERE, "GET", "/about", {"headers": {"host": "evil.example:8000"}}, 421),
        ({"upload_bytes": 1000}, "POST", "/search", {"files": {"image": bytes(5000)}}, 413),
        ({}, "POST", "/search", CHUNKS, 411),
    ],
)
def test_who_may_ask_for_what(
    service: Service,
    limits: dict[str, Any],
    method: str,
    path: str,
    sent: dict[str, Any],
    status: int,
) -> None:
    done = client_of(service, **limits).request(method, path, **sent)
    assert done.status_code == status
    if status != 200:
        refused(done)
    assert "p1" in service.store.product_ids()


BESIDE_AN_IMAGE: list[dict[str, Any]] = [
    *({"box": box} for box in ("1,2,3", "a,b,c,d", "0,0,0,9", "1,2,3,4;--", "9" * 40, "1,2,3,4,5")),
    *({"k": k} for k in (0, -1, 101, "many", 1e9, "NaN")),
    *({"weight": weight} for weight in (-0.1, 1.1, "nan", "inf")),
    *({"price_min": price} for price in (-1, "inf", "nan", "' OR 1=1")),
    *({"in_stock": value} for value in ("perhaps", "2")),
    *({"per": value} for value in ("pixel", "images")),
    *({"model": value} for value in (-1, 77, "current")),
    *({"attributes": value} for value in ("[1]", "{", "[" * 1500, '{"a": "\\u0000"}', "x" * 3000)),
    {"price_mx": 3},
    {"category": "a\0b"},
    {"like": 1},
]
ALONE: list[dict[str, Any]] = [
    {},
    {"like": 1, "text": "words"},
    {"like": 1, "box": "0,0,9,9"},
    *({"like": like} for like in (-1, 2**63, "x", 999_999, "1; DROP TABLE images")),
    *({"text": text} for text in ("words for a model of images", "a\0b", "  ", "x" * 501)),
]
PRODUCTS: list[tuple[str, dict[str, str]]] = [
    ("x", {"product": "{"}),
    ("x", {"product": '{"price": 1e999}'}),
    ("x", {"product": '{"title": "\\ud800"}'}),
    ("x", {"product": '{"attributes": {"a": "\\u0000"}}'}),
    ("x", {"product": '{"unknown": 1}'}),
    ("x", {"product": "[]"}),
    ("x", {"product": "{}"}),  # new, and without an image
    ("x", {"product": "{}", "boxes": "[[1, 2, 3, 0]]"}),
    ("x", {"product": "{}", "boxes": "[null, null]"}),
    ("p1", {}),  # there, and nothing is told of it
    ("y" * 201, {"product": "{}"}),
    ("%00", {"product": "{}"}),
]
REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    *(
        ("POST", "/search", {"data": form, "files": {"image": ("photo.png", png(1, 1))}})
        for form in BESIDE_AN_IMAGE
    ),
    *(("POST", "/search", {"data": form}) for form in ALONE),
    *(
        ("PUT", f"/products/{product}", {"data": form, "headers": WRITER})
        for product, form in PRODUCTS
    ),
    *(("GET", f"/images/{image}", {}) for image in ("../../etc/passwd", -1, "9" * 20)),
    ("GET", "/images/1?size=99999", {}),
    ("GET", "/products/%00", {}),
    ("GET", "/none", {}),
    ("PATCH", "/products/p1", {}),
    ("POST", "/clicks", {}),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda one: f"{one[0]} {one[1]} {one[2]}"[:60])
def test_hostile_requests_get_a_sentence(
    client: TestClient, request_: tuple[str, str, dict[str, Any]]
) -> None:
    method, path, sent = request_
    refused(client.request(method, path, **sent))


@pytest.mark.parametrize("name", CONTENTS)
def test_hostile_images_get_a_sentence(client: TestClient, name: str) -> None:
    data = CONTENTS[name][0]()
    files = {"image": (f"../../etc/{name}", data)}
    refused(client.post("/search", files=files))
    refused(client.post("/box", files=files))
    files = {"images": (name, data)}
    refused(client.put("/products/x", data={"product": "{}"}, files=files, headers=WRITER))
    assert client.get("/products/x").status_code == 404


def refused(done: Any) -> None:
    """A 4xx of one sentence that names nothing of the machine."""
    assert 400 <= done.status_code < 500, done.text
    sentence = done.json()["error"]
    assert sentence
    assert "\n" not in sentence
    assert len(sentence) < 300
    assert not re.search(r"/tmp|/work|/home|/etc|Traceback|psycopg|SELECT", sentence)


def test_too_many_requests_are_put_off_by_client(service: Service) -> None:
    client = client_of(service, rate=0.001, burst=2)
    statuses = [client.post("/search", data={"k": 0}).status_code for _ in range(4)]
    assert statuses == [422, 422, 429, 429]
    assert client.get("/healthz").status_code == 200
    done = client.post("/search")
    assert done.headers["retry-after"] == "1"


def test_a_port_that_is_taken_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = stopped(main_serve.main, "--database", "none", "--port", port)
    assert f"127.0.0.1:{port} cannot be served: Address already in use" in said


def test_a_path_stays_in_its_line_of_the_log(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "visual_search.serve"):
        client.get("/a%0d%0aGET /b 200")
    assert "GET /a%0d%0aGET%20/b%20200 404" in caplog.messages[-1]


def test_what_takes_too_long_ends(service: Service) -> None:
    client = client_of(service, seconds=0.2)

    async def hang() -> None:
        await asyncio.sleep(60)

    client.app.add_api_route("/hang", hang)  # type: ignore[attr-defined]
    began = time.monotonic()
    done = client.get("/hang")
    assert (done.status_code, done.headers["retry-after"]) == (503, "1")
    assert time.monotonic() - began < 5


def test_a_database_that_is_away_is_told(
    client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise psycopg.OperationalError("connection to /tmp/x failed")

    monkeypatch.setattr(service.store, "search", away)
    done = client.post("/search", files={"image": ("a.png", png(1, 1))})
    assert (done.status_code, done.headers["retry-after"]) == (503, "2")
    assert "/tmp" not in done.text


def test_every_answer_says_what_a_browser_may_do(client: TestClient) -> None:
    for path in ("/", "/docs", "/about", "/none", "/images/1"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
    assert "sha256-" in client.get("/").headers["content-security-policy"]


def test_health_metrics_and_documentation(client: TestClient) -> None:
    assert client.get("/healthz").json()["status"] == "ok"
    metrics = ('queries_total{kind="image"}', 'stage_seconds_count{stage="search"}')

    def counted() -> list[float]:
        lines = [line.rpartition(" ") for line in client.get("/metrics").text.splitlines()]
        found = {name: value for name, _, value in lines}
        return [float(found.get(name, 0)) for name in metrics]

    before = counted()
    search(client, png(1, 1))
    assert counted() == [value + 1 for value in before]
    page = client.get("/docs").text
    for words in ("POST /search", "PUT /products/{product}", "price_min"):
        assert words in page


def test_texts_weigh_beside_the_image(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    class Words:
        """Stands in for a text tower: every text is one direction."""

        def embed_texts(self, texts: list[str]) -> Any:
            import torch

            rows = torch.zeros(len(texts), service.current.dimension)
            rows[:, 0] = 1
            return rows

    (thread,) = service._threads.values()
    monkeypatch.setattr(thread.model, "encoder", Words())
    client = client_of(service)
    asked: list[np.ndarray] = []
    found = service.store.search

    def keep(model: Any, vector: np.ndarray, *rest: Any, **options: Any) -> Any:
        asked.append(vector)
        return found(model, vector, *rest, **options)

    monkeypatch.setattr(service.store, "search", keep)
    search(client, text="красный стул")
    search(client, png(1, 1))
    search(client, png(1, 1), text="красный стул", weight=0.25)
    words, image, both = asked
    mixed = 0.25 * words + 0.75 * image
    assert np.allclose(both, mixed / np.linalg.norm(mixed), atol=1e-5)


def test_an_answer_does_not_wait_for_the_receipt_of_its_first_packet() -> None:
    with (
        main_serve.listen("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
