"""The HTTP side of the service: routes, their parameters, and errors of one sentence."""

from __future__ import annotations

import base64
import hashlib
import pathlib
import re
import tempfile
from typing import Annotated, Any, Literal

import psycopg
from fastapi import Depends, FastAPI, File, Form, Path, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from psycopg_pool import PoolTimeout
from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException

from visual_search.common.page import Section, write_page
from visual_search.data.images import Box
from visual_search.data.tables import as_box
from visual_search.serve.gallery import (
    Attributes,
    BoxNumbers,
    Category,
    ProductFacts,
    ProductId,
    Text,
    what_is_wrong,
)
from visual_search.serve.guard import Guard, Limits, Refusal, told
from visual_search.serve.query_log import log_click
from visual_search.serve.records import Filters
from visual_search.serve.service import Asked, Service

PAGE = pathlib.Path(__file__).with_name("page.html")
MOST_HITS = 100
SIDES = (160, 320, 640, 1280)
AWAY = (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout)

BOX_WORDS = "x,y,width,height in pixels of the stored image; without it the whole image"
BOX_PATTERN = r"^-?\d{1,6},-?\d{1,6},[1-9]\d{0,5},[1-9]\d{0,5}$"
QUERY_PATTERN = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
Price = Annotated[float | None, Form(ge=0, allow_inf_nan=False)]


def create_app(
    service: Service,
    *,
    key: str | None = None,
    hosts: tuple[str, ...] = (),
    limits: Limits | None = None,
) -> FastAPI:
    """The application, guarded.

    Args:
        service: what answers.
        key: that changes want; without one there are none.
        hosts: names by which the service may be asked for; empty: any.
        limits: what a client may take.
    """
    app = FastAPI(title="Visual product search", docs_url=None, redoc_url=None)
    registry = CollectorRegistry()
    for metric in service.metrics:
        registry.register(metric)
    app.add_middleware(Guard, limits=limits or Limits(), key=key, hosts=hosts, registry=registry)
    _handle_errors(app)
    _add_search(app, service)
    _add_products(app, service)
    _add_pages(app, service, registry)
    return app


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(HTTPException)
    def refused(_: Request, error: HTTPException) -> Response:
        return told(error)

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return told(Refusal(422, f"{first['loc'][-1]}: {first['msg']}"))

    def failed(_: Request, error: Exception) -> Response:
        if isinstance(error, psycopg.DataError):
            return told(Refusal(422, "a value cannot be stored or compared: write another"))
        return told(Refusal(503, "the database does not answer: try again", 2))

    for kind in (psycopg.DataError, *AWAY):
        app.add_exception_handler(kind, failed)


def _from_json(kind: Any, name: str, text: str) -> Any:
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        raise Refusal(422, f"{name}: {what_is_wrong(error)}") from error


def _writable(service: Service) -> Any:
    def check() -> None:
        if service.store.database.read_only:
            raise Refusal(503, "this service reads from a replica: change the primary")

    return Depends(check)


