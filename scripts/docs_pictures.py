"""The pictures of the explanation pages, made by klype from a run: docs/pictures/NAME-LANG.svg.

Usage: .venv/bin/python scripts/docs_pictures.py RUN FOLDER

RUN is a run of the demo world (`make run`). What COMMANDS measure of it is kept in FOLDER and not measured twice.
Charts are taken from the reports as their button SVG saves them; tokens and passes are drawn here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from chromium import CHROMIUM, QUIET
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import klype  # noqa: E402
from klype.text.tokenizer import Tokenizer  # noqa: E402

OUT = ROOT / "docs" / "pictures"
LANGUAGES = ("en", "nb")
OF_RUN = {"next": "next-word", "stages": "fine-tuning", "reward": "rankings", "temperatures": "temperature"}
"""What the run's report calls its pictures, and what the pages do."""
COMMANDS = {
    "examined": ("examine {run} --yes", "report.html", {"feedback": "feedback"}),
    "drawn": (
        "examine {run}/finetune --most 60 --temperatures 1 --samples 8 --yes",
        "report.html",
        {"flow": "divergence"},
    ),
    "article": ("article {run}", "article.html", {"documents": "right-answers"}),
    "bias": ("bias --documents 300 --seeds 3 --seed 10 --targets oracle", "report.html", {"bars": "one-right-word"}),
}
"""By folder: the command that fills it, its report, and that report's pictures."""
CUT = {"en": ("The fox drank water.", "The fox drank lemonade."), "nb": ("Reven drakk vann.", "Reven drakk brus.")}
WORDS = {
    "en": {"pass": "pass {n}", "known": "every word is one token", "pieces": "a word it has never seen: pieces"},
    "nb": {"pass": "gang {n}", "known": "hvert ord er ett token", "pieces": "et ord den aldri har sett: biter"},
}
STYLE = """<style>text{font-family:system-ui,sans-serif;font-size:15px;fill:#1c2333}.s{font-size:12px;fill:#5a6478}
rect{fill:#eef2fb;stroke:#4a64a8;rx:6}.p{fill:#fff;stroke:none;rx:0}.n{fill:#cfdcfb;stroke-width:2}</style>"""


def saved_charts(browser: Browser, report: Path, named: dict[str, str]) -> None:
    """Every picture of a report that has a name here, in both languages."""
    page = browser.new_page(viewport={"width": 1100, "height": 900}, color_scheme="light")
    page.goto(report.resolve().as_uri())
    page.wait_for_function("document.documentElement.dataset.ready === 'true'")
    for lang in LANGUAGES:
        page.locator(f"button[data-set-lang={lang}]:visible").first.click()
        for theirs, ours in named.items():
            figure = page.locator(f'.view[data-view="{lang}"] [data-picture="{theirs}"]').first
            with page.expect_download() as download:
                figure.locator("button[data-save=svg]").evaluate("button => button.click()")
            download.value.save_as(OUT / f"{ours}-{lang}.svg")


def boxes(tokens: Sequence[tuple[str, str]], x: float, y: float, new: int = -1) -> tuple[str, float]:
    """A row of (token, what stands below it) from x on, and where it ends; the token ``new`` stands out."""
    parts = []
    for number, (token, below) in enumerate(tokens):
        width = 18 + 8.6 * len(token)
        kind = ' class="n"' if number == new else ""
        parts.append(f'<rect{kind} x="{x}" y="{y}" width="{width}" height="30"/>')
        parts.append(f'<text x="{x + width / 2}" y="{y + 20}" text-anchor="middle">{escape(token)}</text>')
        if below:
            parts.append(
                f'<text class="s" x="{x + width / 2}" y="{y + 45}" text-anchor="middle">{escape(below)}</text>'
            )
        x += width + 6
    return "".join(parts), x


def drawing(parts: Sequence[str], width: float, height: float, label: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'role="img" aria-label="{escape(label)}">{STYLE}<rect class="p" width="100%" height="100%"/>'
        f"{''.join(parts)}</svg>\n"
    )


def tokens_picture(run: Path, lang: str) -> str:
    """Two sentences as the run's tokenizer cuts them, with the tokens' numbers."""
    tokenizer = Tokenizer.load(run)
    parts, width, y = [], 0.0, 12.0
    for said, sentence in zip(("known", "pieces"), CUT[lang], strict=True):
        parts.append(f'<text class="s" x="12" y="{y + 14}">{WORDS[lang][said]}</text>')
        known = [(tokenizer.token_bytes(one).decode(), one) for one in tokenizer.encode_beginning(sentence)]
        cut = [(piece.replace(" ", "␣"), str(one)) for piece, one in known if piece]  # control tokens are no text
        row, end = boxes(cut, 12, y + 24)
        parts.append(row)
        width, y = max(width, end), y + 90
    return drawing(parts, width + 6, y, " / ".join(CUT[lang]))


def passes_picture(figures: dict[str, Any], lang: str) -> str:
    """An answer of the aligned model, one pass a row: what it reads, and the token that it writes."""
    answer = next(
        one["answers"]["aligned"]
        for one in figures["questions"]
        if (one["answers"]["aligned"]["right"] and ("Hv" in one["question"]) == (lang == "nb"))
    )
    tokens = [(token["text"].strip() or "␣", "") for token in answer["tokens"]]
    parts, width = [], 0.0
    for number, token in enumerate(answer["tokens"], 1):
        y = 12 + 40 * (number - 1)
        parts.append(f'<text class="s" x="12" y="{y + 20}">{WORDS[lang]["pass"].format(n=number)}</text>')
        row, end = boxes(tokens[:number], 92, y, number - 1)
        p = f"{token['p']:.3f}" if lang == "en" else f"{token['p']:.3f}".replace(".", ",")
        parts.append(f'{row}<text class="s" x="{end + 4}" y="{y + 20}">p = {p}</text>')
        width = max(width, end + 80)
    return drawing(parts, width, 12 + 40 * len(tokens), answer["text"])


def main(run: Path, folder: Path) -> None:
    OUT.mkdir(exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    figures = json.loads((run / "figures.json").read_text(encoding="utf-8"))
    for lang in LANGUAGES:
        (OUT / f"tokens-{lang}.svg").write_text(tokens_picture(run, lang), encoding="utf-8")
        (OUT / f"autoregression-{lang}.svg").write_text(passes_picture(figures, lang), encoding="utf-8")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        (folder / "run.html").write_text(klype.Run(run).report.to_html(), encoding="utf-8")  # in today's words
        saved_charts(browser, folder / "run.html", OF_RUN)
        for name, (command, report, named) in COMMANDS.items():
            if not (folder / name / report).exists():
                asked = [*command.format(run=run).split(), "--out", str(folder / name)]
                subprocess.run([sys.executable, "-m", "klype", *asked], check=True)
            saved_charts(browser, folder / name / report, named)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
