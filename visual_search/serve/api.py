"""The HTTP side of the service: routes, their parameters, and errors of one sentence."""

from __future__ import annotations

import base64
import functools
import hashlib
import pathlib
import re
import tempfile
from typing import Annotated, Any

import psycopg
from fastapi import FastAPI, File, Form, Path, Query, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from psycopg_pool import PoolTimeout
from pydantic import BaseModel, Field, Json
from starlette.exceptions import HTTPException

from visual_search.common.page import Section, write_page
from visual_search.data.images import Box
from visual_search.serve.guard import Guard, Limits, Refusal, told
from visual_search.serve.records import BoxNumbers, Facts, ProductId, StaleModelError, what_is_wrong
from visual_search.serve.service import Asked, Service

PAGE = pathlib.Path(__file__).with_name("page.html")
QUERY_PATTERN = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
AWAY = Refusal(503, "the database does not answer: try again", 2)
REFUSALS: dict[type[Exception], HTTPException] = {
    psycopg.DataError: Refusal(422, "a value cannot be stored or compared: write another"),
    psycopg.errors.ReadOnlySqlTransaction: Refusal(
        503, "this service reads from a replica: change the primary"
    ),
    StaleModelError: Refusal(503, "the index is changing its model: try again", 5),
    psycopg.OperationalError: AWAY,
    psycopg.InterfaceError: AWAY,
    PoolTimeout: AWAY,
}
MULTIPART = Form(media_type="multipart/form-data")


class Put(BaseModel, extra="forbid", arbitrary_types_allowed=True):
    """A product as it is put."""

    product: Json[Facts] = Field(
        default=Facts(), description="JSON: title, category, price, in_stock, attributes"
    )
    images: list[UploadFile] = Field(default=[], max_length=50, description="up to 50")
    boxes: Json[list[BoxNumbers | None]] = Field(
        default=[], description="JSON: [x, y, width, height] or null for each image"
    )


def create_app(service: Service, limits: Limits | None = None) -> FastAPI:
    """The application, guarded."""
    app = FastAPI(title="Visual product search", docs_url=None, redoc_url=None)
    app.add_middleware(Guard, limits=limits or Limits())
    for kind, refusal in REFUSALS.items():
        app.add_exception_handler(kind, lambda *_, refusal=refusal: told(refusal))
    app.add_exception_handler(HTTPException, lambda _, error: told(error))
    app.add_exception_handler(
        RequestValidationError, lambda _, error: told(Refusal(422, what_is_wrong(error)))
    )
    _add_search(app, service)
    _add_products(app, service)
    _add_pages(app, service)
    return app


def _add_search(app: FastAPI, service: Service) -> None:
    @app.post("/search")
    def search(asked: Annotated[Asked, MULTIPART]) -> dict[str, Any]:
        """Search by an image (with a box), a text, both, or an indexed image; best hits first.

        `probability`: that the first hit is the product that was asked for, where the index is
        calibrated. `query` names the search in `POST /clicks`.
        """
        return service.search(asked)

    @app.post("/box")
    def box_of(image: Annotated[UploadFile, File()]) -> dict[str, Box | None]:
        """Where the product of an image is likely to be, `x, y, width, height`; a proposal."""
        return {"box": service.propose_box(image.file.read())}

    @app.post("/clicks", status_code=204)
    def click(
        query: Annotated[str, Form(pattern=QUERY_PATTERN)], product: Annotated[ProductId, Form()]
    ) -> None:
        """Tell that a product was chosen among the hits of a query."""
        if not service.store.log_click(query, product):
            raise Refusal(404, "there is no such query or product")


def _add_products(app: FastAPI, service: Service) -> None:
    path = "/products/{product:path}"

    @app.get(path)
    def get(product: ProductId) -> dict[str, Any]:
        """A product, and the ids of its images."""
        for found in service.store.products([product]).values():
            shown = [image.id for image in found.images if image.problem is None]
            return found.facts() | {"images": shown}
        raise Refusal(404, "there is no such product")

    @app.put(path, status_code=204)
    def put(product: ProductId, given: Annotated[Put, MULTIPART]) -> None:
        """Add or replace a product; without images, change what is told of it. Wants the key."""
        if not given.model_fields_set & {"product", "images"}:
            raise Refusal(422, "send product, images or both, as multipart/form-data")
        boxes = given.boxes or [None] * len(given.images)
        if len(boxes) != len(given.images):
            raise Refusal(422, "send a box or null for each image, or no boxes")
        files = [image.file.read() for image in given.images]
        service.put_product(product, given.product, list(zip(files, boxes, strict=True)))

    @app.delete(path, status_code=204)
    def delete(product: ProductId) -> None:
        """Remove a product with its images. Wants the key."""
        if not service.store.delete([product]):
            raise Refusal(404, "there is no such product")

    @app.get("/images/{image}", response_class=Response)
    def picture(
        image: Annotated[int, Path(ge=0, lt=1 << 63)],
        size: Annotated[int, Query(ge=1, le=1280)] = 320,
    ) -> Response:
        """An indexed image as JPEG, no side longer than `size` pixels."""
        data = service.thumbnail(image, size)
        if data is None:
            raise Refusal(404, "there is no such image")
        return Response(data, 200, {"cache-control": "public, max-age=3600"}, "image/jpeg")


def _add_pages(app: FastAPI, service: Service) -> None:
    page = _html(PAGE.read_text("utf-8"))
    documentation = functools.cache(lambda: _html(_documentation(app.openapi())))

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def index() -> Response:
        return page

    @app.get("/about")
    def about() -> dict[str, Any]:
        """Models, categories, prices, and how many products and images there are."""
        return service.about()

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    def docs() -> Response:
        return documentation()

    @app.get("/healthz")
    def health() -> dict[str, Any]:
        """Whether the database answers, and which model does."""
        service.store.look_up_role()
        return {
            "status": "ok",
            "model": service.current.name,
            "read_only": service.store.read_only,
        }

    @app.get("/metrics", response_class=Response)
    def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(), 200, media_type=CONTENT_TYPE_LATEST)


def _html(text: str) -> Response:
    """A page that may run and style by its own blocks alone, and speak with this service alone."""

    def hashes(tag: str) -> str:
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digests = (hashlib.sha256(block.encode()).digest() for block in blocks)
        return " ".join(f"'sha256-{base64.b64encode(d).decode()}'" for d in digests) or "'none'"

    policy = (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; "
        "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return HTMLResponse(text, headers={"content-security-policy": policy})


def _documentation(schema: dict[str, Any]) -> str:
    """The OpenAPI description as a page that opens offline."""
    sections = [Section(notes=["The same for programs, with the limits of each: /openapi.json"])]
    for path, methods in schema["paths"].items():
        for method, about in methods.items():
            rows = [["parameter", "in", "meaning"]]
            for one in about.get("parameters", ()):
                rows.append([one["name"], one["in"], one.get("description", "")])
            for content in about.get("requestBody", {}).get("content", {}).values():
                named = content["schema"]["$ref"].rsplit("/", 1)[-1]
                for name, one in schema["components"]["schemas"][named]["properties"].items():
                    rows.append([name, "form", one.get("description", "")])
            notes = [" ".join(about.get("description", "").split())]
            tables = {"": rows} if len(rows) > 1 else {}
            sections.append(Section(f"{method.upper()} {path}", notes, tables=tables))
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "docs.html")
        write_page(file, "Visual product search: the API", sections)
        return file.read_text("utf-8")
