"""The benchmark of cures on toys: what is certain is found certain, what is chosen is chosen elsewhere, and told."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.cures import CureSettings, Entrant, cures, front
from benchmarks.cures_report import render, write
from benchmarks.cures_tasks import Posed, Sizes, Task, holds_reference, real_tasks
from klype.answers import decoders
from klype.answers.decoder_requests import DecodeQuestion
from klype.errors import KlypeError, UsageError
from klype.text.tokenizer import Tokenizer
from klype.values import Question
from tests.toy_sources import table_source
from tests.toys import toy

# Half of the questions begin with "a": greedy says "d", but "e" and "f" mean the same and are likelier together.
TABLE = np.zeros((7, 7))
TABLE[1, 4:] = 0.4, 0.3, 0.3  # a
TABLE[2, 4:] = 0.8, 0.1, 0.1  # b
TABLE[[0, 3, 4, 5, 6], 0] = 1
RIGHT = {1: "x", 2: "d"}


def merged(text: str) -> str:
    return {"e": "x", "f": "x"}.get(text, text)


def posed(part: str, count: int) -> tuple[Posed, ...]:
    made = []
    for i in range(count):
        start = 1 + i % 2
        asked = DecodeQuestion((start,), merged, 4, (0,), i, checks={"likelihood": decoders.likelihood_check})
        made.append(Posed(Question(f"{part}{i}", f"{part} {i}"), asked, lambda a, s=start: merged(a) == RIGHT[s]))  # type: ignore[misc]
    return tuple(made)


def document(**more: Any) -> dict[str, Any]:
    source, _ = table_source(TABLE)
    task = Task("world", "a toy", posed("dev", 20), posed("test", 60))
    settings = CureSettings((2.0, 4.0), ("search", "consensus", "verify-likelihood", "verify-yes"))
    return cures([Entrant("toy", source, (task,))], settings, lambda text: None)


def test_a_cure_that_helps_is_recommended_and_paid_for() -> None:
    (part,) = document()["tasks"]
    rows = {(row["decoder"], row["budget"]): row for row in part["rows"]}
    assert rows["greedy", 1.0]["right"]["value"] == 0.5
    assert rows["greedy", 1.0]["gain"]["value"] == 0.0
    assert rows["search", 4.0]["right"]["value"] == 1.0
    assert rows["search", 4.0]["gain"]["low"] > 0
    assert part["best"]["decoder"] == "search"
    assert part["best"]["beats"]
    assert part["best"]["passes"] <= 4
    assert all(row["passes"] <= row["budget"] for row in part["rows"])
    assert "verify-yes" in part["skipped"]


@pytest.mark.slow
def test_equal_seeds_give_equal_figures() -> None:
    def told(made: dict[str, Any]) -> list[Any]:
        timed = ("joules_each",)
        return [{k: v for k, v in row.items() if k not in timed} for part in made["tasks"] for row in part["rows"]]

    assert told(document()) == told(document())


def test_nothing_on_the_front_is_beaten() -> None:
    rng = random.Random(1)
    rows = [{"passes": rng.randint(1, 8), "right": {"value": rng.random()}} for _ in range(40)]
    kept = front(rows)
    for i in kept:
        mine = rows[i]
        assert not any(
            row["passes"] <= mine["passes"] and row["right"]["value"] > mine["right"]["value"] for row in rows
        )
    assert {
        i for i, row in enumerate(rows) if row["right"] == max((r["right"] for r in rows), key=lambda r: r["value"])
    } <= set(kept)


def test_the_report_tells_it_in_both_languages(tmp_path: Path) -> None:
    made = document()
    for lang, says in (("en", "Recommended"), ("nb", "Anbefalt")):
        text = render(made, lang)
        assert says in text
        assert "http://" not in text.split("<body")[1].split("<script")[0]
    for file in write(tmp_path / "new", made, "nb"):
        assert file.stat().st_size > 1000
    assert json.loads((tmp_path / "new" / "cures.json").read_text())["tasks"][0]["task"] == "world"


def test_real_questions_are_apart(tmp_path: Path) -> None:
    texts = ["Question: What is 12 + 34?\nAnswer: 46\n\nRight? Yes No", "Which sentence is correct English?\nA: B: N/A"]
    tokenizer = Tokenizer.train(texts, 400)
    from klype.sources.source import NativeSource

    source = NativeSource.of(toy("llama", vocab_size=tokenizer.vocab_size), tokenizer)
    (tmp_path / "blimp-small").mkdir()
    rows = [{"sentence_good": f"Cats sleep {i}.", "sentence_bad": f"Cats sleeps {i}."} for i in range(60)]
    (tmp_path / "blimp-small" / "blimp.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arithmetic, grammar, reading = real_tasks(source, tmp_path, Sizes(12, 20))
    assert reading.missing
    for task in (arithmetic, grammar):
        assert (len(task.dev), len(task.test)) == (12, 20)
        assert not {p.question.prompt for p in task.dev} & {p.question.prompt for p in task.test}
        for one in task.test:
            assert one.right(one.question.answers[0])
            assert not one.right("what")
    letters = [p.question.answers[0] for p in grammar.test]
    assert letters.count("A") == letters.count("B")
    assert [p.question.prompt for p in real_tasks(source, None, Sizes(12, 20))[0].test] == [
        p.question.prompt for p in arithmetic.test
    ]


def test_what_holds_a_reference() -> None:
    question = Question("r", "Hvor?", answers=("740 K (467 °C)",))
    assert holds_reference(question, "Den er 740 K (467 °C).")
    assert not holds_reference(question, "467")


def test_bad_wishes_are_told() -> None:
    source, _ = table_source(TABLE)
    with pytest.raises(UsageError, match="no decoder"):
        cures([Entrant("toy", source, ())], CureSettings(only=("guess",)), lambda text: None)
    with pytest.raises(UsageError, match="budgets"):
        CureSettings(budgets=(0.5,)).check()
    with pytest.raises(KlypeError, match="no question"):
        cures([Entrant("toy", source, (Task("world", "", missing="none"),))], CureSettings(), lambda text: None)
    with pytest.raises(UsageError, match="at least 10"):
        Sizes(2, 20).check()
