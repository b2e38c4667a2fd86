"""The report as a reader has it, in headless Chromium: nothing is loaded, nothing planted runs, responses are filtered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report.pages import CELL, PLANTED, SCRIPTS, chromium, full_source
from vlsafe.report.build import build


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(full_source(tmp_path_factory.mktemp("sweep")))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


class Opened:
    """A page with the report, once its responses are there; what it says and asks for is kept."""

    def __init__(self, browser: Any, report: Path, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append("dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(report.as_uri())
        self.page.locator("#list > li").first.wait_for()

    def choose(self, name: str, label: str) -> list[str]:
        self.page.locator(f"[name={name}]").select_option(label=label)
        return self.wait()

    def wait(self) -> list[str]:
        """The texts of the cards, after the filter has had its moment."""
        self.page.wait_for_timeout(300)
        return list(self.page.locator("#list > li").all_inner_texts())


@pytest.fixture(scope="module")
def opened(browser: Any, report: Path) -> Iterator[Opened]:
    page = Opened(browser, report)
    yield page
    page.context.close()


@pytest.fixture(autouse=True)
def reset(request: pytest.FixtureRequest) -> None:
    if "opened" in request.fixturenames:
        request.getfixturevalue("opened").page.evaluate(
            "() => { const f = document.getElementById('filters'); f.reset(); f.dispatchEvent(new Event('input')); }"
        )
        request.getfixturevalue("opened").wait()


def test_nothing_is_loaded_and_nothing_goes_wrong(opened: Opened, report: Path) -> None:
    assert opened.requests == [report.as_uri()]
    assert opened.said == []
    assert opened.page.title() == "demo · vlsafe"
    text = report.read_text()
    assert 'http-equiv="Content-Security-Policy" content="default-src \'none\'' in text.replace("&#39;", "'")
    assert " style=" not in text  # the policy would drop it


def test_a_script_that_was_not_ours_would_not_run(browser: Any, report: Path, tmp_path: Path) -> None:
    broken = tmp_path / "report.html"
    broken.write_text(report.read_text().replace("<header>", "<script>document.title='planted'</script><header>", 1))
    page = Opened(browser, broken)
    assert page.page.title() == "demo · vlsafe"
    assert any("Content Security Policy" in said for said in page.said)
    page.context.close()


def test_planted_markup_stays_text_everywhere(opened: Opened) -> None:
    opened.page.evaluate("() => document.querySelectorAll('details').forEach(d => { d.open = true; })")
    shown = opened.page.locator("body").inner_text()
    for place in (f"failed: safety_tune {PLANTED}", f"CheckError: {PLANTED}", f"tiny › {PLANTED}", CELL + "0"):
        assert place in shown
    assert opened.page.locator("img, script[src], iframe, link").count() == 0
    assert opened.page.locator("body script").count() == 2  # the data and ours
    assert opened.said == []


def test_responses_are_filtered_by_every_field(opened: Opened) -> None:
    total = opened.page.locator("#count").inner_text()
    assert all("mw_helpful_text" in card for card in opened.choose("benchmark", "mw_helpful_text"))
    assert opened.page.locator("#count").inner_text() != total
    cards = opened.choose("label", "incorrect")
    assert cards and set(opened.page.locator("#list .label").all_inner_texts()) == {"incorrect"}
    cards = opened.choose("role", "tuned")
    assert cards and all(card.startswith("tuned") for card in cards)
    cards = opened.choose("cell", CELL + "0")
    assert cards == []  # that cell has no tuned model
    assert opened.page.locator("#count").inner_text().startswith("0 of ")
    opened.choose("role", "all")
    opened.choose("label", "all")
    cards = opened.choose("category", PLANTED)
    assert cards and all(PLANTED in card for card in cards)
    opened.choose("category", "all")
    opened.page.locator("[name=text]").fill("ANSWER 17")
    assert opened.wait()
    assert set(opened.page.locator("#list .text[data-name=response]").all_inner_texts()) == {"answer 17"}


def test_more_are_shown_when_asked_for(opened: Opened) -> None:
    assert opened.page.locator("#list > li").count() == 40
    opened.page.locator("#more").click()
    assert opened.page.locator("#list > li").count() == 80


def test_answers_to_harmful_prompts_are_folded_until_opened(opened: Opened) -> None:
    opened.choose("role", "adapted")
    opened.choose("benchmark", "mw_direct")
    fold = opened.page.locator("#list > li").first.locator("details")
    assert opened.page.locator("#list > li .text[data-name=response]:visible").count() == 0
    fold.locator("summary").click()
    assert fold.locator(".text[data-name=response]").inner_text() == PLANTED
    assert opened.page.locator("#list > li .text[data-name=response]:visible").count() == 1
    opened.choose("benchmark", "mw_helpful_text")
    assert (
        opened.page.locator("#list > li .text[data-name=response]:visible").count() == opened.page.locator("#list > li").count()
    )


def test_any_script_is_shown_and_what_hides_or_reorders_becomes_visible(opened: Opened) -> None:
    opened.choose("role", "adapted")
    opened.choose("benchmark", "mw_helpful_text")
    texts = opened.page.locator("#list > li .text[data-name=response]").all_inner_texts()
    assert SCRIPTS in texts
    assert "a\\x1b[31mred\\x00\\u202ekcab\\u200bgone\\ud800" in texts
    assert "two\nlines" in texts


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (360, "dark"), (768, "light"), (1280, "dark")])
def test_the_page_is_never_wider_than_its_window_and_follows_the_scheme(
    browser: Any, report: Path, width: int, scheme: str
) -> None:
    page = Opened(browser, report, viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.page.evaluate("() => document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert page.page.evaluate("document.documentElement.scrollWidth") == width
    lightness = page.page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
    ink = page.page.evaluate("getComputedStyle(document.querySelector('svg text')).fill.match(/\\d+/g).map(Number)[0]")
    assert (lightness > 200, ink > 200) == ((True, False) if scheme == "light" else (False, True))
    assert page.said == []
    page.context.close()


def test_in_print_tables_are_open_and_harmful_answers_are_not_there(browser: Any, report: Path) -> None:
    page = Opened(browser, report, color_scheme="dark")
    page.page.emulate_media(media="print", color_scheme="dark")
    assert page.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.page.locator("#list").is_visible()
    assert not page.page.locator("nav").is_visible()
    page.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.page.locator("details.table table").last.is_visible()
    page.page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert not page.page.locator("details.table table").last.is_visible()
    page.context.close()


def test_without_script_the_page_says_where_the_responses_are(browser: Any, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator("noscript").count() == 1
    assert "needs JavaScript" in page.locator("#responses").inner_text()
    context.close()


def test_a_browser_that_cannot_unpack_says_so(browser: Any, report: Path) -> None:
    context = browser.new_context()
    context.add_init_script("delete window.DecompressionStream")
    page = context.new_page()
    page.goto(report.as_uri())
    assert "no DecompressionStream" in page.locator("#count").inner_text()
    context.close()
