"""The page in Debian's Chromium: slider, hover, click, keyboard, dark, phone; no message on the console, no request outside."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.perf.report.conftest import GRID, Made
from tokenrt.perf.report.document import Change, Document, Entry, Measures, Model, Sample, Step
from tokenrt.perf.report.write import write

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
BLACK = 40
"""Mean of a patch, of 255, that a dropped one of noise above 60 stays below."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@dataclass
class Opened:
    """A page with what it said and asked for since it was opened."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def mark(self, place: int) -> Any:
        return self.page.locator(f'#trade-chart [data-plan="{place}"]')

    def shown(self) -> int:
        return int(self.page.evaluate("state.plan"))

    def drawn(self) -> Any:
        """Wait until the pictures of the plan and block that are shown are drawn, and give the pixels of the first one."""
        self.page.wait_for_function(
            "[...document.querySelectorAll('#samples-grid canvas')].every((c) => c.dataset.drawn === c.dataset.wanted)"
        )
        return self.page.evaluate(
            f"""() => {{
              const c = document.querySelector('#samples-grid canvas'), n = {GRID};
              const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
              return Array.from({{length: n * n}}, (_, cell) => {{
                const x = Math.floor(((cell % n) + 0.5) * c.width / n);
                const y = Math.floor((Math.floor(cell / n) + 0.5) * c.height / n);
                let sum = 0;
                for (let j = -2; j <= 2; j += 1) for (let i = -2; i <= 2; i += 1) sum += d[4 * ((y + j) * c.width + x + i) + 1];
                return sum / 25;
              }});
            }}"""
        )


@pytest.fixture
def opened(browser: Any, request: pytest.FixtureRequest) -> Iterator[Opened]:
    """The page of a fixture in a window of its own, closed with nothing said and nothing asked for."""
    asked = {"viewport": {"width": 1180, "height": 900}, "made": "made", **getattr(request, "param", {})}
    made: Made = request.getfixturevalue(asked.pop("made"))
    context = browser.new_context(**asked)
    page = context.new_page()
    found = Opened(page)
    page.on("console", lambda message: found.said.append(message.text))
    page.on("pageerror", lambda error: found.said.append(str(error)))
    page.on("request", lambda request: found.asked.append(request.url))
    page.goto(made.page.as_uri())
    page.wait_for_selector("#trade-chart svg")
    yield found
    context.close()
    assert not found.said
    outside = [url for url in found.asked if not url.startswith(("data:", made.page.as_uri()))]
    assert not outside


def test_it_opens_with_the_recommended_plan_and_its_pictures(opened: Opened, made: Made) -> None:
    assert opened.shown() == made.document["shown"]
    assert opened.page.locator("#trade-chart [role=button]").count() == len(made.document["entries"])
    assert opened.page.locator("#samples-grid figure").count() == 3
    assert opened.page.locator("figcaption b").first.inner_text() == "photo 0 <b>"
    opened.drawn()


def test_the_slider_goes_through_the_blocks(opened: Opened, made: Made) -> None:
    place = next(
        place
        for place, each in enumerate(made.document["entries"])
        if {step["method"] for step in each["flow"]} == {"topk"}
    )
    opened.page.evaluate(f"show({{ plan: {place} }})")
    view = made.document["entries"][place]["views"][0]
    slider = opened.page.locator("#block")
    slider.focus()
    slider.press("Home")
    assert "before the first block" in opened.page.locator("#block-told").inner_text()
    assert min(opened.drawn()) > BLACK
    for block in range(4):
        slider.press("ArrowRight")
        dropped = {
            cell
            for change in view
            if change["block"] <= block
            for cell, token in zip(change["cells"], change["tokens"], strict=True)
            if token < 0
        }
        dark = {cell for cell, light in enumerate(opened.drawn()) if light < BLACK}
        assert dark == dropped
        left = GRID * GRID + 1 - len(dropped)
        assert f"behind block {block}: {left} of 26 tokens" in opened.page.locator("#block-told").inner_text()
        assert slider.get_attribute("aria-valuetext") == opened.page.locator("#block-told").inner_text()


def test_hover_tells_a_plan_and_click_shows_it(opened: Opened, made: Made) -> None:
    place = next(place for place in range(len(made.document["entries"])) if place != opened.shown())
    told = made.document["entries"][place]
    before = opened.drawn()
    opened.mark(place).dispatch_event("pointerenter")
    tip = opened.page.locator("#trade-chart .tip")
    assert tip.is_visible()
    assert told["name"] in tip.inner_text()
    assert f"cost {100 * told['cost']:.1f}%" in tip.inner_text()
    opened.mark(place).dispatch_event("pointerleave")
    assert not tip.is_visible()
    opened.mark(place).dispatch_event("click")
    assert opened.shown() == place
    assert opened.mark(place).get_attribute("aria-pressed") == "true"
    assert opened.page.locator("#plan").input_value() == str(place)
    assert opened.drawn() != before
    assert opened.page.locator("tr[aria-current]").count() >= 1
    assert told["name"] in opened.page.locator("#time-bars").inner_text()


def test_a_pointer_that_moves_onto_a_mark_reads_it(opened: Opened) -> None:
    body = opened.mark(opened.shown()).locator(".body")
    body.scroll_into_view_if_needed()
    box = body.bounding_box()
    opened.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert opened.page.locator("#trade-chart .tip").is_visible()


def test_keys_go_from_plan_to_plan(opened: Opened) -> None:
    start = opened.shown()
    opened.mark(start).focus()
    opened.page.keyboard.press("ArrowRight")
    at = int(opened.page.evaluate("document.activeElement.dataset.plan"))
    assert at != start == opened.shown()
    assert opened.page.locator("#trade-chart .tip").is_visible()
    opened.page.keyboard.press("Enter")
    assert opened.shown() == at
    assert int(opened.page.evaluate("document.activeElement.dataset.plan")) == at
    assert opened.page.locator('#trade-chart [tabindex="0"]').count() == 1
    opened.page.keyboard.press("ArrowLeft")
    opened.page.keyboard.press(" ")
    assert opened.shown() == start


def test_the_table_and_the_list_choose_too(opened: Opened, made: Made) -> None:
    opened.page.locator("#trade details summary").first.click()
    row = opened.page.locator("#trade tr[data-plan]").first
    row.locator(".pick").click()
    assert opened.shown() == int(row.get_attribute("data-plan"))
    opened.page.select_option("#plan", str(made.document["shown"]))
    assert opened.shown() == made.document["shown"]


PAPER = "getComputedStyle(document.body).backgroundColor"


@pytest.mark.parametrize("opened", [{"color_scheme": "dark"}, {"color_scheme": "light"}], indirect=True)
def test_light_and_dark_are_those_of_the_system_until_the_switch(opened: Opened) -> None:
    light, dark = "rgb(251, 250, 248)", "rgb(19, 20, 22)"
    scheme = opened.page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert opened.page.evaluate(PAPER) == (dark if scheme else light)
    opened.page.click("#theme")
    assert opened.page.evaluate(PAPER) == light
    opened.page.click("#theme")
    assert opened.page.evaluate(PAPER) == dark
    assert opened.page.get_attribute("#theme", "aria-label") == "Theme: dark"


@pytest.mark.parametrize("opened", [{"viewport": {"width": 360, "height": 740}}], indirect=True)
def test_a_phone_needs_no_scrolling_sideways(opened: Opened) -> None:
    for details in opened.page.locator("details").all():
        details.evaluate("(each) => { each.open = true; }")
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 360
    wide = opened.page.evaluate(
        "[...document.querySelectorAll('main *')].filter((e) => e.getBoundingClientRect().right > 361).map((e) => e.outerHTML)"
    )
    assert not wide


WORDS = ("the", "cat", "sat", "down", "[PAD]")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A page of a text of four words: the second becomes part of the first, the third is dropped a block later."""
    path = tmp_path_factory.mktemp("text") / "text.html"
    became = (Change(0, (1,), (0,)), Change(1, (2,), (-1,)))
    steps = (Step(0, 6, 5, "tome"), Step(1, 5, 4, "topk"))
    entry = Entry("both", cost=0.8, harm=0.1, sites=2, flow=steps, views=(became,), front=True)
    told = Document(
        "compare", "Texts", "Both.", Model("bert", 6, 1, 2), Measures("work", "angle"), (entry,),
        samples=(Sample("text 1", words=WORDS),),
    )  # fmt: skip
    write(told, path)
    return Made(path, path, path, path, told.as_dict())


