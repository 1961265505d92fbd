"""The article, claim by claim: what an examination of a given model says to each.

A claim is *supported*, *bent* (true with a change), *refuted* or *open* (not measured, or within the uncertainty), by a
rule on figures and their intervals; the figures stand beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from klype.answers.traces import replace
from klype.examine.document import document
from klype.examine.examination import Examined
from klype.examine.examination_pictures import pictures
from klype.examine.feedback import Aftermath
from klype.examine.intervals import mean_by_question
from klype.examine.report import page
from klype.examine.say import Say
from klype.examine.spread import AT
from klype.values import Figure
from klype.words import LANGUAGES, words

Document = Mapping[str, Any]
Ruling = Literal["supported", "bent", "refuted", "open"]
Shown = dict[str, tuple[str, dict[str, Any]]]
"""placeholder → (measure's name, figure)"""
SELDOM, OFTEN = 0.2, 0.5
"""Shares of pairs that are equal: below the one is seldom, above the other is not."""
MUCH = 0.1
"""Share of answers from which on a gain is a great one."""
RECOVERED = 3
"""Words within which nothing more may be wrong."""
NEVER = 0.05
"""A share below this is as good as none."""


@dataclass(frozen=True, slots=True)
class Claim:
    """``name`` finds its words, which hold ``shown`` and ``plain``; ``picture``: the picture that belongs to it."""

    name: str
    ruling: Ruling
    shown: Shown = field(default_factory=dict)
    plain: Mapping[str, str | float] = field(default_factory=dict)
    picture: str = ""


def article(found: Examined) -> dict[str, Any]:
    """The examination's document with the claims: name, ruling and figures."""
    made = {**document(found), "extra": {k: f.json() for k, f in extras(found).items()}}
    made["claims"] = [
        {"claim": c.name, "ruling": c.ruling, "figures": {key: figure for key, (_, figure) in c.shown.items()}}
        for c in claims(made)
    ]
    return made


def extras(found: Examined) -> dict[str, Figure]:
    """What only the article asks for: words drawn that were not the likeliest, questions answered both ways, what
    judging by meaning adds to judging word for word, and what the experiment says beyond its own figures."""
    t = found.settings.main
    drawn, asked = [], []
    for question, group in zip(found.examinee.questions, found.traces[t], strict=True):
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
        **_experiment(found.evidence[t].aftermaths),
    }


def _experiment(found: Sequence[Aftermath]) -> dict[str, Figure]:
    """By how much an error is likelier still at the second word than at the first; how often nothing is wrong within
    ``RECOVERED`` words of a forced right one, and how many answers had ended by then after a forced wrong one."""
    known = [one for one in found if len(one.moved) >= 2]
    questions = [one.shock.question for one in known]

    def up(one: Aftermath, distance: int) -> float:
        return one.errors["wrong"][distance - 1] - one.errors["right"][distance - 1]

    last = [min(RECOVERED, len(one.moved)) - 1 for one in known]
    share = "share of answers"
    return {
        "growth": mean_by_question([up(one, 2) - up(one, 1) for one in known], questions, "difference of shares"),
        "clean_beside": mean_by_question(
            [one.clean["right"][at] for one, at in zip(known, last, strict=True)], questions, share
        ),
        "ended": mean_by_question(
            [one.ended["wrong"][at] for one, at in zip(known, last, strict=True)], questions, share
        ),
    }


def claims(made: Document) -> list[Claim]:
    """In the order of the article."""
    rules: list[Callable[[Document], Claim]] = [
        _not_likeliest, _greedy, _diverse, _seldom_same, _both_ways, _direction, _formula, _independent, _meaning,
        _feedback, _grows, _no_way_back, _exponential, _passes, _targets,
    ]  # fmt: skip
    return [rule(made) for rule in rules]


def write(folder: Path, made: Document, lang: str) -> Path:
    """``article.html``, both languages in it."""
    replace(folder / "article.html", render(made, lang).encode())
    return folder / "article.html"


