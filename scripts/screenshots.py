"""Screenshots of the studio: every page in both languages, narrow and wide, light and dark, with something on it.

python scripts/screenshots.py RUN OUT [--only answer] [--quick] [--home FOLDER] [--docs FOLDER]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from chromium import CHROMIUM, QUIET

from klype.words import words

PATIENCE_MS = 600_000  # a machine may be busy
LOCALES = {"nb": "nb-NO", "en": "en-GB"}


def answer(page: Any) -> None:
    """All three models answer a question; a token is looked at, and another way is taken."""
    page.goto(page.base + "/")
    page.wait_for_selector(".k-check input")
    for box in page.locator(".k-check input").all()[:3]:
        box.check()
    page.locator("textarea").first.fill(page.question)
    page.keyboard.press("Enter")
    page.wait_for_selector(".k-costs >> nth=2", timeout=PATIENCE_MS)
    unsure = page.locator(".k-said .k-tok:is(.p3, .p4, .p5, .p2):not(.control)")
    (unsure.last if unsure.count() else page.locator(".k-said .k-tok").first).click()
    page.wait_for_selector(".k-side svg")
    page.wait_for_timeout(1500)


def paths(page: Any) -> None:
    """All answers to a question, and the word that decided."""
    page.goto(page.base + "/paths")
    page.locator("input[type=range]").nth(1).focus()
    for _ in range(WARMER):
        page.keyboard.press("ArrowRight")
    page.locator("textarea").first.fill(page.question)
    page.keyboard.press("Enter")
    page.wait_for_selector(".k-words", timeout=PATIENCE_MS)
    page.wait_for_timeout(500)


def divergence(page: Any) -> None:
    """An examination, which the first visit starts and the others find."""
    page.goto(page.base + "/divergence")
    page.wait_for_selector(".k-chart svg")
    page.wait_for_timeout(800)
    go = page.locator("button.strong")
    if go.count() and go.first.is_visible():
        go.first.click()
    page.wait_for_selector("h2 >> nth=4", timeout=1_200_000)
    page.wait_for_timeout(800)


def targets(page: Any) -> None:
    """The shortest experiment, which the first visit begins and the others find."""
    page.goto(page.base + "/targets")
    page.wait_for_selector("main h1")
    page.wait_for_timeout(2500)
    go = page.locator("button.strong").first
    if not page.locator(".t-what dd").count() and go.is_visible():
        page.locator("input[type=range]").first.focus()
        page.keyboard.press("Home")
        go.click()
    found = words(page.lang, "studio_targets")("found")
    page.locator("h2").get_by_text(found, exact=True).wait_for(timeout=2_400_000)
    page.wait_for_timeout(1500)


def ranking(page: Any) -> None:
    """Two people rank; the model learns from the run's own rankings; a half-made order lies on the board."""
    names = [f"{name} ({page.lang})" for name in ("Kari", "Ola")]
    for name in names:
        page.goto(page.base + "/ranking")
        page.wait_for_selector(".r-setup input[type=text]")
        page.locator(".r-setup input[type=text]").fill(name)
        page.keyboard.press("Enter")
        page.wait_for_selector(".r-card")
        rank(page, RANKED)
        if name != names[-1]:
            page.locator(".r-leave").click()
            page.locator(".r-setup input[type=text]").wait_for()  # else the next page still has the first one seated
    learn(page)
    page.locator("h1").click()
    for key in by_length(page)[:2]:
        page.keyboard.press(key)
    page.wait_for_timeout(7000)  # agreement is counted every six seconds


def rank(page: Any, upto: int) -> None:
    """Short answers first, until so many are done; whoever has done as many already only looks."""
    done = page.locator(".r-progress strong")
    while int("".join(c for c in done.inner_text().rpartition(":")[2] if c.isdecimal()) or 0) < upto:
        turn = page.locator(".r-board").get_attribute("data-turn")
        page.locator("h1").click()
        for key in by_length(page):
            page.keyboard.press(key)
        page.keyboard.press("Enter")
        page.wait_for_function("turn => document.querySelector('.r-board').dataset.turn !== turn", arg=turn)


def by_length(page: Any) -> list[str]:
    """The keys of the answers on the board, the shortest first."""
    texts = page.locator(".r-board .r-text").all_inner_texts()
    return [str(i + 1) for i in sorted(range(len(texts)), key=lambda i: (len(texts[i]), texts[i]))]


def learn(page: Any) -> None:
    """The first visit has the model learn; the others find what came of it."""
    if page.locator("a.k-button[href^='/runs']").is_visible():
        return
    slider = page.locator("input[type=range]").first
    slider.focus()
    page.keyboard.press("Home")
    whose = page.locator(".r-setup select").last
    own = whose.locator("option[value^='one:simulated']")
    whose.select_option((own if own.count() else whose.locator("option")).first.get_attribute("value"))
    page.locator(".k-check input").check()
    page.locator("button.strong:visible").last.click()
    page.locator("a.k-button[href^='/runs']").wait_for(timeout=1_200_000)


