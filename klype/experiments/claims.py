"""The article's claims: what each is tested on, what rules it, the figures beside it, and the sentence for the ruling.

A claim is ruled by a test (Holm's procedure over all of a document), by counting where one example is
enough, by arithmetic, or by how such models are made; the sentences are in ``klype/words/article_*.toml``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from klype.examine.error_feedback import FEW, InterventionOutcome
from klype.examine.evidence import JudgedAnswer
from klype.examine.hypothesis_tests import (
    Outcome,
    Ruling,
    constant_hazard,
    effect,
    from_interval,
    independent_errors,
    last_position,
    more,
    stretch_hazards,
)
from klype.examine.survival import hazards, survival, weibull_shape
from klype.values import Figure

Document = Mapping[str, Any]
# placeholder in the sentence → (name of the measure, figure)
Shown = dict[str, tuple[str, Mapping[str, Any]]]
How = Literal["test", "count", "example", "arithmetic", "construction", "above", "nothing"]
# an answer has recovered if nothing else is wrong within this many words
RECOVERED = 3
# an error is made more likely if its probability rises by more than this
LIKELIER = 0.05
# the effect grows if its slope per word exceeds this
GROWTH = 0.01
# the direction changes when more than this share of words (beyond chance), or of answers' meanings, differ
PARTED = 0.05
# a share of pairs below this is rare
SELDOM = 0.2
# share of answers from which a gain counts as large
MUCH = 0.1
# answers are more diverse when their entropy is higher by at least this many nats
DIVERSE = 0.1
# by at least this share, fewer answers must be right, or more repeat
POOR = 0.05


@dataclass(frozen=True, slots=True)
class ArticleClaim:
    """``name`` finds its words, which hold ``shown`` and ``plain``; ``how`` it is ruled, by which ``tests`` where by
    tests; ``picture``: the picture that belongs to it. Shown figures that have no interval are compared shares."""

    name: str
    ruling: Ruling
    how: How = "nothing"
    shown: Shown = field(default_factory=dict)
    plain: Mapping[str, str | float] = field(default_factory=dict)
    tests: tuple[str, ...] = ()
    picture: str = ""


# None: what it needs was not measured
Claimed = ArticleClaim | None


def claims(made: Document) -> list[ArticleClaim]:
    """In the order of the article."""
    rules: list[Callable[[Document], Claimed]] = [
        not_likeliest, greedy, diverse, seldom_same, both_ways, direction, formula, constant, independent,
        meaning, feedback, grows, no_way_back, exponential, passes, targets,
    ]  # fmt: skip
    return [rule(made) or ArticleClaim(rule.__name__, "undetermined") for rule in rules]


def _figure(made: Document, name: str, t: str = "") -> dict[str, Any] | None:
    """A figure (or one that only the article asks for) that has a value."""
    figure = made["figures"].get(t or made["main"], {}).get(name, made["extra"].get(name))
    return figure if figure is not None and figure["value"] is not None else None


def _ruled(made: Document, *names: str) -> list[Ruling]:
    return [made["rulings"].get(name, "undetermined") for name in names]


def _all(rulings: list[Ruling]) -> Ruling:
    """That all hold: one that does not is enough against it."""
    if "does_not_support" in rulings:
        return "does_not_support"
    return "supports" if set(rulings) == {"supports"} else "undetermined"


def _tested(
    made: Document, name: str, shown: Shown, plain: Mapping[str, str | float], picture: str = ""
) -> ArticleClaim:
    return ArticleClaim(name, _ruled(made, name)[0], "test", shown, plain, (name,), picture)


def _example(name: str, share: Mapping[str, Any] | None, plain: Mapping[str, float], picture: str = "") -> Claimed:
    """One example is enough."""
    if share is None:
        return None
    ruling: Ruling = "supports" if share["value"] > 0 else "undetermined"
    return ArticleClaim(name, ruling, "example", {"share": ("right", share)}, plain, (), picture)


def not_likeliest(made: Document) -> Claimed:
    """Not always the most probable word is taken: one that is not is enough."""
    return _example("not_likeliest", _figure(made, "not_likeliest"), {"t": float(made["main"])})


def greedy(made: Document) -> Claimed:
    """Temperature 0 gives low quality and repetition: both."""
    cold, warm = _figure(made, "right", "0"), _figure(made, "right")
    loops, warm_loops = _figure(made, "repetition", "0"), _figure(made, "repetition")
    if cold is None or warm is None or loops is None or warm_loops is None or made["main"] == "0":
        return None
    names = ("greedy_poor", "greedy_repeats")
    shown: Shown = {"cold": ("right", cold), "warm": ("right", warm), "loops": ("repetition", loops),
                    "warm_loops": ("repetition", warm_loops)}  # fmt: skip
    ruling = _all(_ruled(made, *names))
    return ArticleClaim("greedy", ruling, "test", shown, {"t": float(made["main"])}, names, "temperatures")


def diverse(made: Document) -> Claimed:
    """Above 1, answers are more diverse."""
    hottest = max(made["figures"], key=float)
    low, high = _figure(made, "answer_entropy"), _figure(made, "answer_entropy", hottest)
    if low is None or high is None or hottest == made["main"]:
        return None
    plain = {"t": float(made["main"]), "hot": float(hottest)}
    return _tested(made, "diverse", {"low": ("answer_entropy", low), "high": ("answer_entropy", high)}, plain)


def seldom_same(made: Document) -> Claimed:
    """Word for word the same answer is seldom given twice."""
    same = _figure(made, "same_text")
    if same is None:
        return None
    return _tested(made, "seldom_same", {"same": ("same_text", same)}, {"t": float(made["main"])})


def both_ways(made: Document) -> Claimed:
    """Wrong once, right when asked again: one question is enough."""
    plain = {"n": made["settings"]["n"], "t": float(made["main"])}
    return _example("both_ways", _figure(made, "both_ways"), plain, "tree")


def direction(made: Document) -> Claimed:
    """Another word changes where the text goes, by more than two texts that go on from one word differ; where nobody
    knows what can follow, the meaning of answers that go on from it."""
    if parted := _figure(made, "parted"):
        moved = made["after_error"][made["main"]]["moved"][0]
        return _tested(made, "direction", {"parted": ("", parted), "moved": ("moved", moved)}, {})
    less = _figure(made, "feedback_meaning")
    if less is None:
        return None
    return _tested(made, "direction_meaning", {"less": ("feedback_meaning", less)}, {"n": less["n"]})


def formula(made: Document) -> Claimed:
    """(1 − S)^n: the slip, and what holds."""
    s, shown, plain = _figure(made, "s"), Shown(), dict[str, str]()
    if s is None:
        plain = {"s": "S", "right": "Sⁿ", "printed": "(1 − S)ⁿ"}
    else:
        low, high = s.get("low"), s.get("high")
        share = _power(s["value"], low, high, s["n"])
        wrong = _power(1 - s["value"], None if high is None else 1 - high, None if low is None else 1 - low, s["n"])
        shown = {"s": ("s", s), "right": ("right", share), "printed": ("right", wrong)}
    return ArticleClaim("formula", "does_not_support", "arithmetic", shown, plain, (), "formula")


def _power(value: float, low: float | None, high: float | None, n: int, words: int = 100) -> dict[str, Any]:
    least, most = (None if end is None else end**words for end in (low, high))
    return Figure(value**words, least, most, n).json()


def constant(made: Document) -> Claimed:
    """Every word is right with the same probability, wherever it stands."""
    found = made["dependence"]
    if found is None or not found["stretches"]:
        return None
    shown: Shown = {f"h{i}": ("", {"value": h, "unit": "share"}) for i, h in enumerate(found["stretches"], 1)}
    return _tested(made, "constant", shown, {"n": found["n"], "texts": found["texts"]}, _curve(found))


def independent(made: Document) -> Claimed:
    """Errors are independent: given the position, no texts err more than others."""
    found = made["dependence"]
    if found is None:
        return None
    shown: Shown = {"k": ("survival", found["k"]), "reference": ("survival", found["reference"]),
                    "difference": ("", found["difference"])}  # fmt: skip
    return _tested(made, "independent", shown, {"n": found["n"], "texts": found["texts"]}, _curve(found))


def _curve(found: Document) -> str:
    return "documents" if found["of"] == "documents" else "survival"


def meaning(made: Document) -> Claimed:
    """By meaning, being right is much likelier than word for word."""
    right, same, gain = (_figure(made, name) for name in ("right", "word_for_word", "meaning_gain"))
    if right is None or same is None or gain is None:
        return None
    shown: Shown = {"right": ("right", right), "same": ("word_for_word", same), "gain": ("", gain)}
    return _tested(made, "meaning", shown, {})


def feedback(made: Document) -> Claimed:
    """An error makes the next likelier than a right word as rare does; errors by edit distance."""
    found = made["after_error"].get(made["main"])
    if found is None or found["cautious"][0]["value"] is None:
        return None
    pairs = found["pairs"]
    shown: Shown = {"near": ("", found["cautious"][0]), "up": ("", found["difference"][0])}
    plain = {"n": pairs["matched"], "dropped": pairs["dropped"], "ratio": pairs["ratio"][1]}
    if pairs["ratio_by_rule"] is not None:
        plain["unmatched"] = pairs["ratio_by_rule"]
    return _tested(made, "feedback", shown, plain, "feedback")


def grows(made: Document) -> Claimed:
    """The word after that is likelier still to be wrong: the slope of the effect over all distances."""
    growth = _figure(made, "growth")
    if growth is None:
        return None
    rows = made["after_error"][made["main"]]["cautious"]
    shown: Shown = {"first": ("", rows[0]), "last": ("", rows[-1]), "growth": ("", growth)}
    return _tested(made, "grows", shown, {"m": len(rows)}, "feedback")


def no_way_back(made: Document) -> Claimed:
    """There is no way back after an error: the word stays, by construction; how much of what follows is wrong is told
    beside the same after a right word."""
    share, beside = _figure(made, "recovery"), _figure(made, "clean_beside")
    if share is None or beside is None:
        return None
    found = {"share": share, "beside": beside, "ended": made["extra"]["ended"]}
    shown: Shown = {key: ("recovery", figure) for key, figure in found.items()}
    return ArticleClaim("no_way_back", "supports", "construction", shown, {"m": RECOVERED}, (), "feedback")


def exponential(made: Document) -> Claimed:
    """The chance of being right falls exponentially with length: by the same share at every word, for all texts."""
    found, tests = made["dependence"], ("constant", "independent")
    if found is None or found["shape"]["value"] is None:
        return None
    shown: Shown = {"shape": ("weibull_shape", found["shape"]), "k": ("survival", found["k"])}
    ruling = _all(_ruled(made, *tests))
    return ArticleClaim("exponential", ruling, "above", shown, {"n": found["n"]}, tests, _curve(found))


def passes(made: Document) -> Claimed:
    """The whole model is used for every word."""
    own, tokens = _figure(made, "passes"), _figure(made, "tokens")
    if own is None or tokens is None:
        return None
    ruling: Ruling = "supports" if abs(own["value"] - tokens["value"]) < 1e-9 else "does_not_support"
    shown: Shown = {"passes": ("passes", own), "tokens": ("tokens", tokens)}
    return ArticleClaim("passes", ruling, "count", shown, {}, (), "cost")


def targets(made: Document) -> Claimed:
    """Training towards one right word biases the probabilities: what is seen here cannot tell the cause."""
    figure = _figure(made, "calibration")
    shown: Shown = {} if figure is None else {"gap": ("calibration", figure)}
    return ArticleClaim("targets", "undetermined", "nothing", shown, {}, (), "calibration")


# what they are tested on


def along_texts(texts: Sequence[JudgedAnswer]) -> dict[str, Outcome | None]:
    """Whether all positions are alike, and whether errors are independent given the position."""
    if not any(text.s for text in texts):
        return {}
    table_MTE = hazards(texts)
    return {"constant": constant_hazard(table_MTE), "independent": independent_errors(table_MTE)}


def dependence_facts(texts: Sequence[JudgedAnswer], of: str) -> dict[str, Any] | None:
    """The figures beside those tests, at the last position that they look at."""
    n = last_position(table_MTE := hazards(texts)) if any(text.s for text in texts) else 0
    if n < 1:
        return None
    curve = survival(texts)
    at = {"k": curve.k, "reference": curve.by_position, "difference": curve.difference}
    return {
        "of": of,
        "texts": len(texts),
        "n": n,
        "stretches": stretch_hazards(table_MTE),
        "shape": weibull_shape(texts).json(),
        **{name: figures[n - 1].json() for name, figures in at.items()},
    }


def after_forced(found: Sequence[InterventionOutcome]) -> dict[str, Outcome | None]:
    """Feedback and its growth over all distances, on matched pairs by edit distance; the direction, by rule."""
    out: dict[str, Outcome | None] = {}
    matched = [one for one in found if one.intervention.matched]
    if len(matched) >= FEW:
        up_ND = np.array([np.subtract(row["wrong"], row["near"]) for row in map(InterventionOutcome.cautious, matched)])
        asked = [one.intervention.question for one in matched]
        out["feedback"] = effect(up_ND[:, 0], asked, LIKELIER)
        if up_ND.shape[1] > 1:
            out["grows"] = effect(up_ND @ slope(up_ND.shape[1]), asked, GROWTH)
    parted = [
        (one.parted, one.intervention.question) for one in found if one.intervention.by_rule and one.parted is not None
    ]
    if len(parted) >= FEW:
        out["direction"] = effect([value for value, _ in parted], [question for _, question in parted], PARTED)
    return out


def slope(distances: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Weights that make the least-squares slope over distances 1, 2, …"""
    off_D = np.arange(distances) - (distances - 1) / 2
    return np.asarray(off_D / (off_D**2).sum())


def of_figures(made: Document) -> dict[str, Outcome | None]:
    """Tests that need no more than figures and their intervals."""
    t, none = made["main"], {"value": None}
    hottest = max(made["figures"], key=float)

    def figure(name: str, at: str = t) -> Document:
        found: Document = made["figures"].get(at, {}).get(name) or none
        return found

    less = figure("feedback_meaning")
    same = from_interval(figure("same_text"), SELDOM)  # the claim is that it is less: the sides change places
    out: dict[str, Outcome | None] = {
        "seldom_same": same and replace(same, supports=same.against, against=same.supports),
        "meaning": from_interval(made["extra"]["meaning_gain"], MUCH),
        "direction_meaning": from_interval(less if less.get("n", 0) >= FEW else none, PARTED),
    }
    if hottest != t:
        out["diverse"] = more(figure("answer_entropy", hottest), figure("answer_entropy"), DIVERSE)
    if t != "0":
        out["greedy_poor"] = more(figure("right"), figure("right", "0"), POOR)
        out["greedy_repeats"] = more(figure("repetition", "0"), figure("repetition"), POOR)
    return out
