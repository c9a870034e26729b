"""The HTTP side of the service: routes, their parameters, and errors of one sentence."""

from __future__ import annotations

import base64
import hashlib
import re
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import psycopg
from fastapi import FastAPI, File, Form, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from psycopg_pool import PoolTimeout
from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException

from visual_search.common.page import Section, write_page
from visual_search.data.images import Box
from visual_search.serve.gallery import (
    BoxNumbers,
    Category,
    ProductFacts,
    ProductId,
    Text,
    what_is_wrong,
)
from visual_search.serve.guard import Guard, Limits, Refusal
from visual_search.serve.query_log import log_click
from visual_search.serve.query_model import BusyError
from visual_search.serve.records import Filters
from visual_search.serve.service import Asked, Service, parsed_attributes

PAGE = Path(__file__).with_name("page.html")
MOST_HITS = 100
SIDES = (160, 320, 640, 1280)

BOX_WORDS = "x,y,width,height in pixels of the stored image; without it the whole image"
BoxText = Annotated[
    str | None,
    Form(pattern=r"^-?\d{1,6},-?\d{1,6},\d{1,6},\d{1,6}$", description=BOX_WORDS),
]
Price = Annotated[float | None, Form(ge=0, allow_inf_nan=False)]


def create_app(
    service: Service,
    *,
    key: str | None = None,
    hosts: tuple[str, ...] = (),
    limits: Limits | None = None,
) -> Guard:
    """The application, guarded.

    Args:
        service: what answers.
        key: that changes want; without one there are none.
        hosts: names by which the service may be asked for; empty: any.
        limits: what a client may take.
    """
    app = FastAPI(title="Visual product search", docs_url=None, redoc_url=None)
    _handle_errors(app)
    _add_search(app, service)
    _add_products(app, service)
    _add_pages(app, service)
    return Guard(app, limits or Limits(), key=key, hosts=hosts, registry=service.registry)


def _handle_errors(app: FastAPI) -> None:
    def answer(status: int, sentence: str, retry: int = 0) -> Response:
        headers = {"retry-after": str(retry)} if retry else None
        return JSONResponse({"error": sentence}, status, headers)

    @app.exception_handler(Refusal)
    def refused(_: Request, error: Refusal) -> Response:
        return answer(error.status, error.sentence, error.retry)

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return answer(422, f"{first['loc'][-1]}: {first['msg']}")

    @app.exception_handler(HTTPException)
    def http(_: Request, error: HTTPException) -> Response:
        return answer(error.status_code, str(error.detail))

    @app.exception_handler(BusyError)
    def busy(_: Request, error: BusyError) -> Response:
        return answer(503, "too many queries wait: try again", 1)

    @app.exception_handler(psycopg.DataError)
    def data(_: Request, error: psycopg.DataError) -> Response:
        return answer(422, "a value cannot be stored or compared: write another")

    for kind in (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout):

        @app.exception_handler(kind)
        def away(_: Request, error: Exception) -> Response:
            return answer(503, "the database does not answer: try again", 2)


def _read(upload: UploadFile | None) -> bytes | None:
    return upload.file.read() if upload is not None else None


def _box(text: str | None) -> Box | None:
    if text is None:
        return None
    x, y, width, height = map(int, text.split(","))
    if not width or not height:
        raise Refusal(422, "box: width and height must be above 0")
    return x, y, width, height


