"""The report in a real browser: it draws in both languages and themes, saves, prints, and asks the net for nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from report_facts import dictionary_facts, hostile_facts, smallest_facts, text_facts, world_facts

from klype.examine.answer_pictures import tree
from klype.examine.html import Document, Section, render
from klype.examine.run_report import write
from scripts.chromium import CHROMIUM, QUIET
from tests.test_studio_browser import axe, say_without, serious

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]
__all__ = ["axe"]
HOSTILE = "<script>alert(1)</script><img src=http://localhost:9/x onerror=alert(2)>\u202e=cmd()"
FACTS = {
    "world": world_facts,
    "text": text_facts,
    "dictionary": dictionary_facts,
    "smallest": smallest_facts,
    "hostile": lambda: hostile_facts(HOSTILE),
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        launched = running.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write(tmp_path_factory.mktemp(name), facts()) for name, facts in FACTS.items()}


def opened(browser: Any, path: Path, width: int, theme: str, locale: str = "en-GB") -> tuple[Any, list[str]]:
    """The page, and all that it should not have done so far (and later: the list grows)."""
    size = {"width": width, "height": 900}
    page = browser.new_context(viewport=size, color_scheme=theme, locale=locale).new_page()
    faults: list[str] = []
    page.on("console", lambda message: faults.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: faults.append(f"error: {error}"))
    page.on("dialog", lambda dialog: faults.append(f"dialog: {dialog.message}"))
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else faults.append(r.url))
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready]", state="attached", timeout=20_000)
    return page, faults


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("name", FACTS)
def test_it_opens_in_both_languages_without_a_fault(
    browser: Any, folders: dict[str, Path], name: str, width: int, theme: str
) -> None:
    page, faults = opened(browser, folders[name], width, theme)
    for lang in ("nb", "en"):
        page.click(f".view:visible [data-set-lang={lang}]")
        assert page.get_attribute("html", "lang") == lang
        charts = page.locator(f".view[data-view={lang}] .chart")
        assert charts.count() > 0
        assert "This is a chart" not in charts.first.get_attribute("aria-label")  # ECharts' own words, in English
        assert page.locator(f".view[data-view={lang}] .chart svg path").count() >= charts.count()
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.locator(".view:visible").count() == 1
    paper = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    page.click(".view:visible [data-toggle-theme]")
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") != paper
    assert faults == []
    page.context.close()


def test_it_opens_in_the_browsers_language_and_keeps_what_is_chosen(browser: Any, folders: dict[str, Path]) -> None:
    for locale, expected in (("nb-NO", "nb"), ("da-DK", "nb"), ("en-US", "en"), ("fr-FR", "en")):
        page, faults = opened(browser, folders["smallest"], 1440, "light", locale)
        assert page.get_attribute("html", "lang") == expected
        other = "en" if expected == "nb" else "nb"
        page.click(f".view:visible [data-set-lang={other}]")
        page.reload()
        page.wait_for_selector("html[data-ready]", state="attached", timeout=20_000)
        assert page.get_attribute("html", "lang") == other
        assert page.locator(f".view[data-view={other}]").is_visible()
        assert faults == []
        page.context.close()


def grown(*names: str) -> dict[str, Any]:
    """A branch with these further ones below it, the last of which branches on."""
    ends = [{"text": name, "mass": 0.1, "children": []} for name in names]
    return {"text": "Gjerne! Reven drakk vann i", "mass": 0.9, "children": ends}


@pytest.mark.parametrize("width", [390, 1440])
def test_labels_of_a_tree_never_meet(browser: Any, tmp_path: Path, width: int) -> None:
    root = grown("hagen.", "skogen ved elva og den gamle låven.")
    root["children"] += [grown("parken.", "byen.", "bilen."), grown("båten til bestemor og bestefar.")]
    root["children"][-1]["children"].append(grown("kjøkkenet.", "stua."))
    told = {"trees": [{"question": "Hvor drakk reven vann?", "branches": root, "answers": [], "unexplored": 0.1}]}
    page_of = lambda say: Document(say, "t", "l", [Section([tree(told, say)])])
    (file := tmp_path / "tree.html").write_text(render(page_of, "en"), encoding="utf-8")
    page, faults = opened(browser, file, width, "light")
    found = page.locator(".view:visible .chart svg text").evaluate_all(
        "texts => texts.filter((t) => t.textContent.trim()).map((t) => t.getBoundingClientRect().toJSON())"
    )
    assert len(found) >= 10
    meet = [
        (a, b)
        for i, a in enumerate(found)
        for b in found[:i]
        if a["left"] < b["right"] and b["left"] < a["right"] and a["top"] < b["bottom"] and b["top"] < a["bottom"]
    ]
    assert not meet
    cut = page.locator(".view:visible .panel").evaluate("box => getComputedStyle(box, '::before').content")
    assert ("Scroll sideways" in cut) == (width == 390)  # a phone says that it shows a part
    assert faults == []
    page.context.close()


@pytest.mark.parametrize(("name", "width", "theme"), [("world", 1440, "dark"), ("dictionary", 390, "light")])
def test_it_is_accessible(browser: Any, folders: dict[str, Path], axe: str, name: str, width: int, theme: str) -> None:
    page, _ = opened(browser, folders[name], width, theme)
    assert serious(page, axe) == []
    page.context.close()
    say_without(axe)


def test_pictures_and_their_data_can_be_saved(browser: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    page, faults = opened(browser, folders["world"], 1000, "light")
    saved = {}
    for kind in ("svg", "png", "csv", "json"):
        with page.expect_download() as download:
            page.click(f"#stages-en [data-save={kind}]")
        saved[kind] = tmp_path / download.value.suggested_filename
        download.value.save_as(saved[kind])
    drawing = ElementTree.fromstring(saved["svg"].read_text(encoding="utf-8"))
    assert len(drawing.findall("{http://www.w3.org/2000/svg}svg")) == 5
    assert saved["png"].read_bytes().startswith(b"\x89PNG")
    assert saved["png"].stat().st_size > 20_000
    table = json.loads(saved["json"].read_text(encoding="utf-8"))
    rows = saved["csv"].read_text(encoding="utf-8-sig").strip().splitlines()
    assert len(rows) == 1 + len(table["rows"]) == 16
    figures = json.loads((folders["world"].parent / "figures.json").read_text(encoding="utf-8"))
    assert table["rows"][0][2] == figures["stages"]["base"]["right"]["value"]
    assert faults == []
    page.context.close()


def test_a_saved_table_starts_no_formula(browser: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    path = write(tmp_path, hostile_facts("=cmd()"))
    page, _ = opened(browser, path, 1000, "light")
    with page.expect_download() as download:
        page.click("#next-en [data-save=csv]")
    download.value.save_as(tmp_path / "next.csv")
    assert "'=cmd()" in (tmp_path / "next.csv").read_text(encoding="utf-8-sig").splitlines()[1]
    page.context.close()


def test_the_formula_follows_its_sliders(browser: Any, folders: dict[str, Path]) -> None:
    page, _ = opened(browser, folders["world"], 1000, "light")

    def said(name: str) -> str:
        return str(page.inner_text(f"#formula-en [data-out={name}]"))

    assert (said("s"), said("n"), said("right"), said("article")) == ("99.999%", "100", "99.9%", "practically 0")
    page.fill("#formula-en [data-in=s]", "2")
    page.fill("#formula-en [data-in=n]", "69")
    assert (said("s"), said("right")) == ("99%", "50%")
    assert "69 words" in said("half")
    page.click("#formula-en [data-preset=model]")
    assert said("s") == "98.8%"
    page.click("#formula-en [data-preset=article]")
    assert said("s") == "99.999%"
    page.context.close()


def test_it_prints_light_even_from_a_dark_screen(browser: Any, folders: dict[str, Path]) -> None:
    page, faults = opened(browser, folders["world"], 1000, "dark")
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.emulate_media(media="print", color_scheme="dark")
    ink = page.evaluate("getComputedStyle(document.documentElement).color")
    assert ink == "rgb(29, 32, 36)"
    assert page.locator(".view:visible .controls:visible").count() == 0
    assert faults == []
    page.context.close()