def runs(page: Any) -> None:
    """The run, among its children, beside the one that came of it by ranking."""
    page.goto(page.base + "/runs")
    page.locator(".u-run:not(.child) a").last.click()
    page.wait_for_selector(".k-chart svg")
    page.wait_for_timeout(1500)


RANKED = 11  # the tenth comes again, so that agreement with oneself is seen
WARMER = 12  # steps of a slider, to τ = 1.3: a good model says one thing only when it is cool
SHOWN, COLOURS = ("answer", "ranking"), 96
"""What the README shows."""
SCENES: dict[str, Callable[[Any], None]] = {
    "answer": answer,
    "paths": paths,
    "divergence": divergence,
    "targets": targets,
    "ranking": ranking,
    "runs": runs,
}


@contextmanager
def studio(run: Path, home: Path, command: list[str] | None = None, patience_s: float = 60) -> Iterator[str]:
    """The real command on a free port; yields its address."""
    arguments = command or [sys.executable, "-m", "klype"]
    process = subprocess.Popen(
        [*arguments, "studio", str(run), "--no-open", "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "KLYPE_HOME": str(home)},
    )
    try:
        yield address(process)
    finally:
        process.terminate()
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:  # the pictures are taken: how long a busy machine needs to end is no failure
            process.kill()
            process.wait()


def address(process: subprocess.Popen[str]) -> str:
    """Read from the document that the command prints."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        try:
            found: str = json.loads(text)["url"]
        except ValueError:
            continue
        return found.rstrip("/")
    raise SystemExit(f"The studio did not start: {text}")


def copied(run: Path, home: Path) -> Path:
    """The run is only looked at: what is ranked goes into a copy."""
    place = home / run.resolve().name
    if not place.exists():
        shutil.copytree(run, place, ignore=shutil.ignore_patterns("resume"))
    return place


def shrink(png: bytes, file: Path) -> None:
    """For the README: few colours, small enough for a repository."""
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    picture.save(file, optimize=True)


def question_of(run: Path, lang: str) -> str:
    """A short question of the run in this language that has a context, so that there is something to decide."""
    rows = [json.loads(line) for line in (run / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
    fitting = [
        f"{row.get('context', '')} {row['question']}".strip()
        for row in rows
        if row.get("extra", {}).get("lang") == lang and row.get("context") and row["extra"].get("kind") != "yes-no"
    ]
    return min(fitting, key=lambda text: abs(len(text) - 70))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", choices=sorted(SCENES), action="append")
    parser.add_argument(
        "--home", type=Path, help="keeps what took long (an examination, an alignment) for another time"
    )
    parser.add_argument("--docs", type=Path, help="a folder for the README's pictures, wide and light")
    parser.add_argument("--quick", action="store_true", help="two of the eight kinds of page only")
    asked = parser.parse_args()
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        raise SystemExit("No Chromium is installed, so no screenshots can be taken.")
    asked.out.mkdir(parents=True, exist_ok=True)
    kinds = [(lang, width, theme) for lang in LOCALES for width in (390, 1440) for theme in ("light", "dark")]
    with ExitStack() as stack:
        home = asked.home or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        base = stack.enter_context(studio(copied(asked.run, home), home))
        running = stack.enter_context(sync_playwright())
        browser = running.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        for lang, width, theme in [kinds[2], kinds[5]] if asked.quick else kinds:
            context = browser.new_context(
                viewport={"width": width, "height": 900 if width > 500 else 844},
                color_scheme=theme,
                locale=LOCALES[lang],
                device_scale_factor=1 if width > 500 else 2,
                reduced_motion="reduce",
            )
            for name in asked.only or SCENES:
                page = context.new_page()
                page.set_default_timeout(PATIENCE_MS)
                page.base, page.lang, page.question = base, lang, question_of(asked.run, lang)
                began = time.monotonic()
                SCENES[name](page)
                file = asked.out / f"{name}-{lang}-{width}-{theme}.png"
                if asked.docs and width > 500 and theme == "light" and name in SHOWN:
                    shrink(page.screenshot(), asked.docs / f"studio-{name}-{lang}.png")
                tall = page.evaluate("document.documentElement.scrollHeight")
                page.set_viewport_size({"width": width, "height": max(844, tall)})
                page.wait_for_timeout(300)
                page.screenshot(path=file)
                print(f"{file} ({time.monotonic() - began:.1f} s)", flush=True)
                page.close()
            context.close()
        browser.close()


if __name__ == "__main__":
    main()
