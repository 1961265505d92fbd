"""How often the judges of sameness err: pairs of answers labelled by reading, before any judge ran.

``meaning.jsonl`` has the answers to 38 questions: 18 in English, eight answers each by SmolLM2-135M-Instruct (Q4_1,
temperature 0.8, 40 tokens), and 20 Norwegian ones with answers written for the purpose, the model's own Norwegian
having no two that agree. ``clusters`` numbers each answer's meaning by one reader's judgement (null: unsure, left out):
same = both give the same answer to the question asked, whatever else they say, true or false. ``right`` is the cluster
that says what ``reference`` says.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

from klype.device import usable_cores
from klype.examine.intervals import ratio_of_means
from klype.judge.judge import Judge
from klype.judge.rule_judge import RuleJudge
from klype.judge.text import normalise
from klype.values import Figure, Question

SHARES = {"precision": "precision", "recall": "recall", "F1": "f1", "accuracy": "accuracy"}
LABELLED = Path(__file__).parent / "meaning.jsonl"


@dataclass(frozen=True, slots=True)
class Pair:
    question: str
    a: str
    b: str
    same: bool
    kind: str
    lang: str


class IdenticalWords(Judge):
    """A judge for which answers are the same if their words are equal, ignoring case and punctuation."""

    name = "identical words"

    def compare(self, question: Question, a: str, b: str) -> bool | None:
        return normalise(a) == normalise(b)


def run(more: Sequence[Path] = (), others: Sequence[Judge] = ()) -> dict[str, Any]:
    """Runs every judge on every file of pairs (``{"question", "a", "b", "same"}``) or of answers with clusters."""
    rows = [json.loads(line) for file in (LABELLED, *more) for line in file.read_text(encoding="utf-8").splitlines()]
    pairs = [pair for row in rows for pair in pairs_of(row)]
    judges = (RuleJudge(), IdenticalWords(), *others)
    judged: list[dict[str, Any]] = []
    for judge in judges:
        for lang in sorted({pair.lang for pair in pairs}):
            spoken = [pair for pair in pairs if pair.lang == lang]
            for kind in ("all", *sorted({pair.kind for pair in spoken})):
                chosen = [pair for pair in spoken if kind in ("all", pair.kind)]
                judged.append({"judge": judge.name, "language": lang, "kind": kind, **scores(judge, chosen)})
    return {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": usable_cores()},
        "rows": judged,
        "clusters": [found for judge in judges for found in clustered(judge, rows)],
        "right": [found for judge in judges for lang in ("en", "nb") for found in references(judge, rows, lang)],
        "ratios": {},
    }


def pairs_of(row: dict[str, Any]) -> list[Pair]:
    """The labelled pair of a row, or all pairs of a question's answers whose meanings are known."""
    kind, lang = row.get("kind", ""), row.get("lang", "en")
    if "same" in row:
        return [Pair(row["question"], row["a"], row["b"], row["same"], kind, lang)]
    known = [
        (text, cluster) for text, cluster in zip(row["answers"], row["clusters"], strict=True) if cluster is not None
    ]
    return [Pair(row["question"], a, b, x == y, kind, lang) for (a, x), (b, y) in combinations(known, 2)]


def scores(judge: Judge, pairs: Iterable[Pair]) -> dict[str, Any]:
    """Precision, recall and F1 of "same", the share judged as labelled and the share decided; by question."""
    by_question: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_question.setdefault(pair.question, []).append(pair)
    hit, false, missed, agreed, decided, n = ([0.0] * len(by_question) for _ in range(6))
    for i, (question, asked) in enumerate(by_question.items()):
        for pair in asked:
            said = judge.same(Question("", question), pair.a, pair.b)
            hit[i] += said is True and pair.same
            false[i] += said is True and not pair.same
            missed[i] += said is not True and pair.same
            agreed[i] += bool(said) == pair.same
            decided[i] += said is not None
            n[i] += 1
    both = [2 * h for h in hit]
    return {
        "questions": len(by_question),
        "pairs": int(sum(n)),
        "same": int(sum(hit) + sum(missed)),
        "precision": share(hit, [h + f for h, f in zip(hit, false, strict=True)]),
        "recall": share(hit, [h + m for h, m in zip(hit, missed, strict=True)]),
        "f1": share(both, [b + f + m for b, f, m in zip(both, false, missed, strict=True)]),
        "accuracy": share(agreed, n),
        "wrongly": share([k - a for k, a in zip(n, agreed, strict=True)], n),
        "decided": share(decided, n),
    }


def share(top: list[float], under: list[float]) -> dict[str, Any]:
    """A share as a figure of the JSON contract, with an interval over questions."""
    return as_json(ratio_of_means(top, under, "share of pairs"))


def as_json(figure: Figure) -> dict[str, Any]:
    return {"value": figure.value, "low": figure.low, "high": figure.high, "n": figure.n, "unit": figure.unit} | (
        {"why": figure.why} if figure.why else {}
    )


def clustered(judge: Judge, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean adjusted Rand index over the questions with two answers of one meaning, by language."""
    found = []
    for lang in sorted({row.get("lang", "en") for row in rows if "clusters" in row}):
        indices = []
        for row in rows:
            truth = [c for c in row.get("clusters", ()) if c is not None]
            if row.get("lang", "en") != lang or len(truth) < 2 or len(set(truth)) == len(truth):
                continue
            known = [a for a, c in zip(row["answers"], row["clusters"], strict=True) if c is not None]
            indices.append(adjusted_rand(truth, list(map(judge.meaning(Question("", row["question"])), known))))
        if indices:
            figure = ratio_of_means(indices, [1.0] * len(indices), "adjusted Rand index")
            found.append({"judge": judge.name, "language": lang, "questions": len(indices), "ari": as_json(figure)})
    return found


def references(judge: Judge, rows: list[dict[str, Any]], lang: str) -> list[dict[str, Any]]:
    """The shares of answers to questions with a reference that are decided, and of those that are decided wrongly."""
    n, decided, wrong = ([] for _ in range(3))  # type: tuple[list[float], list[float], list[float]]
    for row in rows:
        if row.get("lang") != lang or "reference" not in row:
            continue
        question = Question("", row["question"], answers=(row["reference"],))
        said = [
            (judge.right(question, a), c == row["right"])
            for a, c in zip(row["answers"], row["clusters"], strict=True)
            if c is not None
        ]
        n.append(len(said))
        decided.append(sum(verdict is not None for verdict, _ in said))
        wrong.append(sum(verdict is not None and verdict != truth for verdict, truth in said))
    if not n:
        return []
    return [
        {
            "judge": judge.name,
            "language": lang,
            "questions": len(n),
            "answers": int(sum(n)),
            "decided": as_json(ratio_of_means(decided, n, "share of answers")),
            "wrongly": as_json(ratio_of_means(wrong, decided, "share of decided answers")),
        }
    ]


def adjusted_rand(truth: Sequence[int], found: Sequence[object]) -> float:
    """Agreement of two clusterings, 0 by chance and 1 when equal (Hubert and Arabie, 1985)."""

    def pairs(labels: Iterable[object]) -> int:
        listed = list(labels)
        return sum(comb(listed.count(label), 2) for label in set(listed))

    together = pairs(zip(truth, found, strict=True))
    by_truth, by_found, all_pairs = pairs(truth), pairs(found), comb(len(truth), 2)
    expected, most = by_truth * by_found / all_pairs, (by_truth + by_found) / 2
    return 1.0 if most == expected else (together - expected) / (most - expected)
