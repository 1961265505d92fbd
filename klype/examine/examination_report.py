"""The results of an examination: a JSON document, a verdict in words, and ``report.html``.

The document holds figures by temperature, curves, trees, forks, examples and cost. Two examinations with the same seed
differ only in what is under ``time``. Verdict and page are made from the document.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

from klype.answers.tree import Branch, Tree, branches
from klype.examine import html
from klype.examine.answer_pictures import CURVES, Document, flow, pictures
from klype.examine.answer_pictures import tree as tree_picture
from klype.examine.calibration import bins, risk_coverage
from klype.examine.charts import Picture
from klype.examine.error_feedback import BY_DISTANCE
from klype.examine.estimators import effect_of, sureness
from klype.examine.evidence import OTHER_MANNERS, Evidence
from klype.examine.exam import ExamResult
from klype.examine.html import Block, Formula, Part, RichText, Section, Text, texts
from klype.examine.measures import MEASURES, measure
from klype.examine.run_facts import answer_tokens
from klype.examine.say import Say, is_share
from klype.examine.survival import Survival, survival_of
from klype.judge.meaning import label
from klype.values import Trace

# These differ from run to run: they are under ``time``, not among the figures.
TIMED = frozenset(["seconds", "joules", "joules_per_right"])
EXAMPLES = 12
TREES = 6
CURVE = 50
LONGEST = 40  # positions of the curves, at most
DRAWN = 0.005  # less likely answers are not drawn; they belong to the rest

Made = dict[str, Any]
Decode = Callable[[Sequence[int]], str]


def document(found: ExamResult) -> Made:
    """The JSON document of an examination. The names of the JSON contract are stable; the rest is for the report."""
    target, settings, decode = found.target, found.settings, found.target.source.codec.decode
    # temperatures as they are typed: 0, 0.7, 1
    main, evidence = f"{settings.main:g}", {f"{t:g}": one for t, one in found.evidence.items()}
    trees = evidence[main].trees
    measured = {t: measure(one) for t, one in evidence.items()}
    after = {t: after_error(one) for t, one in evidence.items() if one.outcomes}
    # R, K and their references by position, where errors are judged word by word
    curves = {t: curve_table(survival_of(one), LONGEST) for t, one in evidence.items() if one.by_word}

    def figures(timed: bool) -> Made:
        return {
            t: {name: f.json() for name, f in row.items() if (name in TIMED) == timed} for t, row in measured.items()
        }

    return {
        "model": target.name,
        "questions": len(target.questions),
        "figures": figures(timed=False),
        **{name: {t: rows[name] for t, rows in curves.items()} for name in CURVES},
        "feedback": {t: rows["difference"] for t, rows in after.items()},
        "after_error": after,
        # only where predicted probabilities can be compared with the truth
        "calibration": {t: reliability(one) for t, one in evidence.items() if one.told and not one.other_manners},
        "selective": {t: risk_curve(one) for t, one in evidence.items()},
        "main": main,
        "skipped": target.skipped,
        "goes_on": target.can_continue,
        "judge": target.judge_name,
        "settings": {
            "temperatures": list(settings.temperatures),
            **{name: getattr(settings, name) for name in ("n", "limit", "seed")},
            "trees": len(trees),
            "forks": len(evidence[main].forks),
        },
        "trees": [tree_document(tree, q.prompt, decode, 20, 10)
                  for q, tree in zip(target.questions, trees[:TREES], strict=False)],
        "examples": examples(found),
        "missing": [row.name for row in MEASURES if row.name not in {*measured[main], *TIMED}],
        "time": {
            "seconds": found.seconds,
            "model_seconds": found.model_s,
            "passes": found.passes,
            "tokens": found.tokens,
            "figures": figures(timed=True),
        },
    }  # fmt: skip


def curve_table(curve: Survival, longest: int) -> dict[str, list[Made]]:
    """R, K, Π(1 − h̄_t), K minus that (both empty where S is unknown), and S̄^n, by position up to ``longest``."""
    rows = (curve.r, curve.k, curve.by_position, curve.difference, curve.independent)
    return {
        name: [{**f.json(), "t": at} for at, f in enumerate(row[:longest], 1)]
        if name not in ("by_position", "difference") or any(f.value is not None for f in row)
        else []
        for name, row in zip(CURVES, rows, strict=True)
    }


def reliability(evidence: Evidence) -> list[Made]:
    """The reliability diagram, in bins of equal mass: predicted probability and observed frequency."""
    return [{"p": p, "observed": f.json()} for p, f in bins(*zip(*evidence.told, strict=True))]


def risk_curve(evidence: Evidence) -> list[Made]:
    """The risk–coverage curve, thinned to about ``CURVE`` points; empty where all answers are correct, or all wrong."""
    rows = sureness(evidence)
    if len({right for _, right, _ in rows}) < 2:
        return []
    curve = risk_coverage([score for score, _, _ in rows], [right for _, right, _ in rows])
    places = sorted({round(i * (len(curve) - 1) / CURVE) for i in range(CURVE + 1)})
    return [{"kept": curve[i][0], "wrong": curve[i][1]} for i in places]


def tree_document(tree: Tree, question: str, decode: Decode, listed: int, most: int) -> Made:
    """A tree with its ``listed`` most likely answers, at most ``most`` of them drawn as branches. A meaning is named by
    its most likely answer."""
    names = {cluster.meaning: cluster.text for cluster in tree.clusters}
    answers = [{"text": a.text, "low": a.low, "high": a.high, "meaning": label(a.meaning)} for a in tree.answers]

    def shown(one: Branch) -> Made:
        out: Made = {"text": one.text, "mass": one.mass, "children": [shown(child) for child in one.children]}
        if one.answer is not None:
            out |= {"low": one.answer.low, "high": one.answer.high, "meaning": names[one.meaning]}
        return out

    likely = sum(answer.low >= DRAWN for answer in tree.answers)
    return {
        "question": question,
        "answers": answers[:listed],
        "meanings": [{"text": c.text, "low": c.low, "high": c.high} for c in tree.clusters[:8]],
        "unexplored": tree.unexplored,
        "expansions": tree.expansions,
        "branches": shown(branches(tree, decode, max(1, min(most, likely)))),
    }


def examples(found: ExamResult) -> list[Made]:
    """Answers at the main temperature, token by token with probabilities, and the fork of each question's first answer
    where it was looked for."""
    target, t = found.target, found.settings.main
    codec, token_bytes = target.source.codec, target.token_bytes
    evidence, decided = iter(found.evidence[t].answers), iter(found.evidence[t].forks)

    def tokens(trace: Trace) -> list[Made]:
        """The tokens' texts and probabilities; where bytes are unknown, with a space before each."""
        return answer_tokens(trace, codec.stop, token_bytes or (lambda token: f" {codec.decode([token])}".encode()))

    out = []
    for question, traces in zip(target.questions, found.traces[t][:EXAMPLES], strict=False):
        judged = [next(evidence) for _ in traces]
        forks = next(decided, None) if traces[0].steps else None  # an empty answer has no word that decided it
        fork: Made = {"fork": None, "fork_p": None, "own": None, "others": []}
        if forks is not None:
            fork = {"fork": forks.fork, "fork_p": forks.p, "own": [forks.before[0], *(p.own for p in forks.positions)]}
            fork["others"] = [
                {"token": codec.decode([other.token]).strip(), "p": other.p,
                 "meanings": [{"text": label(m), "share": share} for m, share in other.meanings[:3]]}
                for other in forks.others
            ]  # fmt: skip
        said = [
            {"text": codec.decode(trace.tokens), "right": a.right, "ended": trace.ended, "tokens": tokens(trace)}
            for trace, a in zip(traces[:3], judged, strict=False)
        ]
        about = {"question": question.question, "context": question.context, "references": list(question.answers[:4])}
        out.append({**about, "answers": said, **fork})
    return out


