"""The page in a real browser: by mouse, by keys, at two widths, for people who cannot see it."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import draw_product
from tests.visual_search.serve.conftest import make_service, new_database
from visual_search.serve.api import create_app
from visual_search.serve.guard import Limits
from visual_search.serve.service import Service

api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


class Served:
    """A service on a port of this machine."""

    def __init__(self, service: Service) -> None:
        import uvicorn

        app: Any = create_app(service, Limits(rate=1e6, burst=10**6))
        config = uvicorn.Config(app, port=0, log_level="error", access_log=False)
        self.service, self._server = service, uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.address = f"http://127.0.0.1:{port}/"

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self.service.close()
        self.service.store.close()


@pytest.fixture(scope="module")
def served(
    server: str, text_run: Path, shop: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    uploads = tmp_path_factory.mktemp("uploads")
    made = Served(make_service(new_database(server), [text_run], shop, uploads))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield started
        started.close()


def opened(browser: Any, address: str) -> Any:
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("console", lambda line: line.type == "error" and page.faults.append(line.text))
    page.goto(address)
    page.locator("#about:not(:empty)").wait_for()
    return page


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    draw_product(3, 7, 200).save(path)
    return path


def settled(page: Any) -> list[str]:
    """The titles of the hits, once a search has ended."""
    page.locator("#status", has_text=re.compile("similar first|Nothing passes")).wait_for()
    return page.locator(".hit .title").all_inner_texts()


def show(page: Any, photo: Path) -> list[str]:
    page.set_input_files("#file", photo)
    page.wait_for_selector(".hit")
    return settled(page)


def changed(page: Any, act: Any) -> list[str]:
    """The titles after a search that an act starts."""
    with page.expect_response("**/search"):
        act()
    return settled(page)


def test_a_photo_a_box_a_filter_a_query_and_a_click(
    browser: Any, served: Served, photo: Path
) -> None:
    page = opened(browser, served.address)
    assert len(changed(page, lambda: page.click("#starts button >> nth=2"))) == 12
    titles = show(page, photo)
    assert len(titles) == 12
    assert "Shape 3 <b>&" in titles  # as it stands, not as HTML

    before = page.evaluate("box")
    frame = page.locator("#stage").bounding_box()
    page.mouse.move(frame["x"] + 20, frame["y"] + 20)

    def draw() -> None:
        page.mouse.down()
        page.mouse.move(frame["x"] + 90, frame["y"] + 100, steps=4)
        page.mouse.up()

    changed(page, draw)
    x, y, width, height = page.evaluate("box")
    assert (x, y, width, height) != tuple(before)
    scale = 200 / frame["width"]
    assert (x, y) == pytest.approx((20 * scale, 20 * scale), abs=2)
    assert (width, height) == pytest.approx((70 * scale, 80 * scale), abs=2)

    page.focus("#box")
    changed(page, lambda: page.keyboard.press("ArrowRight"))
    assert page.evaluate("box")[0] == pytest.approx(x + 4, abs=0.1)
    changed(page, lambda: page.keyboard.press("Shift+ArrowDown"))
    assert page.evaluate("box")[3] == pytest.approx(height + 4, abs=0.1)

    titles = changed(page, lambda: page.select_option("#category", "square"))
    assert len(titles) == 6
    titles = changed(page, lambda: page.fill("#price_max", "50"))
    assert sorted(titles) == ["Shape 1 <b>&", "Shape 3 <b>&", "Shape 5 <b>&"]
    assert len(changed(page, lambda: page.check("#in_stock"))) == 2

    both = changed(page, lambda: page.fill("#text", "красный стул"))
    assert len(both) == 2
    by_words = changed(page, lambda: page.click("#clear"))
    with page.expect_request("**/clicks") as asked:
        page.click(".hit >> nth=0")
    assert asked.value.response().status == 204
    page.wait_for_selector("#product[open]")
    assert page.locator("#name").inner_text() == by_words[0]
    assert page.locator("#shots img").count() == 2
    changed(page, lambda: page.click("text=More like this >> nth=0"))
    assert "picture that you chose" in page.locator("#status").inner_text()
    assert page.faults == []
    with served.service.store.connection() as connection:
        row = connection.execute("SELECT count(*) FROM clicks").fetchone()
    assert row == (1,)


def test_what_is_dropped_is_looked_for_or_refused(
    browser: Any, served: Served, photo: Path
) -> None:
    page = opened(browser, served.address)

    def drop(data: bytes) -> None:
        made = page.evaluate_handle(
            """bytes => {
                const dropped = new DataTransfer(), data = new Uint8Array(bytes);
                dropped.items.add(new File([data], 'a.png', {type: 'image/png'}));
                return dropped;
            }""",
            list(data),
        )
        page.dispatch_event("#drop", "drop", {"dataTransfer": made})

    drop(b"no photo")
    page.locator("#status.error", has_text="no photo that").wait_for()
    drop(photo.read_bytes())
    page.wait_for_selector(".hit")
    assert len(settled(page)) == 12


def test_two_models_stand_side_by_side(
    browser: Any, server: str, tiny_export: Path, other_export: Path, shop: Path, photo: Path
) -> None:
    runs = [tiny_export, other_export]
    served = Served(make_service(new_database(server), runs, shop, photo.parent))
    try:
        page = opened(browser, served.address)
        titles = show(page, photo)
        assert page.locator("#columns h2").all_inner_texts() == [run.name for run in runs]
        assert len(titles) == 24
        assert sorted(titles[:12]) == sorted(titles[12:])
        assert page.faults == []
    finally:
        served.stop()


def test_nobody_is_shut_out(browser: Any, served: Served, photo: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = opened(browser, served.address)

    def check(width: int, scheme: str) -> None:
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        found = axe.Axe().run(page).response["violations"]
        assert [f"{one['id']}: {one['nodes'][0]['html'][:120]}" for one in found] == []
        # Nothing is wider than the screen.
        assert page.evaluate("document.documentElement.scrollWidth") <= width

    check(1400, "light")
    check(420, "dark")
    show(page, photo)
    check(1400, "light")
    check(420, "dark")
    page.click(".hit >> nth=0")
    page.wait_for_selector("#product[open]")
    check(420, "dark")
    page.keyboard.press("Escape")
    page.wait_for_selector("#product", state="hidden")
    page.goto(served.address + "docs")
    assert page.locator("h1").count() == 1