@pytest.mark.parametrize("opened", [{"made": "text"}], indirect=True)
def test_words_of_a_text_are_joined_and_struck_through(opened: Opened) -> None:
    kinds = "[...document.querySelectorAll('.words span')].map((e) => e.className)"
    assert opened.page.locator(".words span").all_inner_texts() == [*WORDS[:-1]]
    assert opened.page.evaluate(kinds) == ["joined", "joined", "gone", "kept"]
    opened.page.evaluate("show({ block: 0 })")
    assert opened.page.evaluate(kinds) == ["joined", "joined", "kept", "kept"]
    opened.page.evaluate("show({ block: -1 })")
    assert opened.page.evaluate(kinds) == ["kept"] * 4
    assert "was not timed" not in opened.page.locator("#time").inner_text()
    assert "Nothing was timed" in opened.page.locator("#time").inner_text()


def test_everything_that_can_be_used_has_a_name(opened: Opened) -> None:
    nameless = opened.page.evaluate(
        """[...document.querySelectorAll('button, select, input, [role=button], [role=img], canvas')]
          .filter((e) => !(e.getAttribute('aria-label') || e.textContent.trim() || (e.labels && e.labels.length)))
          .map((e) => e.outerHTML)"""
    )
    assert not nameless
    assert opened.page.evaluate("document.documentElement.lang") == "en"
    assert opened.page.locator("h1").count() == 1
