"""The article, claim by claim: what an examination of a given model says to each.

A claim is *supported*, *bent* (true with a change), *refuted* or *open* (not measured, or within the uncertainty), by a
rule on figures and their intervals; the figures stand beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from klype.answers.traces import replace
from klype.examine.document import document
from klype.examine.examination import Examined
from klype.examine.examination_pictures import pictures
from klype.examine.intervals import mean_by_question
from klype.examine.report import page
from klype.examine.say import Say
from klype.values import Figure
from klype.words import LANGUAGES, words

Document = Mapping[str, Any]
Ruling = Literal["supported", "bent", "refuted", "open"]
Shown = dict[str, tuple[str, dict[str, Any]]]
"""placeholder → (measure's name, figure)"""


@dataclass(frozen=True, slots=True)
class Claim:
    """``name`` finds its words; ``shown`` the figures that they hold; ``picture`` the picture that belongs to it."""

    name: str
    ruling: Ruling
    shown: Shown = field(default_factory=dict)
    plain: dict[str, str] = field(default_factory=dict)
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
    """What only the article asks for: words drawn that were not the likeliest, questions answered both ways, and what
    judging by meaning adds to judging word for word."""
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
    }


def claims(made: Document) -> list[Claim]:
    """In the order of the article."""
    rules: list[Callable[[Document], Claim]] = [
        _not_likeliest, _greedy, _diverse, _seldom_same, _both_ways, _formula, _independent, _meaning, _feedback,
        _grows, _no_way_back, _exponential, _passes, _targets,
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
        counts = {ruling: sum(row["ruling"] == ruling for row in rows) for ruling in ("supported", "bent", "refuted")}
        script = {"zero": say("formula.zero"), "half": say("formula.half", n="{n}"), "save": say("tools.save")}
        own = words(code, "article")
        head = {key: own(key) for key in ("title", "says", "measured")}
        lead = own("lead", model=made["model"], n=len(rows), **counts)
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
    key = f"{claim.name}.{claim.ruling}"
    text = own(key, **values, **claim.plain) if claim.shown or claim.plain else own("unmeasured")
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
    value = float(figure["value"])
    low, high = figure.get("low"), figure.get("high")
    return (value if low is None else float(low)), (value if high is None else float(high))


def _not_likeliest(made: Document) -> Claim:
    """Not always the most probable word is taken."""
    figure = made["extra"]["not_likeliest"]
    if figure["value"] is None:
        return Claim("not_likeliest", "open")
    ruling: Ruling = "supported" if _ends(figure)[0] > 0 else "open"
    return Claim("not_likeliest", ruling, {"share": ("right", figure)})


def _greedy(made: Document) -> Claim:
    """Temperature 0 gives low quality and repetition."""
    cold, warm = _figure(made, "right", "0"), _figure(made, "right")
    loops, warm_loops = _figure(made, "repetition", "0"), _figure(made, "repetition")
    if cold is None or warm is None or loops is None or warm_loops is None:
        return Claim("greedy", "open")
    shown: Shown = {"cold": ("right", cold), "warm": ("right", warm), "loops": ("repetition", loops),
                    "warm_loops": ("repetition", warm_loops)}  # fmt: skip
    worse, repeats = _ends(cold)[1] < _ends(warm)[0], _ends(loops)[0] > _ends(warm_loops)[1]
    better = _ends(cold)[0] > _ends(warm)[1]
    ruling: Ruling = "supported" if worse or repeats else "refuted" if better else "open"
    return Claim("greedy", ruling, shown, picture="temperatures")


def _diverse(made: Document) -> Claim:
    """Above 1, answers are more diverse."""
    hottest = max(made["figures"], key=float)
    low, high = _figure(made, "answer_entropy"), _figure(made, "answer_entropy", hottest)
    if low is None or high is None or hottest == made["main"]:
        return Claim("diverse", "open")
    ruling: Ruling = "supported" if _ends(high)[0] > _ends(low)[1] else "open"
    plain = {"t": made["main"], "hot": hottest}
    return Claim("diverse", ruling, {"low": ("answer_entropy", low), "high": ("answer_entropy", high)}, plain)


def _seldom_same(made: Document) -> Claim:
    """Word for word the same answer is seldom given twice."""
    figure = _figure(made, "same_text")
    if figure is None:
        return Claim("seldom_same", "open")
    low, high = _ends(figure)
    ruling: Ruling = "supported" if high < 0.5 else "bent" if low < 0.5 else "refuted"
    return Claim("seldom_same", ruling, {"same": ("same_text", figure)})


def _both_ways(made: Document) -> Claim:
    """Wrong once, right when asked again."""
    figure = made["extra"]["both_ways"]
    if figure["value"] is None:
        return Claim("both_ways", "open")
    ruling: Ruling = "supported" if _ends(figure)[0] > 0 and figure["value"] > 0 else "open"
    return Claim("both_ways", ruling, {"share": ("right", figure)}, picture="tree")


def _formula(made: Document) -> Claim:
    """(1 − S)^n: the slip, and what holds."""
    s = _figure(made, "s")
    if s is None:
        return Claim("formula", "bent", {}, {"s": "S", "right": "Sⁿ", "printed": "(1 − S)ⁿ"}, "formula")
    share = Figure(s["value"] ** 100).json()
    printed = Figure((1 - s["value"]) ** 100).json()
    shown: Shown = {"s": ("s", s), "right": ("right", share), "printed": ("right", printed)}
    return Claim("formula", "bent", shown, {}, "formula")


def _independent(made: Document) -> Claim:
    """Errors are independent (assumed for the formula, withdrawn afterwards)."""
    figure = _figure(made, "independence")
    if figure is None:
        return Claim("independent", "open")
    low, high = _ends(figure)
    ruling: Ruling = "refuted" if low > 0 or high < 0 else "open"
    return Claim("independent", ruling, {"difference": ("independence", figure)}, {}, "survival")


def _meaning(made: Document) -> Claim:
    """By meaning, being right is much likelier than word for word."""
    right, same = _figure(made, "right"), _figure(made, "word_for_word")
    if right is None or same is None:
        return Claim("meaning", "open")
    gain = made["extra"]["meaning_gain"]
    ruling: Ruling = "supported" if gain["value"] is not None and _ends(gain)[0] > 0 else "open"
    shown: Shown = {"right": ("right", right), "same": ("word_for_word", same), "gain": ("", gain)}
    return Claim("meaning", ruling, shown)


def _feedback(made: Document) -> Claim:
    """An error makes the next likelier."""
    up, times = _figure(made, "feedback"), _figure(made, "feedback_ratio")
    if up is None or times is None:
        return Claim("feedback", "open")
    low, high = _ends(up)
    ruling: Ruling = "supported" if low > 0 else "refuted" if high < 0 else "open"
    return Claim("feedback", ruling, {"up": ("feedback", up), "times": ("feedback_ratio", times)}, {}, "feedback")


def _grows(made: Document) -> Claim:
    """The word after that is likelier still to be wrong, and so on."""
    rows = made["feedback"].get(made["main"], [])
    known = [row for row in rows if row["value"] is not None]
    if len(known) < 2:
        return Claim("grows", "open")
    first, last = known[0], known[-1]
    ruling: Ruling = "open"
    if _ends(last)[1] < first["value"] and last["value"] < first["value"]:
        ruling = "refuted"
    elif _ends(last)[0] > first["value"]:
        ruling = "supported"
    shown: Shown = {"first": ("feedback", first), "last": ("feedback", last)}
    return Claim("grows", ruling, shown, {"d": str(last["distance"])}, "feedback")


def _no_way_back(made: Document) -> Claim:
    """There is no way back after an error."""
    figure = _figure(made, "recovery")
    if figure is None:
        return Claim("no_way_back", "open")
    low, high = _ends(figure)
    ruling: Ruling = "supported" if high < 0.05 else "bent" if low > 0.05 else "open"
    return Claim("no_way_back", ruling, {"share": ("recovery", figure)})


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
    """Training towards one right word biases the probabilities: needs training, so only what is seen here is told."""
    figure = _figure(made, "calibration")
    if figure is None:
        return Claim("targets", "open")
    return Claim("targets", "bent", {"gap": ("calibration", figure)}, {}, "calibration")