def render(made: Document, lang: str) -> str:
    views = []
    for code in LANGUAGES:
        say = Say(code)
        drawn = pictures(made, say)
        rows = [_row(claim, say, drawn) for claim in claims(made)]
        counts = {ruling: sum(row["ruling"] == ruling for row in rows) for ruling in get_args(Ruling)}
        script = {"zero": say("formula.zero"), "half": say("formula.half", n="{n}"), "save": say("tools.save")}
        own = words(code, "article")
        head = {key: own(key) for key in ("title", "says", "measured")}
        asked = {"questions": made["questions"], "samples": made["settings"]["n"], "t": say.plain(float(made["main"]))}
        lead = own("lead", model=made["model"], n=len(rows), judge=say.judge(made["judge"]), **asked, **counts)
        views.append(
            {"lang": code, "say": say, "pictures": drawn, "script_words": script, "rows": rows, "lead": lead, **head}
        )
    return page("article.html.jinja", views, lang, document=made)


def sentences(made: Document, lang: str) -> list[tuple[str, str, str]]:
    """(claim, ruling, what was measured) as text, for a terminal."""
    say = Say(lang)
    return [(row["says"], row["ruled"], row["found"]) for row in (_row(c, say, {}) for c in claims(made))]


def _row(claim: Claim, say: Say, drawn: Mapping[str, Any]) -> dict[str, Any]:
    own = words(say.lang, "article")
    values = {key: say.figure(figure, name) for key, (name, figure) in claim.shown.items()}  # type: ignore[arg-type]
    plain = {key: value if isinstance(value, str) else say.plain(value) for key, value in claim.plain.items()}
    key = f"{claim.name}.{claim.ruling}"
    text = own(key, **values, **plain) if claim.shown or claim.plain else own("unmeasured")
    return {
        "name": claim.name,
        "says": own(f"{claim.name}.says"),
        "ruling": claim.ruling,
        "ruled": own(f"ruling.{claim.ruling}"),
        "found": text,
        "picture": claim.picture if claim.picture in drawn else "",
    }


def _figure(made: Document, name: str, t: str = "") -> dict[str, Any] | None:
    figure = made["figures"].get(t or made["main"], {}).get(name)
    return figure if figure is not None and figure["value"] is not None else None


def _ends(figure: Mapping[str, Any]) -> tuple[float, float]:
    """Without an interval anything may be true."""
    low, high = figure.get("low"), figure.get("high")
    return (-math.inf if low is None else float(low)), (math.inf if high is None else float(high))