def _add_search(app: FastAPI, service: Service) -> None:
    @app.post("/search")
    def search(
        image: Annotated[UploadFile | None, File(description="JPEG, PNG, WebP, …")] = None,
        box: Annotated[str | None, Form(pattern=BOX_PATTERN, description=BOX_WORDS)] = None,
        text: Annotated[str, Form(max_length=500), Text] = "",
        weight: Annotated[float, Form(ge=0, le=1, description="of the text beside an image")] = 0.5,
        like: Annotated[int | None, Form(ge=0, lt=1 << 63, description="an indexed image")] = None,
        categories: Annotated[list[Category] | None, Form(alias="category")] = None,
        price_min: Price = None,
        price_max: Price = None,
        in_stock: Annotated[bool | None, Form()] = None,
        attributes: Annotated[str, Form(max_length=2000, description="JSON"), Text] = "{}",
        k: Annotated[int, Form(ge=1, le=MOST_HITS)] = 20,
        per: Annotated[Literal["product", "image"], Form()] = "product",
        model: Annotated[int | None, Form(ge=0, lt=1 << 31)] = None,
    ) -> dict[str, Any]:
        """Search by an image (with a box), a text, both, or an indexed image; best hits first.

        `probability`: that the first hit is the product that was asked for, where the index is
        calibrated. `query` names the search in `POST /clicks`.
        """
        contained = _from_json(Attributes, "attributes", attributes or "{}")
        return service.search(
            Asked(
                image=image.file.read() if image else None,
                box=as_box([int(side) for side in box.split(",")]) if box else None,
                text=text.strip() or None,
                weight=weight,
                like=like,
                filters=Filters(tuple(categories or ()), price_min, price_max, in_stock, contained),
                count=k,
                by_product=per == "product",
                model=model,
            )
        )

    @app.post("/box")
    def box_of(image: Annotated[UploadFile, File()]) -> dict[str, Box | None]:
        """Where the product of an image is likely to be, `x, y, width, height`; a proposal."""
        return {"box": service.propose_box(image.file.read())}

    @app.post("/clicks", status_code=204, dependencies=[_writable(service)])
    def click(
        query: Annotated[str, Form(pattern=QUERY_PATTERN)], product: Annotated[ProductId, Form()]
    ) -> None:
        """Tell that a product was chosen among the hits of a query."""
        if not log_click(service.store.database, query, product):
            raise Refusal(404, "there is no such query or product")


def _add_products(app: FastAPI, service: Service) -> None:
    path, writable = "/products/{product:path}", [_writable(service)]

    @app.get(path)
    def get(product: ProductId) -> dict[str, Any]:
        """A product, and the ids of its images."""
        found = service.store.product(product)
        if found is None:
            raise Refusal(404, "there is no such product")
        return found[0].facts() | {"images": found[1]}

    @app.put(path, status_code=204, dependencies=writable)
    def put(
        product: ProductId,
        facts: Annotated[
            str, Form(alias="product", description="JSON: title, category, price, in_stock, …")
        ] = "{}",
        images: Annotated[list[UploadFile], File(description="up to 50")] = [],  # noqa: B006
        boxes: Annotated[
            str, Form(description="JSON: [x, y, width, height] or null for each image")
        ] = "[]",
    ) -> None:
        """Add or replace a product; without images, change what is told of it. Wants the key."""
        given = _from_json(ProductFacts, "product", facts)
        regions = _from_json(list[BoxNumbers | None], "boxes", boxes) or [None] * len(images)
        if len(images) > 50 or len(regions) != len(images):
            raise Refusal(422, "send up to 50 images, and a box or null for each, or no boxes")
        pairs = [(one.file.read(), box) for one, box in zip(images, regions, strict=True)]
        service.put_product(product, given, pairs)

    @app.delete(path, status_code=204, dependencies=writable)
    def delete(product: ProductId) -> None:
        """Remove a product with its images. Wants the key."""
        if not service.store.delete([product]):
            raise Refusal(404, "there is no such product")

    @app.get("/images/{image}", response_class=Response)
    def picture(
        image: Annotated[int, Path(ge=0, lt=1 << 63)],
        size: Annotated[int, Query(ge=1, le=SIDES[-1])] = 320,
    ) -> Response:
        """An indexed image as JPEG, about `size` pixels at its longest."""
        data = service.thumbnail(image, next(side for side in SIDES if side >= size))
        if data is None:
            raise Refusal(404, "there is no such image")
        return Response(data, 200, {"cache-control": "public, max-age=3600"}, "image/jpeg")


def _add_pages(app: FastAPI, service: Service, registry: CollectorRegistry) -> None:
    page = _html(PAGE.read_text("utf-8"))

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def index() -> Response:
        return page

    @app.get("/about")
    def about() -> dict[str, Any]:
        """Models, categories, prices, and how many products and images there are."""
        return service.about()

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    def docs() -> Response:
        return _html(_documentation(app.openapi()))

    @app.get("/healthz")
    def health() -> dict[str, Any]:
        """Whether the database answers, and which model does."""
        service.store.database.look_up_role()
        read_only = service.store.database.read_only
        return {"status": "ok", "model": service.current.name, "read_only": read_only}

    @app.get("/metrics", response_class=Response)
    def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(registry), 200, media_type=CONTENT_TYPE_LATEST)


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
