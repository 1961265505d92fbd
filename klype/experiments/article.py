"""The article, claim by claim: what an examination of a given model says to each.

A claim is *supported*, *not supported* or *undetermined*, by tests that share one chance of error (``rulings``); the
figures, the test, its statistic and n stand beside it. Where a base model is given, long texts of its own are judged,
too: the article speaks of a hundred words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from klype.examine import html
from klype.examine.answer_pictures import pictures
from klype.examine.evidence import Answered
from klype.examine.examination import Examined
from klype.examine.examination_report import along, document
from klype.examine.feedback import FEW, InterventionOutcome
from klype.examine.intervals import mean_by_question
from klype.examine.rulings import ALPHA, Ruling, rulings
from klype.examine.say import Say
from klype.examine.survival import survival
from klype.experiments.claims import (
    RECOVERED,
    Claim,
    Document,
    after_forced,
    along_texts,
    claims,
    dependence_facts,
    of_figures,
    slope,
)
from klype.values import Figure
from klype.words import LANGUAGES, words

LONGEST = 100
"""Words of a long text that are shown."""


def article(found: Examined, texts: Sequence[Answered] = (), writer: str = "") -> dict[str, Any]:
    """The examination's document with the claims: name, ruling, figures and tests. ``texts``: long ones, written by
    the base model ``writer``; without them answers are what errors are counted along."""
    made = {**document(found), "extra": {k: f.json() for k, f in extras(found).items()}}
    main = found.evidence[found.settings.main]
    if texts:
        curve = survival(texts)
        made["documents"] = {"model": writer, "n": len(texts), "s": curve.s.json(), **along(curve, LONGEST)}
    told = texts or (main.answers if main.by_word else ())
    made["dependence"] = dependence_facts(told, "documents" if texts else "answers")
    tests = along_texts(told) | after_forced(main.outcomes) | of_figures(made)
    known = {name: test for name, test in tests.items() if test is not None}
    made["tests"] = {name: test.json() for name, test in known.items()}
    made["rulings"] = rulings(known)
    made["claims"] = [
        {
            "claim": c.name,
            "ruling": c.ruling,
            "how": c.how,
            "figures": {key: figure for key, (_, figure) in c.shown.items()},
            "tests": {name: made["tests"][name] for name in c.tests if name in made["tests"]},
        }
        for c in claims(made)
    ]
    return made


def extras(found: Examined) -> dict[str, Figure]:
    """What only the article asks for: words drawn that were not the likeliest, questions answered both ways, what
    judging by meaning adds to judging word for word, and what the experiment says beyond its own figures."""
    t = found.settings.main
    drawn, asked = [], []
    for question, group in zip(found.target.questions, found.traces[t], strict=True):
        for trace in group:
            for step in trace.steps:
                if step.distribution is not None:
                    drawn.append(float(step.token != int(step.distribution.ids[0])))
                    asked.append(question.id)
    both: dict[str, set[bool]] = {}
    for answer in found.evidence[t].answers:
        if answer.right is not None:
            both.setdefault(answer.question, set()).add(answer.right)
    pairs = [(a.question, a.right, a.word_for_word) for a in found.evidence[t].answers]
    both_judged = [(q, float(r) - float(w)) for q, r, w in pairs if r is not None and w is not None]
    mixed = [float(len(kinds) == 2) for kinds in both.values()]
    return {
        "not_likeliest": mean_by_question(drawn, asked, "share of words"),
        "both_ways": mean_by_question(mixed, list(both), "share of questions"),
        "meaning_gain": mean_by_question([v for _, v in both_judged], [q for q, _ in both_judged], "share of answers"),
        **_experiment(found.evidence[t].outcomes),
    }


def _experiment(found: Sequence[InterventionOutcome]) -> dict[str, Figure]:
    """By how much the cautious effect grows a word; how much more of the words differ after another word than by
    chance; how often nothing is wrong within ``RECOVERED`` words of a forced right one, and how many answers had ended
    by then after a forced wrong one."""
    ruled = [one for one in found if one.intervention.by_rule and one.moved]
    matched = [one for one in found if one.intervention.matched and len(one.moved) > 1]
    asked, share = [one.intervention.question for one in ruled], "share of answers"
    last = [min(RECOVERED, len(one.moved)) - 1 for one in ruled]
    few = Figure(None, n=len(matched), why=f"fewer than {FEW} matched pairs")
    grown = [
        float(np.subtract(row["wrong"], row["near"]) @ slope(len(row["wrong"])))
        for row in map(InterventionOutcome.cautious, matched)
    ]
    parted = [(one.parted, one.intervention.question) for one in ruled if one.parted is not None]
    return {
        "growth": mean_by_question(grown, [one.intervention.question for one in matched], "difference of shares")
        if len(matched) >= FEW
        else few,
        "parted": mean_by_question([v for v, _ in parted], [q for _, q in parted], "difference of shares"),
        "clean_beside": mean_by_question(
            [one.clean["right"][at] for one, at in zip(ruled, last, strict=True)], asked, share
        ),
        "ended": mean_by_question([one.ended["wrong"][at] for one, at in zip(ruled, last, strict=True)], asked, share),
    }


def write(folder: Path, made: Document, lang: str) -> Path:
    """``article.html``, both languages in it."""
    return html.write(folder / "article.html", render(made, lang))


def render(made: Document, lang: str) -> str:
    return html.render([_page(made, Say(code)) for code in LANGUAGES], lang, made["model"])


def _page(made: Document, say: Say) -> html.Document:
    """A section a claim; a picture stands at the first that it is shown to."""
    own, drawn = words(say.lang, "article"), pictures(made, say)
    rows = [_row(claim, made, say, drawn) for claim in claims(made)]
    counts = {ruling: sum(row["ruling"] == ruling for row in rows) for ruling in get_args(Ruling)}
    asked = {"questions": made["questions"], "samples": made["settings"]["n"], "t": say.plain(float(made["main"]))}
    lead = own("lead", model=made["model"], n=len(rows), judge=say.judge(made["judge"]), alpha=say.share(ALPHA),
               **asked, **counts)  # fmt: skip
    formula, sections = html.Formula(drawn["formula"]), []
    for row in rows:
        shown = formula if row["name"] == "formula" else drawn.pop(row["picture"], None)
        small = html.Text(row["how"], "small") if row["how"] else None
        sign = {"supports": "ok", "does_not_support": "no"}.get(row["ruling"], "open")
        found = html.Text(row["found"], "verdict", sign, f"{row['ruled']}.")
        sections.append(html.Section([found, small, shown], row["says"], row["name"]))
    return html.Document(say, own("title"), lead, sections)


def sentences(made: Document, lang: str) -> list[tuple[str, str, str, str]]:
    """(claim, ruling, what was measured, by which test) as text, for a terminal."""
    say = Say(lang)
    rows = [_row(claim, made, say, {}) for claim in claims(made)]
    return [(row["says"], row["ruled"], row["found"], row["how"]) for row in rows]


def _how(claim: Claim, made: Document, say: Say) -> str:
    """How it was ruled: each test with its statistic, n, and both probabilities."""
    own = words(say.lang, "article")
    if claim.how != "test":
        return own(f"test.{claim.how}") if claim.how != "nothing" else ""
    out = []
    for name in claim.tests:
        if (test := made["tests"].get(name)) is not None:
            key, bound = f"margin.{name}", test["margin"]
            margin = own(key, margin="" if bound is None else say.plain(bound)) if key in own.messages else ""
            chances = {side: say.chance(test[side]) for side in ("supports", "against")}
            kind = own(f"test.{test['test'].lower().replace(' ', '_')}")
            number, n = say.number(test["statistic"]), say.count(test["n"])
            out.append(own("test.line", test=kind, statistic=number, n=n, margin=margin, **chances).strip())
    return " ".join(out)


def _plain(value: str | float, say: Say) -> str:
    if isinstance(value, str):
        return value
    return say.count(value) if isinstance(value, int) else say.plain(value)


def _row(claim: Claim, made: Document, say: Say, drawn: Mapping[str, Any]) -> dict[str, Any]:
    own = words(say.lang, "article")
    values = {key: say.figure(figure, name) for key, (name, figure) in claim.shown.items()}  # type: ignore[arg-type]
    values |= say.apart(
        {key: figure["value"] for key, (_, figure) in claim.shown.items() if figure.keys() <= {"value", "unit"}}
    )
    plain = {key: _plain(value, say) for key, value in claim.plain.items()}
    key = f"{claim.name}.{claim.ruling}"
    text = own(key, **values, **plain) if claim.shown or claim.plain else own("unmeasured")
    return {
        "name": claim.name,
        "says": own(f"{claim.name}.says"),
        "ruling": claim.ruling,
        "ruled": own(f"ruling.{claim.ruling}"),
        "found": text,
        "how": _how(claim, made, say),
        "picture": claim.picture if claim.picture in drawn else "",
    }
