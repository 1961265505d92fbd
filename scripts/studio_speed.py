"""How the studio behaves, measured in Chromium: first paint, a click on a token, long answers, wide trees, ten people.

python scripts/studio_speed.py [--only people] [--questions 20] [--json FILE]

It serves the tests' small models (one of them says 2,000 tokens), so that the page is measured and not a model. Ten
people rank at once while a model trains beside them; what the store holds afterwards is held against what was
acknowledged to them. Exit code 1 when a ranking was lost, doubled or changed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from scripts.chromium import CHROMIUM, QUIET  # noqa: E402
from tests.studio_work_toys import run_with_questions  # noqa: E402

PEOPLE, PATIENCE_MS = 10, 900_000
PLACES = (1500, 40, 900, 1999, 3, 1200, 77, 640, 1801, 350)
PAINT = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"
CLICK = """place => new Promise(resolve => {
  const token = document.querySelectorAll('.k-said .k-tok')[place], title = document.querySelector('.k-side h2');
  const drawn = () => document.querySelector('.k-side svg')?.innerHTML, before = drawn(), begun = performance.now();
  const shown = () => title.textContent.includes(`${(place + 1).toLocaleString('en-GB')}:`) && drawn() !== before;
  const wait = () => shown() ? resolve(performance.now() - begun) : requestAnimationFrame(wait);
  token.click(); wait();
})"""
SCROLL = """choose => new Promise(resolve => {
  const box = choose ? document.querySelector(choose) : document.scrollingElement, took = [];
  let last = performance.now();
  const step = now => {
    took.push(now - last); last = now; box.scrollTop += 120;
    took.length < 60 ? requestAnimationFrame(step) : resolve(took.slice(1));
  };
  requestAnimationFrame(step);
})"""
ANOTHER = "turn => !window.sitting || document.querySelector('.r-board').dataset.turn !== turn"
"""The next question is laid when the last one's order is on the disk; or the page has lost its server and is new."""
BACK = "() => window.did_handshake && document.querySelector('.r-progress strong')?.textContent"


@dataclass
class Person:
    """What was acknowledged to one: (question, the answers put in their places, best first); seconds each took."""

    name: str
    kept: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    reloads: int = 0


