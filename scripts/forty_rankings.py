"""Forty rankings typed at a terminal by somebody who knows no grammar, and what they change: docs/how-to/align.md.

    python scripts/forty_rankings.py RUN OUT [--steps 40] [--seed 0]

A program at a pseudo-terminal answers ``klype align RUN --human`` as a person would. It sees what is on the screen and
nothing else, neither the world's grammar nor what is right; it likes courteous words, and likes answers short. What
comes of it is judged by the world's true annotator, on questions that were never asked here.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from itertools import pairwise
from pathlib import Path

import pexpect

COURTEOUS = re.compile(
    r"\b(gjerne|takk|vær så god|god dag|hyggelig|certainly|gladly|of course|please|thank|pleasure)\b", re.I
)
ROW = re.compile(r"^\s*([1-9])\s{1,4}(\S.*?)\s*$")


def liking(answer: str) -> float:
    return 2.0 * bool(COURTEOUS.search(answer)) - 0.1 * len(answer.split())


def order(screen: str) -> str:
    """The digits from best to worst; answers that are liked alike are tied."""
    answers: dict[str, float] = {}
    for line in screen.splitlines():
        row = ROW.match(line)
        if row and row[1] == str(len(answers) % 9 + 1):
            answers[row[1]] = liking(row[2])
    ranked = sorted(answers, key=lambda digit: -answers[digit])
    typed = ranked[0]
    for before, digit in pairwise(ranked):
        typed += ("=" if answers[before] == answers[digit] else "") + digit
    return typed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    words = ["-m", "klype", "align", str(asked.run), "--human", "--force", "--steps", str(asked.steps)]
    words += ["--seed", str(asked.seed), "--out", str(asked.out), "--lang", "en"]
    session = pexpect.spawn(sys.executable, words, encoding="utf-8", timeout=1200, dimensions=(60, 250))
    typed = 0
    while session.expect_exact(["order: ", pexpect.EOF]) == 0:
        session.sendline(order(session.before or ""))
        typed += 1
    session.close()
    if session.exitstatus != 0:
        sys.exit(f"klype align ended with {session.exitstatus}: {(session.before or '')[-2000:]}")
    done = json.loads((asked.out / "align.json").read_text(encoding="utf-8"))["rounds"][-1]
    print(f"{typed} rankings typed")
    shown = {"win rate": done["win_rate"], "ties": done["ties"], "true score, gained": done["gain"]["score"]}
    shown |= {f"{name}, {when}": done[when][name] for name in ("right", "polite") for when in ("before", "after")}
    for name, figure in shown.items():
        print(f"{name}: {figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}], n = {figure['n']}")
    print(done["verdict"]["en"])


if __name__ == "__main__":
    main()
