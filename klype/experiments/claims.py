"""The article's claims: how each is ruled on, and the figures that are shown with it.

A claim is ruled on by a test (Holm's procedure over all tests of a document), by an example where one is enough, by
arithmetic, or by how such models are made. The sentences are in ``klype/words/article_*.toml``.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from klype.examine import hypothesis_tests
from klype.examine.error_feedback import FEW, InterventionOutcome
from klype.examine.evidence import JudgedAnswer
from klype.examine.hypothesis_tests import Outcome, Ruling, difference_above, from_interval, mean_above
from klype.examine.survival import hazards, survival, weibull_shape
from klype.values import Figure

Document = Mapping[str, Any]
# placeholder in the sentence → (name of the measure, figure as JSON)
Shown = dict[str, tuple[str, Mapping[str, Any]]]
How = Literal["test", "count", "example", "arithmetic", "construction", "above", "nothing"]
# number of words n of a text for the figures of the formula
WORDS = 100
# an answer has recovered if nothing else is wrong within this many words
RECOVERED = 3
# an error is made more likely if its probability rises by more than this
LIKELIER = 0.05
# the effect grows if its slope per word is more than this
GROWTH = 0.01
# the direction changes if more than this share of words (beyond chance), or of answers' meanings, differs
PARTED = 0.05
# a share of pairs below this is rare
SELDOM = 0.2
# a gain of more than this share of answers is large
MUCH = 0.1
# answers are more diverse if their entropy is higher by at least this many nats
DIVERSE = 0.1
# temperature 0 is worse if at least this share fewer answers are correct, or more repeat
POOR = 0.05


@dataclass(frozen=True, slots=True)
class ArticleClaim:
    """A claim and its ruling.

    ``name``: key of its sentences. ``how`` it is ruled on, and by which ``tests``. ``shown``, ``plain``: figures and
    other values in the sentence; figures without an interval are shares that are compared with each other.
    ``picture``: the one that belongs to it.
    """

    name: str
    ruling: Ruling
    how: How = "nothing"
    shown: Shown = field(default_factory=dict)
    plain: Mapping[str, str | float] = field(default_factory=dict)
    tests: tuple[str, ...] = ()
    picture: str = ""


class MissingFigureError(LookupError):
    """A figure that a claim needs was not measured."""


def claims(made: Document) -> list[ArticleClaim]:
    """All claims in the order of the article; undetermined where a figure that one needs was not measured."""
    rules: list[Callable[[Document], ArticleClaim]] = [
        not_likeliest, greedy, diverse, seldom_same, both_ways, direction, formula, constant, independent,
        meaning, feedback, grows, no_way_back, exponential, passes, targets,
    ]  # fmt: skip
    out = []
    for rule in rules:
        try:
            out.append(rule(made))
        except MissingFigureError:
            out.append(ArticleClaim(rule.__name__, "undetermined"))
    return out


def _figure(made: Document, name: str, t: str = "") -> Document:
    """The figure of that name at temperature ``t`` (the main one by default), or one of ``article.extras``. Raises
    MissingFigureError if it has no value."""
    figure: Document = made["figures"].get(t or made["main"], {}).get(name) or made["extra"].get(name) or {}
    if figure.get("value") is None:
        raise MissingFigureError(name)
    return figure


def _pick(made: Document, **names: str) -> Shown:
    """The figures of these names by placeholder."""
    return {placeholder: (name, _figure(made, name)) for placeholder, name in names.items()}


def _dependence(made: Document) -> tuple[Document, str]:
    """``dependence_facts`` of the document, and the name of its picture."""
    found: Document | None = made["dependence"]
    if found is None:
        raise MissingFigureError("dependence")
    return found, "documents" if found["of"] == "documents" else "survival"


def _ruling(made: Document, *tests: str) -> Ruling:
    """The ruling on all of these tests together: one that does not support it decides."""
    found: set[Ruling] = {made["rulings"].get(test, "undetermined") for test in tests}
    return "does_not_support" if "does_not_support" in found else found.pop() if len(found) == 1 else "undetermined"


def _claim(
    made: Document, name: str, shown: Shown, plain: Mapping[str, str | float], picture: str = ""
) -> ArticleClaim:
    """A claim that is ruled on by the test of its own name."""
    return ArticleClaim(name, _ruling(made, name), "test", shown, plain, (name,), picture)


def _example(made: Document, name: str, plain: Mapping[str, float], picture: str = "") -> ArticleClaim:
    """A claim for which one example is enough."""
    share = _figure(made, name)
    ruling: Ruling = "supports" if share["value"] > 0 else "undetermined"
    return ArticleClaim(name, ruling, "example", {"share": ("right", share)}, plain, (), picture)


def not_likeliest(made: Document) -> ArticleClaim:
    """Not always the most probable word is chosen: one example is enough."""
    return _example(made, "not_likeliest", {"t": float(made["main"])})


def greedy(made: Document) -> ArticleClaim:
    """Temperature 0 gives low quality and repetition: both are tested."""
    if made["main"] == "0":
        raise MissingFigureError("a temperature to compare with")
    names, shown = ("greedy_poor", "greedy_repeats"), Shown()
    for cold, warm, name in (("cold", "warm", "right"), ("loops", "warm_loops", "repetition")):
        shown |= {cold: (name, _figure(made, name, "0")), warm: (name, _figure(made, name))}
    plain = {"t": float(made["main"])}
    return ArticleClaim("greedy", _ruling(made, *names), "test", shown, plain, names, "temperatures")


def diverse(made: Document) -> ArticleClaim:
    """At a higher temperature answers are more diverse."""
    hottest = max(made["figures"], key=float)
    if hottest == made["main"]:
        raise MissingFigureError("a higher temperature")
    shown = _pick(made, low="answer_entropy") | {"high": ("answer_entropy", _figure(made, "answer_entropy", hottest))}
    return _claim(made, "diverse", shown, {"t": float(made["main"]), "hot": float(hottest)})


def seldom_same(made: Document) -> ArticleClaim:
    """The same answer, word for word, is rarely given twice."""
    return _claim(made, "seldom_same", _pick(made, same="same_text"), {"t": float(made["main"])})


def both_ways(made: Document) -> ArticleClaim:
    """Wrong once, correct when asked again: one question is enough."""
    return _example(made, "both_ways", {"n": made["settings"]["n"], "t": float(made["main"])}, "tree")


def direction(made: Document) -> ArticleClaim:
    """Another word changes the direction of the text: more words differ than between two texts that continue the same
    word. Where it is not known what can follow, the meanings of the answers are compared instead."""
    try:
        shown = _pick(made, parted="parted")
    except MissingFigureError:
        shown = _pick(made, less="feedback_meaning")
        return _claim(made, "direction_meaning", shown, {"n": shown["less"][1]["n"]})
    return _claim(made, "direction", shown | {"moved": ("moved", made["after_error"][made["main"]]["moved"][0])}, {})


def formula(made: Document) -> ArticleClaim:
    """(1 − S)^n is a slip: the probability that all n words are correct is S^n."""
    shown, plain = Shown(), {"s": "S", "right": "Sⁿ", "printed": "(1 − S)ⁿ"}
    with suppress(MissingFigureError):
        s = _figure(made, "s")
        value, low, high = s["value"], s.get("low"), s.get("high")
        slip = (1 - value, *(None if end is None else 1 - end for end in (high, low)))
        shown, plain = {"s": ("s", s)}, {}
        for key, ends in (("right", (value, low, high)), ("printed", slip)):
            share, least, most = (None if end is None else end**WORDS for end in ends)
            shown[key] = ("right", Figure(share, least, most, s["n"]).json())
    return ArticleClaim("formula", "does_not_support", "arithmetic", shown, plain, (), "formula")


def constant(made: Document) -> ArticleClaim:
    """Every word is correct with the same probability, at any position."""
    found, curve = _dependence(made)
    if not found["stretches"]:
        raise MissingFigureError("stretches")
    shown: Shown = {f"h{i}": ("", {"value": h, "unit": "share"}) for i, h in enumerate(found["stretches"], 1)}
    return _claim(made, "constant", shown, {"n": found["n"], "texts": found["texts"]}, curve)


def independent(made: Document) -> ArticleClaim:
    """Errors are independent: given the position, no text is more prone to errors than others."""
    found, curve = _dependence(made)
    shown: Shown = {"k": ("survival", found["k"]), "reference": ("survival", found["reference"]),
                    "difference": ("", found["difference"])}  # fmt: skip
    return _claim(made, "independent", shown, {"n": found["n"], "texts": found["texts"]}, curve)


def meaning(made: Document) -> ArticleClaim:
    """An answer is much more likely to be correct by meaning than word for word."""
    return _claim(made, "meaning", _pick(made, right="right", same="word_for_word", gain="meaning_gain"), {})


def feedback(made: Document) -> ArticleClaim:
    """An error makes the next one more likely than an equally rare correct word does; errors by edit distance."""
    found = made["after_error"].get(made["main"])
    if found is None or found["cautious"][0]["value"] is None:
        raise MissingFigureError("matched pairs")
    pairs = found["pairs"]
    shown: Shown = {"near": ("", found["cautious"][0]), "up": ("", found["difference"][0])}
    plain = {"n": pairs["matched"], "dropped": pairs["dropped"], "ratio": pairs["ratio"][1]}
    if pairs["ratio_by_rule"] is not None:
        plain["unmatched"] = pairs["ratio_by_rule"]
    return _claim(made, "feedback", shown, plain, "feedback")


def grows(made: Document) -> ArticleClaim:
    """The effect grows with every further word: its slope over all distances."""
    growth = _pick(made, growth="growth")
    rows = made["after_error"][made["main"]]["cautious"]
    shown = {"first": ("", rows[0]), "last": ("", rows[-1]), **growth}
    return _claim(made, "grows", shown, {"m": len(rows)}, "feedback")


def no_way_back(made: Document) -> ArticleClaim:
    """There is no way back after an error: by construction the word stays. The figures tell how often nothing that
    follows is wrong, after an error and after a correct word."""
    found = _pick(made, share="recovery", beside="clean_beside") | {"ended": ("", made["extra"]["ended"])}
    shown: Shown = {key: ("recovery", figure) for key, (_, figure) in found.items()}
    return ArticleClaim("no_way_back", "supports", "construction", shown, {"m": RECOVERED}, (), "feedback")


def exponential(made: Document) -> ArticleClaim:
    """The probability of being correct falls exponentially with length: by the same factor at every word of every
    text."""
    (found, curve), tests = _dependence(made), ("constant", "independent")
    if found["shape"]["value"] is None:
        raise MissingFigureError("shape")
    shown: Shown = {"shape": ("weibull_shape", found["shape"]), "k": ("survival", found["k"])}
    ruling = _ruling(made, *tests)
    return ArticleClaim("exponential", ruling, "above", shown, {"n": found["n"]}, tests, curve)


def passes(made: Document) -> ArticleClaim:
    """The whole model is computed for every word."""
    shown = _pick(made, passes="passes", tokens="tokens")
    every = abs(shown["passes"][1]["value"] - shown["tokens"][1]["value"]) < 1e-9
    return ArticleClaim("passes", "supports" if every else "does_not_support", "count", shown, {}, (), "cost")


def targets(made: Document) -> ArticleClaim:
    """Training towards one correct word biases the probabilities: an examination cannot tell the cause."""
    return ArticleClaim("targets", "undetermined", "nothing", _pick(made, gap="calibration"), picture="calibration")


# the tests


def along_texts(texts: Sequence[JudgedAnswer]) -> dict[str, Outcome | None]:
    """Tests whether the hazard is the same at all positions, and whether errors are independent given the position."""
    if not any(text.s for text in texts):
        return {}
    table_MTE = hazards(texts)
    alone = hypothesis_tests.independent_errors(table_MTE)
    return {"constant": hypothesis_tests.constant_hazard(table_MTE), "independent": alone}


def dependence_facts(texts: Sequence[JudgedAnswer], of: str) -> dict[str, Any] | None:
    """The figures that belong to those tests, at the last position that they use; None if there is none. ``of``: what
    the texts are."""
    n = hypothesis_tests.last_position(table_MTE := hazards(texts)) if any(text.s for text in texts) else 0
    if n < 1:
        return None
    curve = survival(texts)
    at = {"k": curve.k, "reference": curve.by_position, "difference": curve.difference}
    return {
        "of": of,
        "texts": len(texts),
        "n": n,
        "stretches": hypothesis_tests.stretch_hazards(table_MTE),
        "shape": weibull_shape(texts).json(),
        **{name: figures[n - 1].json() for name, figures in at.items()},
    }


def after_forced(found: Sequence[InterventionOutcome]) -> dict[str, Outcome | None]:
    """Tests of feedback and its growth over all distances, on matched pairs, and of the direction, on words forced by
    rule."""
    out: dict[str, Outcome | None] = {}
    matched = [one for one in found if one.intervention.is_matched]
    if len(matched) >= FEW:
        up_ND = np.array([np.subtract(row["wrong"], row["near"]) for row in map(InterventionOutcome.cautious, matched)])
        asked = [one.intervention.question for one in matched]
        out["feedback"] = mean_above(up_ND[:, 0], asked, LIKELIER)
        if up_ND.shape[1] > 1:
            out["grows"] = mean_above(up_ND @ slope(up_ND.shape[1]), asked, GROWTH)
    parted = [
        (one.parted, one.intervention.question) for one in found if one.intervention.by_rule and one.parted is not None
    ]
    if len(parted) >= FEW:
        out["direction"] = mean_above([value for value, _ in parted], [question for _, question in parted], PARTED)
    return out


def slope(distances: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Weights of the least-squares slope over the distances 1, 2, …"""
    off_D = np.arange(distances) - (distances - 1) / 2
    return np.asarray(off_D / (off_D**2).sum())


def of_figures(made: Document) -> dict[str, Outcome | None]:
    """Tests that need only figures and their intervals."""
    t, none = made["main"], {"value": None}
    hottest = max(made["figures"], key=float)

    def figure(name: str, at: str = t) -> Document:
        found: Document = made["figures"].get(at, {}).get(name) or none
        return found

    less = figure("feedback_meaning")
    same = from_interval(figure("same_text"), SELDOM)  # the claim is that it is less: swap the sides
    out: dict[str, Outcome | None] = {
        "seldom_same": same and replace(same, supports=same.against, against=same.supports),
        "meaning": from_interval(made["extra"]["meaning_gain"], MUCH),
        "direction_meaning": from_interval(less if less.get("n", 0) >= FEW else none, PARTED),
    }
    if hottest != t:
        out["diverse"] = difference_above(figure("answer_entropy", hottest), figure("answer_entropy"), DIVERSE)
    if t != "0":
        out["greedy_poor"] = difference_above(figure("right"), figure("right", "0"), POOR)
        out["greedy_repeats"] = difference_above(figure("repetition", "0"), figure("repetition"), POOR)
    return out