@contextmanager
def serving(module: str, home: Path) -> Iterator[str]:
    """A server of the tests in a process of its own; yields its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, str(home), "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "KLYPE_HOME": str(home)},
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def training(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A model learns the demo world on all cores meanwhile."""
    command = ["-m", "klype", "train", "pretrain", "--steps", "100000", "--out", str(folder), "--json"]
    with (folder.with_suffix(".log")).open("wb") as log:
        process = subprocess.Popen([sys.executable, *command], stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait(30)


async def paints(browser: Any, base: str, times: int = 5) -> dict[str, list[float]]:
    """Milliseconds to the first contentful paint of each page, in a new browser profile each time."""
    from klype.studio.app import PAGES

    found: dict[str, list[float]] = {}
    for page in PAGES:
        for _ in range(times):
            context = await browser.new_context(locale="en-GB", viewport={"width": 1440, "height": 900})
            tab = await context.new_page()
            await tab.goto(base + page.route)
            await tab.wait_for_selector("main h1")
            await tab.wait_for_function(f"({PAINT})() !== null")
            found.setdefault(page.name, []).append(await tab.evaluate(PAINT))
            await context.close()
    return found


async def long_answer(browser: Any, base: str) -> dict[str, list[float]]:
    """Clicks on tokens of a 2,000-token answer, and the frames while it is scrolled: milliseconds."""
    tab = await browser.new_page(locale="en-GB", viewport={"width": 1440, "height": 900})
    await tab.goto(base + "/")
    await tab.wait_for_selector(".k-models .k-check")
    for box in await tab.locator(".k-models .k-check").all():
        await box.locator("input").set_checked((await box.inner_text()).strip() == "long")
    await tab.locator(".k-field", has_text="Max tokens").locator("input").focus()
    await tab.keyboard.press("End")
    await tab.locator("textarea").first.fill("hvor gikk hun?")
    await tab.keyboard.press("Enter")
    await tab.wait_for_selector(".k-costs", timeout=PATIENCE_MS)
    count = await tab.locator(".k-said .k-tok").count()
    if count < 2000:
        raise SystemExit(f"The answer has {count} tokens only.")
    await tab.evaluate(CLICK, 10)  # the first click fetches the panel's script
    clicks = [await tab.evaluate(CLICK, place) for place in PLACES]
    frames = await tab.evaluate(SCROLL, ".k-said .k-answer")
    await tab.context.close()
    return {"click": clicks, "frames": frames}


async def wide_tree(browser: Any, base: str) -> dict[str, list[float]]:
    """256 answers of a model that says anything: milliseconds until they are drawn, and frames while they scroll."""
    tab = await browser.new_page(locale="en-GB", viewport={"width": 1440, "height": 900})
    await tab.goto(base + "/paths")
    await tab.locator("select").first.select_option("toy/align")
    await tab.locator("input[type=range]").first.focus()
    await tab.keyboard.press("End")
    await tab.locator("textarea").first.fill("hvor gikk hun?")
    begun = time.perf_counter()
    await tab.keyboard.press("Enter")
    await tab.wait_for_selector(".k-chart svg path", timeout=PATIENCE_MS)
    drawn = 1000 * (time.perf_counter() - begun)
    await tab.wait_for_selector(".k-words", timeout=PATIENCE_MS)
    heading = await tab.locator("h2", has_text="256").count()
    if not heading:
        raise SystemExit("There are not 256 answers.")
    frames = await tab.evaluate(SCROLL, "")
    await tab.context.close()
    return {"drawn": [drawn], "frames": frames}


async def sits(browser: Any, base: str, person: Person) -> None:
    """Ranks all there is with the keyboard, in an order of one's own."""
    context = await browser.new_context(locale="en-GB")
    tab = await context.new_page()
    tab.set_default_timeout(PATIENCE_MS)
    await tab.goto(f"{base}/ranking")
    await tab.wait_for_selector(".r-setup input[type=text]")
    await tab.locator(".r-setup input[type=text]").fill(person.name)
    await tab.keyboard.press("Enter")
    await tab.wait_for_selector(".r-card")
    while await tab.locator(".r-asked p").count():
        question = await tab.locator(".r-asked p").inner_text()
        texts = await tab.locator(".r-pool .r-text").all_inner_texts()
        await tab.evaluate("() => { window.sitting = true }")
        turn = await tab.locator(".r-board").get_attribute("data-turn")
        first = (len(person.kept) + sum(map(ord, person.name))) % len(texts)
        places = [*range(first, len(texts)), *range(first)][: 1 + len(person.kept) % len(texts)]
        await tab.locator("h1").click()
        for place in places:
            await tab.keyboard.press(str(place + 1))
        begun = time.perf_counter()
        await tab.keyboard.press("Enter")
        await tab.wait_for_function(ANOTHER, arg=turn)
        if not await tab.evaluate("() => window.sitting"):
            await back(tab, person, question)
        person.took.append(time.perf_counter() - begun)
        left = [i for i in range(len(texts)) if i not in places]
        person.kept.append((question, tuple(texts[i] for i in (places + left if len(left) == 1 else places))))
    await context.close()


async def back(tab: Any, person: Person, question: str) -> None:
    """A page that came back by itself: the order was kept, or lies there half made and is sent again."""
    person.reloads += 1
    await tab.wait_for_function(BACK)
    await tab.wait_for_timeout(500)
    shown = tab.locator(".r-asked p")
    if await shown.count() and await shown.inner_text() == question and await tab.locator(".r-order .r-card").count():
        await tab.evaluate("() => { window.sitting = true }")
        turn = await tab.locator(".r-board").get_attribute("data-turn")
        await tab.locator("h1").click()
        await tab.keyboard.press("Enter")
        await tab.wait_for_function(ANOTHER, arg=turn)


async def ranking(browser: Any, home: Path, questions: int) -> dict[str, Any]:
    """Ten at once; then what the store holds against what was acknowledged."""
    from klype.runs.ranking import open_store

    folder = run_with_questions(home, questions)
    people = [Person(f"person {i}") for i in range(PEOPLE)]
    with training(home / "learning") as learner, serving("tests.studio_work_toys", home) as base:
        metrics = home / "learning" / "pretrain" / "metrics.jsonl"
        while not metrics.is_file() and learner.poll() is None:
            await asyncio.sleep(0.2)
        steps = rows(metrics)
        begun = time.perf_counter()
        await asyncio.gather(*(sits(browser, base, person) for person in people))
        seconds = time.perf_counter() - begun
        trained = rows(metrics) - steps
        if learner.poll() is not None:
            raise SystemExit(f"The training beside it ended: {(home / 'learning.log').read_text()[-500:]}")
    with open_store(folder / "rank") as store:
        entries = store.entries()
    stored = Counter((e.annotator, e.asked.question.prompt, order_of(e)) for e in entries)
    said = Counter((p.name, question, order) for p in people for question, order in p.kept)
    once = Counter((e.annotator, e.asked.id, e.again) for e in entries)
    return {
        "people": PEOPLE,
        "acknowledged": said.total(),
        "stored": len(entries),
        "lost": (said - stored).total(),
        "unasked": (stored - said).total(),
        "doubled": sum(n - 1 for n in once.values()),
        "seconds": seconds,
        "training_rows_meanwhile": trained,
        "pages_that_came_back": sum(person.reloads for person in people),
        "took": [1000 * t for person in people for t in person.took],
    }


def order_of(entry: Any) -> tuple[str, ...]:
    """The answers in their places, without those that were left and share the last one."""
    return tuple(entry.asked.candidates[tier[0]].text for tier in entry.order if len(tier) == 1)


def rows(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def summed(values: Sequence[float]) -> dict[str, float | int]:
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), 1),
        "p95": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 1),
        "worst": round(ordered[-1], 1),
        "n": len(ordered),
    }