def _add_search(app: FastAPI, service: Service) -> None:
    @app.post("/search")
    def search(
        image: Annotated[UploadFile | None, File(description="JPEG, PNG, WebP, …")] = None,
        box: BoxText = None,
        text: Annotated[str | None, Form(max_length=500), Text] = None,
        weight: Annotated[float, Form(ge=0, le=1, description="of the text beside an image")] = 0.5,
        like: Annotated[int | None, Form(ge=0, lt=1 << 63, description="an indexed image")] = None,
        categories: Annotated[list[Category] | None, Form(alias="category")] = None,
        price_min: Price = None,
        price_max: Price = None,
        in_stock: Annotated[bool | None, Form()] = None,
        attributes: Annotated[str | None, Form(max_length=2000), Text] = None,
        k: Annotated[int, Form(ge=1, le=MOST_HITS)] = 20,
        per: Annotated[Literal["product", "image"], Form()] = "product",
        model: Annotated[int | None, Form(ge=0, lt=1 << 31)] = None,
    ) -> dict[str, Any]:
        """Search by an image (with a box), a text, both, or an indexed image; best hits first.

        `probability`: that the first hit is the product that was asked for, where the index is
        calibrated. `query` names the search in `POST /clicks`.
        """
        filters = Filters(
            tuple(categories or ()), price_min, price_max, in_stock, parsed_attributes(attributes)
        )
        return service.search(
            Asked(
                *(_read(image), _box(box), (text or "").strip() or None, weight, like),
                *(filters, k, per == "product", model),
            )
        )

    @app.post("/box")
    def box_of(image: Annotated[UploadFile, File()]) -> dict[str, Box | None]:
        """Where the product of an image is likely to be, `x, y, width, height`; a proposal."""
        return {"box": service.propose_box(image.file.read())}

    @app.post("/clicks", status_code=204)
    def click(
        query: Annotated[str, Form(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")],
        product: Annotated[ProductId, Form()],
    ) -> None:
        """Tell that a product was chosen among the hits of a query."""
        if service.store.database.read_only:
            raise Refusal(503, "this service only reads")
        if not log_click(service.store.database, query, product):
            raise Refusal(404, "there is no such query or product")


def _add_products(app: FastAPI, service: Service) -> None:
    def check_writable() -> None:
        if service.store.database.read_only:
            raise Refusal(503, "this service reads from a replica: change the primary")

    def check_id(product: str) -> str:
        try:
            return TypeAdapter(ProductId).validate_python(product)
        except ValidationError as error:
            raise Refusal(422, f"id: {what_is_wrong(error)}") from error

    @app.get("/products/{product:path}")
    def get(product: str) -> dict[str, Any]:
        """A product, and the ids of its images."""
        found = service.store.product(check_id(product))
        if found is None:
            raise Refusal(404, "there is no such product")
        facts, images = found
        return {**{k: v for k, v in vars(facts).items() if k != "images"}, "images": images}

    @app.put("/products/{product:path}", status_code=204)
    def put(
        product: str,
        facts: Annotated[
            str, Form(alias="product", description="JSON: title, category, price, in_stock, …")
        ] = "{}",
        images: Annotated[list[UploadFile] | None, File(description="up to 50")] = None,
        boxes: Annotated[
            str, Form(description="JSON: [x, y, width, height] or null for each image")
        ] = "[]",
    ) -> None:
        """Add or replace a product; without images, change what is told of it. Wants the key."""
        check_writable()
        product = check_id(product)
        try:
            told = ProductFacts.model_validate_json(facts)
            given = TypeAdapter(list[BoxNumbers | None]).validate_json(boxes)
        except ValidationError as error:
            raise Refusal(422, what_is_wrong(error)) from error
        sent = images or []
        if len(sent) > 50 or (given and len(given) != len(sent)):
            raise Refusal(422, "send up to 50 images, and a box or null for each, or no boxes")
        given = given or [None] * len(sent)
        pairs = [(one.file.read(), box) for one, box in zip(sent, given, strict=True)]
        service.put_product(product, told, pairs)

    @app.delete("/products/{product:path}", status_code=204)
    def delete(product: str) -> None:
        """Remove a product with its images. Wants the key."""
        check_writable()
        if not service.store.delete([check_id(product)]):
            raise Refusal(404, "there is no such product")

    @app.get("/images/{image}", response_class=Response)
    def picture(image: int, size: Annotated[int, Query(ge=1, le=SIDES[-1])] = 320) -> Response:
        """An indexed image as JPEG, about `size` pixels at its longest."""
        side = next(side for side in SIDES if side >= size)
        data = service.thumbnail(image, side) if 0 <= image < 1 << 63 else None
        if data is None:
            raise Refusal(404, "there is no such image")
        return Response(data, 200, {"cache-control": "public, max-age=3600"}, "image/jpeg")


def _add_pages(app: FastAPI, service: Service) -> None:
    page = PAGE.read_text("utf-8")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def index() -> Response:
        return _html(page)

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
        with service.store.database.connection() as connection:
            connection.execute("SELECT 1")
        return {
            "status": "ok",
            "model": service.current.name,
            "read_only": service.store.database.read_only,
        }

    @app.get("/metrics", response_class=Response)
    def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(service.registry), 200, media_type=CONTENT_TYPE_LATEST)


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
        for method, told in methods.items():
            rows = [["parameter", "in", "meaning"]]
            for one in told.get("parameters", ()):
                rows.append([one["name"], one["in"], one.get("description", "")])
            for content in told.get("requestBody", {}).get("content", {}).values():
                named = content["schema"]["$ref"].rsplit("/", 1)[-1]
                for name, one in schema["components"]["schemas"][named]["properties"].items():
                    rows.append([name, "form", one.get("description", "")])
            notes = [" ".join(told.get("description", "").split())]
            tables = {"": rows} if len(rows) > 1 else {}
            sections.append(Section(f"{method.upper()} {path}", notes, tables=tables))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "docs.html")
        write_page(file, "Visual product search: the API", sections)
        return file.read_text("utf-8")
