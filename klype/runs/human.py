"""Ranking by hand in the terminal: a few keys a question, everything on the disk before the next one is shown."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from klype.data.order import mix
from klype.errors import KlypeError
from klype.preferences import store
from klype.runs.say import Say
from klype.values import Question, Ranking

HELP = (
    "Type the numbers from best to worst: 3 1 2. Equal ones: 3=1 2. Those you leave out come last, tied."
    " s skips, u takes the last ranking back, q stops (go on later with --resume)."
)
SHOWN = 6


def rank_by_hand(
    path: Path,
    questions: Sequence[Question],
    candidates: Sequence[Sequence[str]],
    say: Say,
    ask: Callable[[str], str] = input,
) -> int:
    """Asks for an order of each question's answers; what ``path`` holds already is not asked again. How many there are.

    Answers come in an order of chance, blind to where they come from. Raises KlypeError when nobody ranked anything.
    """
    done = store.read(path, say.note)
    seen = {r.question.prompt for r in done}
    say.note(HELP)
    position = 0
    while position < len(questions):
        question = questions[position]
        answers = _shuffled(question, candidates[position])[:SHOWN]
        if question.prompt in seen or len(answers) < 2:
            position += 1
            continue
        say.table(
            f"{len(done) + 1} of {len(questions)}: {question.prompt}",
            ("", "answer"),
            [(str(i), answer) for i, answer in enumerate(answers, 1)],
        )
        reply = _ask(ask)
        if reply == "q":
            break
        if reply == "s":
            position += 1
            continue
        if reply == "u":
            if done:
                seen.discard(done.pop().question.prompt)
                _rewrite(path, done)
                position = 0
            continue
        order = parse_order(reply, len(answers))
        if isinstance(order, str):
            say.note(order)
            continue
        ranking = Ranking(question, tuple(answers), order, "you", datetime.now(UTC).isoformat(timespec="seconds"))
        store.append(path, [ranking])
        done.append(ranking)
        seen.add(question.prompt)
        position += 1
    if not done:
        raise KlypeError("Nothing was ranked.", "Rank at least one question, or let the simulated annotator do it.")
    return len(done)


def parse_order(reply: str, n: int) -> tuple[tuple[int, ...], ...] | str:
    """``3=1 2`` → ((2, 0), (1,)); what is not mentioned comes last, tied. A sentence when it is no order."""
    groups: list[tuple[int, ...]] = []
    named: set[int] = set()
    for part in re.sub(r"\s*=\s*", "=", reply.replace(",", " ").replace(">", " ")).split():
        if not re.fullmatch(r"\d+(=\d+)*", part):
            return f"“{part}” is no number of an answer. {HELP}"
        group = tuple(int(number) - 1 for number in part.split("="))
        for index in group:
            if not 0 <= index < n:
                return f"There is no answer {index + 1}: the numbers are 1 to {n}."
            if index in named:
                return f"Answer {index + 1} is named twice."
            named.add(index)
        groups.append(group)
    if not groups:
        return HELP
    rest = tuple(i for i in range(n) if i not in named)
    return (*groups, rest) if rest else tuple(groups)


def _ask(ask: Callable[[str], str]) -> str:
    try:
        return ask("order: ").strip().lower()
    except EOFError:
        return "q"


def _shuffled(question: Question, answers: Sequence[str]) -> list[str]:
    out = list(answers)
    random.Random(mix(*question.prompt.encode())).shuffle(out)
    return out


def _rewrite(path: Path, rankings: Sequence[Ranking]) -> None:
    """Take one back: the file is written anew beside the old one, then put in its place."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    store.append(new, rankings)
    new.replace(path)
