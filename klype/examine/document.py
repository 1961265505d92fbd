"""What an examination found, as one JSON document: figures by temperature, curves, trees, forks, examples, cost.

Numbers only: two examinations with one seed differ in nothing but what stands under ``time`` and in measured seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from statistics import median
from typing import Any

from klype.answers.tree import Branch, Tree, branches
from klype.examine.calibration import bins, risk_coverage
from klype.examine.estimators import effect_of, sureness
from klype.examine.evidence import Evidence
from klype.examine.examination import Examined
from klype.examine.measures import MEASURES, measure
from klype.examine.survival import Survival, survival_of
from klype.judge.meaning import label
from klype.values import Figure, Trace

TIMED = frozenset(["seconds", "joules", "joules_per_right"])
"""Measured anew each time: they stand under ``time``, not among the figures."""
EXAMPLES = 12
TREES = 6
CURVE = 50
CURVES = ("survival", "would_survive", "by_position", "difference", "independent")
LONGEST = 40
"""Positions that curves go to."""
DRAWN = 0.005
"""Answers that are less likely are not drawn; they belong to what is left."""

Document = dict[str, Any]


def document(found: Examined) -> Document:
    """The stable names are those of the JSON contract; the rest is what the report shows besides."""
    examinee, settings = found.target, found.settings
    measured = {t: measure(evidence) for t, evidence in found.evidence.items()}
    after = _feedback(found)
    return {
        "model": examinee.name,
        "questions": len(examinee.questions),
        "figures": {
            key(t): {name: f.json() for name, f in figures.items() if name not in TIMED}
            for t, figures in measured.items()
        },
        **curves(found),
        "feedback": {key(t): rows["difference"] for t, rows in after.items()},
        "after_error": {key(t): rows for t, rows in after.items()},
        "calibration": {key(t): reliability(evidence) for t, evidence in found.evidence.items() if honest(evidence)},
        "selective": {key(t): kept(evidence) for t, evidence in found.evidence.items()},
        "main": key(settings.main),
        "skipped": examinee.skipped,
        "judge": examinee.judge_name,
        "settings": {
            "temperatures": list(settings.temperatures),
            "n": settings.n,
            "limit": settings.limit,
            "seed": settings.seed,
            "trees": len(found.trees),
            "forks": len(found.forks),
        },
        "trees": trees(found),
        "examples": examples(found),
        "missing": missing(measured[settings.main]),
        "time": {
            "seconds": found.seconds,
            "model_seconds": found.model_s,
            "passes": found.passes,
            "tokens": found.tokens,
            "figures": {
                key(t): {name: f.json() for name, f in figures.items() if name in TIMED}
                for t, figures in measured.items()
            },
        },
    }


def key(temperature: float) -> str:
    """A temperature as it is typed: 0, 0.7, 1."""
    return f"{temperature:g}"


def curves(found: Examined) -> Document:
    """R, K and their references by position and temperature, where errors are judged word by word."""
    out: Document = {name: {} for name in CURVES}
    for t, evidence in found.evidence.items():
        if evidence.by_word:
            for name, rows in along(survival_of(evidence), LONGEST).items():
                out[name][key(t)] = rows
    return out


def honest(evidence: Evidence) -> bool:
    """Whether what it says can be compared with how often it comes true."""
    return bool(evidence.told) and not evidence.other_manners


def along(curve: Survival, longest: int) -> dict[str, list[Document]]:
    """R, K, Π(1 − h̄_t) and K less that (both empty where S is not known), and S̄^n, position by position."""
    rows = (curve.r, curve.k, curve.by_position, curve.difference, curve.independent)
    figures = dict(zip(CURVES, rows, strict=True))
    return {
        name: [{**f.json(), "t": at} for at, f in enumerate(row[:longest], 1)]
        if name not in ("by_position", "difference") or any(f.value is not None for f in row)
        else []
        for name, row in figures.items()
    }


def reliability(evidence: Evidence) -> list[Document]:
    """Equal-mass bins: probability said, how often it came true."""
    said, true = [t.said for t in evidence.told], [t.true for t in evidence.told]
    return [{"p": p, "observed": f.json()} for p, f in bins(said, true, [t.question for t in evidence.told])]


def kept(evidence: Evidence) -> list[Document]:
    """Share wrong among the answers that the model is surest of, by how many of them are kept: at most ``CURVE``
    points."""
    rows = sureness(evidence)
    if not rows or len({right for _, right, _ in rows}) < 2:
        return []
    curve = risk_coverage([score for score, _, _ in rows], [right for _, right, _ in rows])
    places = sorted({round(i * (len(curve) - 1) / CURVE) for i in range(CURVE + 1)})
    return [{"kept": curve[i][0], "wrong": curve[i][1]} for i in places]


def trees(found: Examined) -> list[Document]:
    """The first few trees, their likeliest answers drawn as branches."""
    out = []
    decode = found.target.source.codec.decode
    for question, tree in list(zip(found.target.questions, found.trees, strict=False))[:TREES]:
        out.append(
            {
                "question": question.prompt,
                "answers": [
                    {"text": a.text, "low": a.low, "high": a.high, "meaning": label(a.meaning)}
                    for a in tree.answers[:20]
                ],
                "meanings": [{"text": c.text, "low": c.low, "high": c.high} for c in tree.clusters[:8]],
                "unexplored": tree.unexplored,
                "expansions": tree.expansions,
                "branches": drawn(tree, decode, 10),
            }
        )
    return out


def drawn(tree: Tree, decode: Callable[[Sequence[int]], str], most: int) -> Document:
    """The likeliest answers as branches; a meaning goes by the likeliest answer that has it."""
    names = {cluster.meaning: cluster.text for cluster in tree.clusters}
    likely = sum(answer.low >= DRAWN for answer in tree.answers)
    return _branch(branches(tree, decode, max(1, min(most, likely))), names)


def _branch(one: Branch, names: Mapping[Hashable, str]) -> Document:
    out: Document = {"text": one.text, "mass": one.mass, "children": [_branch(child, names) for child in one.children]}
    if one.answer is not None:
        out |= {"low": one.answer.low, "high": one.answer.high, "meaning": names[one.meaning]}
    return out


def examples(found: Examined) -> list[Document]:
    """Answers at the main temperature, token by token with probability; with the fork of the first where it has one."""
    examinee, t = found.target, found.settings.main
    evidence = iter(found.evidence[t].answers)
    out = []
    for place, (question, traces) in enumerate(zip(examinee.questions, found.traces[t], strict=True)):
        judged = [next(evidence) for _ in traces]
        if place >= EXAMPLES:
            break
        forks = found.forks[place] if place < len(found.forks) else None
        out.append(
            {
                "question": question.question,
                "context": question.context,
                "references": list(question.answers[:4]),
                "answers": [
                    {"text": examinee.source.codec.decode(trace.tokens), "right": a.right, "ended": trace.ended,
                     "tokens": _tokens(found, trace)}
                    for trace, a in list(zip(traces, judged, strict=True))[:3]
                ],
                "fork": None if forks is None else forks.fork,
                "fork_p": None if forks is None else forks.p,
                "own": None if forks is None else [forks.before[0], *(p.own for p in forks.positions)],
                "others": [] if forks is None else [
                    {"token": examinee.source.codec.decode([other.token]).strip(), "p": other.p,
                     "meanings": [{"text": label(m), "share": share} for m, share in other.meanings[:3]]}
                    for other in forks.others
                ],
            }
        )  # fmt: skip
    return out


def missing(figures: dict[str, Figure]) -> list[str]:
    """Names of measures that could not be made at the main temperature, as the table has them."""
    return [row.name for row in MEASURES if row.name not in figures and row.name not in TIMED]


def _tokens(found: Examined, trace: Trace) -> list[Document]:
    stop = set(found.target.source.codec.stop)
    decode = found.target.source.codec.decode
    return [
        {"text": _piece(found, step.token, decode), "p": min(1.0, math.exp(step.logp))}
        for step in trace.steps
        if step.token not in stop
    ]


def _piece(found: Examined, token: int, decode: Any) -> str:
    """With its leading space, where bytes are known."""
    spell = found.target.spell
    return spell(token).decode("utf-8", errors="replace") if spell is not None else f" {decode([token])}"


def _feedback(found: Examined) -> dict[float, Document]:
    out: dict[float, Document] = {}
    for t, evidence in found.evidence.items():
        if not evidence.outcomes:
            continue
        shown = effect_of(evidence)
        rows: dict[str, Sequence[Figure]] = {
            "difference": shown.difference,
            "ratio": shown.ratio,
            "beside_near": shown.beside_near,
            "cautious": shown.cautious,
            "recovery": shown.recovery,
            "moved": shown.moved,
        }
        out[t] = {
            name: [{**f.json(), "distance": d} for d, f in enumerate(figures, 1)] for name, figures in rows.items()
        }
        out[t]["ended"] = [{"distance": d, **{arm: row[d - 1] for arm, row in shown.ended.items()}}
                           for d in range(1, len(shown.difference) + 1)]  # fmt: skip
        out[t]["further"] = {name: figure.json() for name, figure in shown.further.items()}
        out[t]["pairs"] = pairs(evidence)
    return out


def pairs(evidence: Evidence) -> Document:
    """How many pairs of a wrong word and a right one as rare there are, the places where there was none, and how many
    times as likely as the wrong word the right one is: least, median, most; median before any matching."""
    interventions = [one.intervention for one in evidence.outcomes]
    ratios = [math.exp(intervention.rarity) for intervention in interventions if intervention.matched]
    by_rule = [math.exp(intervention.rarity) for intervention in interventions if intervention.by_rule]
    return {
        "matched": len(ratios),
        "dropped": evidence.dropped + sum(not intervention.matched for intervention in interventions),
        "ratio": [min(ratios), median(ratios), max(ratios)] if ratios else None,
        "ratio_by_rule": median(by_rule) if by_rule else None,
    }