def after_error(evidence: Evidence) -> Made:
    """The feedback experiment's figures by distance, and its matched pairs."""
    shown = effect_of(evidence)
    return {
        **{name: [{**f.json(), "distance": d} for d, f in enumerate(getattr(shown, name), 1)] for name in BY_DISTANCE},
        "ended": [{"distance": d, **{arm: row[d - 1] for arm, row in shown.ended.items()}}
                  for d in range(1, len(shown.difference) + 1)],
        "further": {name: figure.json() for name, figure in shown.further.items()},
        "pairs": pairs(evidence),
    }  # fmt: skip


def pairs(evidence: Evidence) -> Made:
    """The number of matched pairs, and of prefixes without one (``dropped``); ``ratio``: how many times as likely as
    the wrong word its partner is (min, median, max), and ``ratio_by_rule``: the median without matching."""
    forced = [one.intervention for one in evidence.outcomes]
    ratios = [math.exp(one.rarity) for one in forced if one.is_matched]
    by_rule = [math.exp(one.rarity) for one in forced if one.by_rule]
    return {
        "matched": len(ratios),
        "dropped": evidence.dropped + sum(not one.is_matched for one in forced),
        "ratio": [min(ratios), median(ratios), max(ratios)] if ratios else None,
        "ratio_by_rule": median(by_rule) if by_rule else None,
    }


def render(document: Document, lang: str = "en") -> str:
    """The page ``report.html`` of an examination. Raises UsageError for an unknown language."""
    return html.render(partial(_page, document), lang, document["model"])


def tree_page(tree: Tree, question: str, decode: Decode, lang: str) -> str:
    """An HTML page for a single tree of answers."""
    document = {"trees": [tree_document(tree, question, decode, 50, 20)]}

    def page(say: Say) -> html.Document:
        shown = Section([tree_picture(document, say), flow(document, say)])
        return html.Document(say, say("exam.tree_title"), say("quote", text=question), [shown])

    return html.render(page, lang, question)


