"""The documentation: it builds strictly in both languages, without a network, and its pages keep to their size."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import sync_playwright

from klype.examine.measures import KNOWN
from scripts.chromium import CHROMIUM, QUIET

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, "scripts/docs.py", str(out)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_site_is_whole_in_both_languages(site: Path) -> None:
    """Links, anchors and pictures lead somewhere (--strict), and each language has the same pages."""
    english, norwegian = (
        {file.relative_to(site / lang) for file in (site / lang).rglob("*.html")} for lang in ("en", "nb")
    )
    assert english == norwegian
    assert {Path(f"reference/{name}.html") for name in ("commands", "python", "recipes", "measures", "json")} <= english
    assert "--temperature" in (site / "en/reference/commands.html").read_text(encoding="utf-8")
    assert 'id="klype.api.model.load"' in (site / "en/reference/python.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize(("lang", "word"), [("en", "temperature"), ("nb", "temperatur")])
def test_site_is_read_and_searched_from_a_disk(site: Path, lang: str, word: str) -> None:
    asked = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"file://{site}/{lang}/index.html")
        page.wait_for_function("window.__index !== undefined")
        page.keyboard.press("/")
        page.locator("input[type=text]:focus, input:focus").fill(word)
        page.locator(r"text=/[1-9]\d* result/").wait_for(timeout=30_000)
        browser.close()
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


def test_every_page_is_in_the_contents() -> None:
    contents = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    named = {
        name for part in contents for names in (part.values() if isinstance(part, dict) else [[part]]) for name in names
    }
    there = {re.sub(r"\.nb\.md$", ".md", str(page.relative_to(DOCS))) for page in PAGES}
    assert there <= named


def test_pages_are_short_outside_the_laboratory() -> None:
    long = {
        str(page.relative_to(DOCS)): lines
        for page in PAGES
        if "laboratory" not in page.parts and (lines := len(page.read_text(encoding="utf-8").splitlines())) > 250
    }
    assert long == {}


def test_explanation_is_short_and_in_both_languages() -> None:
    assert len((DOCS / "architecture.md").read_text(encoding="utf-8").splitlines()) <= 120
    for page in (DOCS / "explanation").glob("*.md"):
        assert len(page.read_text(encoding="utf-8").splitlines()) <= 120, page
        other = page.with_name(
            re.sub(r"(?:\.nb)?\.md$", "" if page.name.endswith(".nb.md") else ".nb", page.name) + ".md"
        )
        assert other.exists(), other


def test_the_glossaries_have_the_same_terms() -> None:
    english, norwegian = (
        [
            tuple(part.strip() for part in row.split("|")[1:3])
            for row in re.findall(r"(?m)^\|(?! (?:English|norsk)).*", text)
        ]
        for text in ((DOCS / "explanation" / f"glossary{of}.md").read_text(encoding="utf-8") for of in ("", ".nb"))
    )
    assert len(english) > 50
    assert sorted(english) == sorted((theirs, ours) for ours, theirs in norwegian)


@pytest.mark.parametrize("page", sorted((DOCS / "laboratory").glob("*.md")), ids=lambda page: page.stem)
def test_laboratory_opens_with_five_findings(page: Path) -> None:
    if page.stem in ("index", "index.nb", "decisions"):
        pytest.skip("nothing is measured there")
    assert re.match(r"# .+\n\n(?:- .+\n){5}\n", page.read_text(encoding="utf-8"))


def test_findings_have_the_same_figures_in_norwegian() -> None:
    """The Norwegian index tells what each page opens with."""
    index = (DOCS / "laboratory" / "index.nb.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"(?m)^## \[[^\]]+\]\((\w+)\.md\)\n\n((?:- .+\n){5})", index))
    pages = {page.stem for page in (DOCS / "laboratory").glob("*.md")} - {"index", "index.nb", "decisions", "log"}
    assert told.keys() == pages
    for name, norwegian in told.items():
        text = (DOCS / "laboratory" / f"{name}.md").read_text(encoding="utf-8")
        english = "".join(re.findall(r"(?m)^- .+\n", text)[:5]).replace(",", "")  # 1,024: 1024 in Norwegian
        english = re.sub(r"(?<!\d)\.(?=\d)", "0.", english)
        norwegian = re.sub(r"(?<=\d) (?=\d{3}\b)", "", norwegian).replace(",", ".")
        assert sorted(re.findall(r"\d+(?:\.\d+)?", norwegian)) == sorted(re.findall(r"\d+(?:\.\d+)?", english)), name


def test_every_measure_is_defined() -> None:
    written = tomllib.loads((DOCS / "reference" / "measures.toml").read_text(encoding="utf-8"))
    assert set(written["measures"]) == set(KNOWN)
    for row in KNOWN.values():
        about = written["measures"][row.name]
        assert set(written["estimators"][about["estimator"]]) == {"en", "nb"}, row.name
        assert set(written["intervals"][about["interval"]]) == {"en", "nb"}, row.name
        assert set(written["undefined"][about["undefined"]]) == {"en", "nb"}, row.name
        assert not row.judge or set(written["judges"][row.judge]) == {"en", "nb"}, row.name