async def measure(only: Sequence[str], questions: int) -> dict[str, Any]:
    """All rows asked for, each printed as soon as it is known."""
    from playwright.async_api import async_playwright

    found: dict[str, Any] = {}

    def tell(name: str, row: dict[str, Any]) -> None:
        found[name] = row
        print(f"{name}: {', '.join(f'{k} {v:g}' for k, v in row.items())}", flush=True)

    async with async_playwright() as running:
        browser = await running.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder)
            if set(only) - {"people"}:
                (home / "pages").mkdir()
                with serving("tests.studio_server", home / "pages") as base:
                    if "paint" in only:
                        for name, taken in (await paints(browser, base)).items():
                            tell(f"first paint, {name} (ms)", summed(taken))
                    if "answer" in only:
                        made = await long_answer(browser, base)
                        tell("click on one of 2,000 tokens until its chart is there (ms)", summed(made["click"]))
                        tell("frames while 2,000 tokens scroll (ms)", summed(made["frames"]))
                    if "tree" in only:
                        made = await wide_tree(browser, base)
                        tell("256 answers until they are drawn (ms)", summed(made["drawn"]))
                        tell("frames while the pictures of 256 answers scroll (ms)", summed(made["frames"]))
            if "people" in only:
                ranked = await ranking(browser, home / "people", questions)
                tell(
                    "ten people rank while a model trains: Enter until the next question (ms)",
                    summed(ranked.pop("took")),
                )
                tell("rankings", ranked)
        await browser.close()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("paint", "answer", "tree", "people"), action="append")
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if CHROMIUM is None:
        raise SystemExit("No Chromium is installed.")
    found = asyncio.run(measure(asked.only or ("paint", "answer", "tree", "people"), asked.questions))
    machine = {
        "date": date.today().isoformat(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
    }
    if asked.json:
        asked.json.write_text(json.dumps({"machine": machine, "rows": found}, indent=1) + "\n", encoding="utf-8")
    made = found.get("rankings", {})
    return int(any(made.get(key) for key in ("lost", "unasked", "doubled")))


if __name__ == "__main__":
    sys.exit(main())