def verdict(document: Document, say: Say) -> list[str]:
    """The verdict: paragraphs in plain words with figures, about what was measured only."""
    known = document["figures"][document["main"]]
    figures = {k: f for k, f in known.items() if f["value"] is not None}
    t, n = say.plain(float(document["main"])), document["questions"]
    without: dict[str, None] = {}

    def said(name: str) -> str:
        """A figure in a sentence; the reason for a missing interval is given once, at the end."""
        figure = figures[name]
        if figure.get("low") is not None or not figure.get("why"):
            return say.figure(figure, name)
        without[say.why(figure["why"])] = None
        return say.value(figure, name) if is_share(figure, name) else say.plain(figure["value"])

    out = [say("exam.no_beginnings")] if document.get("goes_on") is False else []
    if document.get("skipped"):
        out.append(say("exam.skipped", n=document["skipped"]))
    out.append(say("exam.asked" if n != 1 else "exam.asked_one", n=n, t=t))
    right: Any = {"judge": document["judge"], **figures["right"]} if "right" in figures else None
    if right is not None:
        asked = {"decided": said("decided"), "n": say.count(figures["decided"]["n"])} if "decided" in figures else {}
        out.append(
            say("exam.decided" if asked else "exam.right", **asked, right=said("right"), judge=say.judge_note(right))
        )
    if "word_for_word" in figures:
        out.append(say("exam.word_for_word", same=said("word_for_word")))
    out[-1] = _with_full_stop(out[-1])
    if right is not None:
        out += say.bounds_sentences(right, "right")
    if (same := figures.get("same_meaning")) is not None:
        out += [say("exam.same", same=said("same_meaning")), *say.bounds_sentences(same, "same_meaning")]
    second = feedback(document, say)
    if "fork" in figures:
        second.append(say("exam.forks", share=said("fork"), n=figures["fork"]["n"]))
        if "fork_word" in figures:
            second.append(say("exam.fork_word", word=said("fork_word")))
        second[-1] = _with_full_stop(second[-1])
    if "s" in figures:
        second.append(say("exam.s", s=said("s")))
    if known.get("calibration", {}).get("why") == OTHER_MANNERS:
        second.append(say("exam.other_manners"))
    if "best_temperature" in figures:
        second.append(say("exam.best", t=said("best_temperature")))
    if without:
        (second or out).append(say("exam.without", why="; ".join(without)))
    return [" ".join(sentences) for sentences in (out, second) if sentences]


def _with_full_stop(said: str) -> str:
    """The sentence with a full stop, where its continuation was not measured."""
    return said if said.endswith(".") else f"{said.rstrip(',;:')}."


def feedback(document: Document, say: Say) -> list[str]:
    """Sentences about the effect of a wrong word compared with an equally rare correct one, by edit distance."""
    found = document.get("after_error", {}).get(document["main"])
    if not found or "pairs" not in found:
        return []
    pairs, up = found["pairs"], found["cautious"][0]
    counts = {"n": say.count(pairs["matched"]), "dropped": say.count(pairs["dropped"])}
    if up["value"] is None:
        return [say("exam.rare_few", **counts)]
    low, high = up.get("low"), up.get("high")  # without an interval it may be anything
    key = "rare" if (low or 0) > 0 else "rare_less" if (high or 0) < 0 else "rare_open"
    out = [say(f"exam.{key}", up=say.figure(up), ratio=say.number(pairs["ratio"][1], 1), **counts)]
    further = {name: say.figure(figure) for name, figure in found["further"].items()}
    if "wrong_edits" in further:
        out.append(say("exam.further", m=len(found["cautious"]), **further))
    return out


def _page(document: Document, say: Say) -> html.Document:
    shown, time, figures = pictures(document, say), document["time"], document["figures"]
    asked = [
        RichText(f"τ = {say.plain(float(t))}", say("exam.asked_each", n=say.count(document["questions"]),
                                                each=1 if t == "0" else document["settings"]["n"]))
        for t in figures
    ]  # fmt: skip
    missing = ", ".join(say.measure(name) for name in document["missing"])
    seconds = say("exam.time", seconds=say.seconds(time["seconds"]), passes=say.count(time["passes"]))

    def section(name: str, title: str, *parts: Part | None) -> Section:
        return Section(parts, say(title), name)

    def drawn(*names: str) -> list[Picture | None]:
        return [shown.get(name) for name in names]

    examples: list[Part] = [Block("question", one) for one in document["examples"]]
    if examples:
        examples = [Text(say("exam.answers_how")), Block("legend"), *examples]
    sections = [
        section("verdict", "section.verdict", *texts(verdict(document, say), "verdict")),
        section("figures", "exam.figures", Text(say("exam.figures_how")),
                *html.figures(list(figures.values()), asked, say),
                Text(say("exam.not_measured", names=missing), "small") if missing else None, *drawn("temperatures")),
        section("divergence", "section.divergence", *drawn("survival", "feedback", "calibration", "selective")),
        section("trees", "exam.trees", *drawn("tree", "flow")),
        section("answers", "exam.answers", *examples),
        section("formula", "exam.formula",
                Formula(shown["formula"], figures[document["main"]].get("s", {}).get("value"))),
        section("cost", "section.cost", *drawn("cost"), Text(seconds, "small")),
    ]  # fmt: skip
    return html.Document(say, say("exam.title"), document["model"], sections, contents=True)
