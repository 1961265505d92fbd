"""How many rankings it takes until a change is seen: the figures on the studio's ranking page.

    python scripts/how_many_rankings.py RUN [--counts 5 10 20 40 80] [--seeds 2] [--minutes 1]

A person who likes courteous words and short answers (``forty_rankings.liking``) ranks so many of a run's questions, and
the model learns from these alone, as it does from the ranking page. The world's true annotator judges what comes of it
on held-out questions.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from itertools import groupby
from pathlib import Path

from forty_rankings import liking

from klype.preferences.records import Entry, RankingItem
from klype.runs.rankers import now
from klype.studio.alignment import Alignment, start_alignment
from klype.studio.ranking_stores import RankingStore
from klype.studio.studio import Studio


def ranked(asked: RankingItem) -> Entry:
    """The best first; answers that are liked alike are tied."""
    liked = [liking(candidate.text) for candidate in asked.candidates]
    places = sorted(range(len(liked)), key=lambda i: -liked[i])
    order = tuple(tuple(tied) for _, tied in groupby(places, key=lambda i: liked[i]))
    return Entry(asked, order, "Kari", when=now())


def aligned(run: Path, questions: list[RankingItem], minutes: float) -> Alignment:
    """The finished alignment from these questions' rankings; it lies in a folder of its own."""
    home = Path(tempfile.mkdtemp())
    store = RankingStore("few", run, str(home / "rankings.db"))
    with store.open() as opened:
        opened.put([ranked(asked) for asked in questions])
    studio = Studio([], home, [sys.executable, "-m", "klype"], runs=home / "runs")
    found = start_alignment(studio, store, ("Kari",), minutes, force=True)
    while found.read() or found.state == "running":
        time.sleep(1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[5, 10, 20, 40, 80])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=1)
    given = parser.parse_args()
    with RankingStore("all", given.run).open() as store:
        questions = store.questions()
    for count in given.counts:
        for seed in range(given.seeds):
            found = aligned(given.run, random.Random(seed).sample(questions, count), given.minutes)
            if found.state != "done":
                print(f"{count} rankings: {found.state}. {found.why}", flush=True)
                continue
            last = found.document["rounds"][-1]
            shown = {"win rate": found.document["win_rate"], "change": found.document["gain"]["score"]}
            shown |= {
                f"{name} {when}": last[when][name] for name in ("polite", "right") for when in ("before", "after")
            }
            said = [f"{name} {f['value']:.3f} [{f['low']:.3f}, {f['high']:.3f}]" for name, f in shown.items()]
            print(f"{count} rankings, seed {seed}: {', '.join(said)}, n = {last['after']['right']['n']}", flush=True)


if __name__ == "__main__":
    main()
