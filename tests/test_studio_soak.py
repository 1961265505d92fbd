"""The studio under many hands: ten people rank while a model trains; pages come back after a restart by themselves."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from klype.words import words
from scripts.chromium import CHROMIUM
from tests.studio_work_toys import run_with_questions
from tests.test_studio_ranking import alone, chromium, keep, serving, visitor

ROOT = Path(__file__).resolve().parent.parent
pytestmark = alone


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_ten_people_rank_while_a_model_trains(tmp_path: Path) -> None:
    pytest.importorskip("playwright.async_api", reason="playwright is not installed")
    out = tmp_path / "speed.json"
    command = [sys.executable, "scripts/studio_speed.py", "--only", "people", "--questions", "12", "--json", str(out)]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert made.returncode == 0, made.stdout + made.stderr
    found = json.loads(out.read_text())["rows"]["rankings"]
    assert found["acknowledged"] == found["stored"] >= 10 * 12
    assert (found["lost"], found["unasked"], found["doubled"]) == (0, 0, 0)
    assert found["training_rows_meanwhile"] > 0


def test_pages_come_back_by_themselves_with_what_was_half_done(tmp_path: Path) -> None:
    """Nobody reloads: the page notices the new server and shows the half-made order and the half-written answer."""
    run_with_questions(tmp_path, questions=6)
    w = words("en", "studio_ranking").section("board")
    with chromium() as browser:
        with serving(tmp_path) as (process, base):
            port = int(base.rpartition(":")[2])
            kari, ola = (visitor(browser, base, name) for name in ("Kari", "Ola"))
            assert keep(kari)
            kari.locator("h1").click()
            for key in "31":
                kari.keyboard.press(key)
            half, turn = kari.locator(".r-order").inner_text(), kari.locator(".r-board").get_attribute("data-turn")
            ola.keyboard.press(w["key_write"].lower())
            ola.locator(".r-write textarea").fill("half a thought")
            process.send_signal(signal.SIGKILL)
            process.wait()
        with serving(tmp_path, port):
            kari.wait_for_function(
                "half => document.querySelector('.r-order')?.innerText === half && window.did_handshake", arg=half,
                timeout=120_000,
            )  # fmt: skip
            ola.wait_for_function(
                "() => document.querySelector('.r-write textarea')?.value === 'half a thought' && window.did_handshake",
                timeout=120_000,
            )
            # The old page looks the same and hears no key; the new server counts its turns anew.
            kari.wait_for_function("turn => document.querySelector('.r-board').dataset.turn !== turn", arg=turn)
            kari.wait_for_selector(
                f".r-progress strong:has-text('{words('en', 'studio_ranking')('mine', name='Kari', n='1')}')"
            )
            assert keep(kari, "")
            kari.wait_for_selector(".r-progress strong:has-text('Kari: 2')")