def _above(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Clearly more: the whole interval is."""
    return _ends(a)[0] > _ends(b)[1]


def _not_likeliest(made: Document) -> Claim:
    """Not always the most probable word is taken."""
    figure = made["extra"]["not_likeliest"]
    if figure["value"] is None:
        return Claim("not_likeliest", "open")
    ruling: Ruling = "supported" if _ends(figure)[0] > 0 else "open"
    return Claim("not_likeliest", ruling, {"share": ("right", figure)}, {"t": float(made["main"])})


def _greedy(made: Document) -> Claim:
    """Temperature 0 gives low quality and repetition."""
    cold, warm = _figure(made, "right", "0"), _figure(made, "right")
    loops, warm_loops = _figure(made, "repetition", "0"), _figure(made, "repetition")
    if cold is None or warm is None or loops is None or warm_loops is None or made["main"] == "0":
        return Claim("greedy", "open")
    shown: Shown = {"cold": ("right", cold), "warm": ("right", warm), "loops": ("repetition", loops),
                    "warm_loops": ("repetition", warm_loops)}  # fmt: skip
    against = [_above(warm, cold), _above(loops, warm_loops)]
    for_it = [_above(cold, warm), _above(warm_loops, loops)]
    ruling: Ruling = "open"
    if any(against):
        ruling = "bent" if any(for_it) else "supported"
    elif any(for_it):
        ruling = "refuted"
    return Claim("greedy", ruling, shown, {"t": float(made["main"])}, picture="temperatures")


def _diverse(made: Document) -> Claim:
    """Above 1, answers are more diverse."""
    hottest = max(made["figures"], key=float)
    low, high = _figure(made, "answer_entropy"), _figure(made, "answer_entropy", hottest)
    if low is None or high is None or hottest == made["main"]:
        return Claim("diverse", "open")
    ruling: Ruling = "supported" if _above(high, low) else "refuted" if _above(low, high) else "open"
    plain = {"t": float(made["main"]), "hot": float(hottest)}
    return Claim("diverse", ruling, {"low": ("answer_entropy", low), "high": ("answer_entropy", high)}, plain)


def _seldom_same(made: Document) -> Claim:
    """Word for word the same answer is seldom given twice."""
    figure = _figure(made, "same_text")
    if figure is None:
        return Claim("seldom_same", "open")
    low, high = _ends(figure)
    ruling: Ruling = "open"
    if high < SELDOM:
        ruling = "supported"
    elif low >= OFTEN:
        ruling = "refuted"
    elif low >= SELDOM:
        ruling = "bent"
    return Claim("seldom_same", ruling, {"same": ("same_text", figure)}, {"t": float(made["main"])})


def _both_ways(made: Document) -> Claim:
    """Wrong once, right when asked again."""
    figure = made["extra"]["both_ways"]
    if figure["value"] is None:
        return Claim("both_ways", "open")
    ruling: Ruling = "supported" if _ends(figure)[0] > 0 and figure["value"] > 0 else "open"
    plain = {"n": made["settings"]["n"], "t": float(made["main"])}
    return Claim("both_ways", ruling, {"share": ("right", figure)}, plain, picture="tree")


def _direction(made: Document) -> Claim:
    """Another word changes where the text goes: what is likely after it where that can be read, else the meaning of
    answers that go on from it."""
    moved = made.get("after_error", {}).get(made["main"], {}).get("moved", [None])[0]
    if moved is not None and moved["value"] is not None:
        return Claim("direction", "supported" if _ends(moved)[0] > 0 else "open", {"moved": ("moved", moved)})
    return _direction_meaning(made)


def _direction_meaning(made: Document) -> Claim:
    """The same where nobody knows what can follow: whether a right answer with another word in it is still right."""
    less = _figure(made, "feedback_meaning")
    if less is None:
        return Claim("direction", "open")
    low, high = _ends(less)
    ruling: Ruling = "supported" if low > 0 else "refuted" if high < 0 else "open"
    return Claim("direction_meaning", ruling, {"less": ("feedback_meaning", less)})


def _formula(made: Document) -> Claim:
    """(1 − S)^n: the slip, and what holds."""
    s = _figure(made, "s")
    if s is None:
        return Claim("formula", "bent", {}, {"s": "S", "right": "Sⁿ", "printed": "(1 − S)ⁿ"}, "formula")
    low, high = _ends(s) if s.get("low") is not None else (None, None)
    share = _power(s["value"], low, high, s["n"])
    wrong = _power(1 - s["value"], None if high is None else 1 - high, None if low is None else 1 - low, s["n"])
    shown: Shown = {"s": ("s", s), "right": ("right", share), "printed": ("right", wrong)}
    return Claim("formula", "bent", shown, {}, "formula")


def _power(value: float, low: float | None, high: float | None, n: int, words: int = 100) -> dict[str, Any]:
    least, most = (None if end is None else end**words for end in (low, high))
    return Figure(value**words, least, most, n).json()


def _independent(made: Document) -> Claim:
    """Errors are independent (assumed for the formula, withdrawn afterwards)."""
    figure = _figure(made, "independence")
    if figure is None:
        return Claim("independent", "open")
    low, high = _ends(figure)
    ruling: Ruling = "refuted" if low > 0 or high < 0 else "open"
    told = [f for f in made["would_survive"].get(made["main"], []) if f["value"] is not None]
    last = min(AT, len(told) or AT)
    return Claim("independent", ruling, {"difference": ("independence", figure)}, {"n": last}, "survival")


def _meaning(made: Document) -> Claim:
    """By meaning, being right is much likelier than word for word."""
    right, same = _figure(made, "right"), _figure(made, "word_for_word")
    gain = made["extra"]["meaning_gain"]
    if right is None or same is None or gain["value"] is None:
        return Claim("meaning", "open")
    low = _ends(gain)[0]
    ruling: Ruling = "supported" if low >= MUCH else "bent" if low > 0 else "open"
    shown: Shown = {"right": ("right", right), "same": ("word_for_word", same), "gain": ("", gain)}
    return Claim("meaning", ruling, shown)


def _feedback(made: Document) -> Claim:
    """An error makes the next likelier. Beside it a right word as rare as the wrong one: rarity alone is no error."""
    up, times = _figure(made, "feedback"), _figure(made, "feedback_ratio")
    beside = made.get("after_error", {}).get(made["main"], {}).get("beside_near", [None])[0]
    if up is None or times is None or beside is None or beside["value"] is None:
        return Claim("feedback", "open")
    low, high = _ends(up)
    ruling: Ruling = "open"
    if low > 0:
        ruling = "supported" if _ends(beside)[0] > 0 else "bent"
    elif high < 0:
        ruling = "refuted"
    shown: Shown = {"up": ("feedback", up), "times": ("feedback_ratio", times), "near": ("feedback", beside)}
    return Claim("feedback", ruling, shown, {}, "feedback")


def _grows(made: Document) -> Claim:
    """The word after that is likelier still to be wrong: the second beside the first, paired by beginning."""
    rows = made["feedback"].get(made["main"], [])
    growth = made["extra"]["growth"]
    if len(rows) < 2 or rows[0]["value"] is None or growth["value"] is None:
        return Claim("grows", "open")
    low, high = _ends(growth)
    ruling: Ruling = "supported" if low > 0 else "refuted" if high < 0 else "open"
    shown: Shown = {"first": ("feedback", rows[0]), "second": ("feedback", rows[1]), "growth": ("feedback", growth)}
    return Claim("grows", ruling, shown, {}, "feedback")


def _no_way_back(made: Document) -> Claim:
    """There is no way back after an error: the word stays, by construction; whether all that follows is wrong too is
    measured, beside the same after a right word."""
    figure, beside, ended = _figure(made, "recovery"), made["extra"]["clean_beside"], made["extra"]["ended"]
    if figure is None or beside["value"] is None:
        return Claim("no_way_back", "open")
    low, high = _ends(figure)
    ruling: Ruling = "supported" if high < NEVER else "bent" if low > NEVER else "open"
    shown: Shown = {"share": ("recovery", figure), "beside": ("recovery", beside), "ended": ("recovery", ended)}
    return Claim("no_way_back", ruling, shown, {"m": RECOVERED}, "feedback")


def _exponential(made: Document) -> Claim:
    """The chance of being right falls exponentially with length: a constant hazard, shape 1."""
    figure = _figure(made, "weibull_shape")
    if figure is None:
        return Claim("exponential", "open")
    low, high = _ends(figure)
    ruling: Ruling = "bent" if high < 1 or low > 1 else "supported" if high < 2 * low else "open"
    return Claim("exponential", ruling, {"shape": ("weibull_shape", figure)}, {}, "survival")


def _passes(made: Document) -> Claim:
    """The whole model is used for every word."""
    passes, tokens = _figure(made, "passes"), _figure(made, "tokens")
    if passes is None or tokens is None:
        return Claim("passes", "open")
    ruling: Ruling = "supported" if abs(passes["value"] - tokens["value"]) < 1e-9 else "bent"
    return Claim("passes", ruling, {"passes": ("passes", passes), "tokens": ("tokens", tokens)}, {}, "cost")


def _targets(made: Document) -> Claim:
    """Training towards one right word biases the probabilities: what is seen here cannot tell the cause."""
    figure = _figure(made, "calibration")
    if figure is None:
        return Claim("targets", "open")
    return Claim("targets", "open", {"gap": ("calibration", figure)}, {}, "calibration")
