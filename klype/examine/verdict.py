"""The verdict of a report: a few plain sentences, chosen by the figures and never without them."""

from __future__ import annotations

import math
from collections import Counter
from typing import Literal

from klype.examine.facts import (
    DictionarySideFacts,
    Facts,
    FigureFacts,
    GateFacts,
    beyond,
    changed,
    clearly,
    figures_of,
    last_model,
)
from klype.examine.say import Say

GOOD, FAIR = 0.8, 0.5
REMEMBERED = 0.1  # share of definitions below which hardly any is


def verdict(facts: Facts, say: Say) -> list[str]:
    """Paragraphs: what was made and how it answers; what it knows of its language; what to make of it."""
    paragraphs = [
        [_made(facts, say), *_answers(facts, say)],
        [*_language(facts, say), *_hot(facts, say), *_sure(facts, say)],
        _gates(facts, say),
        caution(facts, say),
    ]
    return [" ".join(sentences) for sentences in paragraphs if sentences]


def _made(facts: Facts, say: Say) -> str:
    made = sum(bool(stage) for stage in facts["stages"].values())
    if made == 0:
        return say("verdict.made_none")
    time = say.seconds(facts["seconds"].get("total", sum(facts["seconds"].values())))
    parameters = facts.get("provenance", {}).get("model", {}).get("parameters")
    if not isinstance(parameters, int):
        return say(f"verdict.made_{made}_plain", time=time)
    return say(f"verdict.made_{made}", time=time, parameters=say.count(parameters))


def _answers(facts: Facts, say: Say) -> list[str]:
    sentences = []
    last = figures_of(facts, last_model(facts))
    if {"well_formed", "right_trained"} <= set(last):
        shown = {name: say.figure(last[name], name) for name in ("well_formed", "right_trained")}
        sentences.append(say("verdict.words", **shown))
    elif "right" in last and "decided" in last:
        shown = {name: say.figure(last[name], name) for name in ("decided", "right")}
        asked_of = say.count(last["decided"].get("n", 0))
        sentences.append(say("verdict.decided", n=asked_of, judge=say.judged(last["right"]), **shown))
        sentences += say.allowed(last["right"])
    elif "right" in last:
        shown = {name: say.figure(last[name], "right") for name in ("right", "right_fixed") if name in last}
        key = "verdict.right_stories" if "right_fixed" in last else "verdict.right"
        asked = {"n": last["right"].get("n", 0), "n_fixed": last.get("right_fixed", last["right"]).get("n", 0)}
        sentences.append(say(key, **{name: say.count(n) for name, n in asked.items()}, **shown))
    before, after = figures_of(facts, "finetuned"), figures_of(facts, "aligned")
    if "right" in before and "right" in after:
        sentences += _alignment(facts, say)
    if "annotator" in before and "annotator" in after and changed(facts, "annotator") < 0:
        shown = {key: say.figure(f["annotator"], "annotator") for key, f in (("before", before), ("after", after))}
        sentences.append(say("verdict.score_down", **shown))
    why = facts.get("missing", {}).get("aligned")
    if not facts["stages"].get("aligned") and why is not None:
        sentences.append(say("verdict.missing", why=say.text(why)))
    reward = facts.get("reward")
    if reward and reward["pair_accuracy"]["value"] is not None:
        named = {"accuracy": "pair_accuracy", "ceiling": "ceiling"}
        shown = {key: say.figure(reward[name], name) for key, name in named.items()}  # type: ignore[literal-required]
        known = reward["ceiling"]["value"] is not None
        sentences.append(say("verdict.reward" if known else "verdict.reward_alone", **shown))
    return sentences


def _alignment(facts: Facts, say: Say) -> list[str]:
    """What alignment did to politeness, where anybody was ever polite, and to right answers."""
    before, after = figures_of(facts, "finetuned"), figures_of(facts, "aligned")
    told = []
    for name in ("polite", "right"):
        sides = [figures.get(name) for figures in (before, after)]
        if name == "polite" and not (all(sides) and any(side and side["value"] for side in sides)):
            continue
        key = {1: "up", 0: "open", -1: "down"}[changed(facts, name)]
        shown = say.apart({when: side["value"] for when, side in zip(("before", "after"), sides, strict=True) if side})
        told.append(say(f"verdict.{name}_{key}", **shown))
    return told


def _language(facts: Facts, say: Say) -> list[str]:
    base = figures_of(facts, "base")
    text, last = facts.get("text"), figures_of(facts, last_model(facts))
    bits = base.get("bits_per_byte") or last.get("bits_per_byte")
    if text and bits:
        order = text.get("ngram_order", 5)
        shown = {"bits": say.figure(bits), "ngram": say.number(text["ngram"]), "xz": say.number(text["xz"])}
        return [say("verdict.text_base" if base.get("bits_per_byte") else "verdict.text", n=order, **shown)]
    if "s" in base and "kl" in base:
        s = FigureFacts(**{**base["s"], "unit": "share"})  # in percent, with its interval
        return [say("verdict.truth", s=say.figure(s), kl=say.figure(base["kl"], "kl"))]
    return []


def _hot(facts: Facts, say: Say) -> list[str]:
    rows = facts.get("temperatures", {}).get("rows", [])
    rights = [(row["temperature"], row["figures"].get("right")) for row in rows]
    known = [(t, figure) for t, figure in rights if figure is not None and figure["value"] is not None]
    if len(known) < 2 or clearly(known[0][1], known[-1][1]) >= 0:
        return []
    (t0, right0), (t, right) = known[0], known[-1]
    shown = {"right0": say.figure(right0, "right"), "right": say.figure(right, "right")}
    return [say("verdict.hot", t0=say.plain(t0), t=say.plain(t), **shown)]


def _sure(facts: Facts, say: Say) -> list[str]:
    """Where what a model says how likely it is comes true less often, or more often, than it says: of ten bins, the one
    that is furthest off, when it is so by more than twice the interval's half-width (some bin always is a little)."""
    for found in facts.get("calibration", [])[-1:]:
        bins = [(b["p"], b["observed"]) for b in found["bins"]]
        off = [(p, o, o["value"] - p) for p, o in bins if o["value"] is not None and abs(o["value"] - p) > _width(o)]
        if off:
            said, observed, gap = max(off, key=lambda one: abs(one[2]))
            shown = {"said": say.share(said), "observed": say.figure(observed, "right")}
            model = say.stage(found["stage"]).lower()
            return [say("verdict.overconfident" if gap < 0 else "verdict.underconfident", model=model, **shown)]
    return []


def _width(figure: FigureFacts) -> float:
    low, high = figure.get("low"), figure.get("high")
    return high - low if low is not None and high is not None else math.inf


def _gates(facts: Facts, say: Say) -> list[str]:
    gates = facts.get("gates", [])
    if not gates:
        return []
    count = Counter(status_of(gate) for gate in gates)
    if count["passed"] == len(gates):
        return [say("verdict.gates_all", all=len(gates))]
    key = f"verdict.gates_{'within' if count['within'] and not count['missed'] else 'some'}"
    return [say(key, all=len(gates), passed=count["passed"], within=count["within"], missed=count["missed"])]


def status_of(gate: GateFacts) -> Literal["passed", "within", "missed"]:
    """Of an earlier version's run only the value was compared."""
    return gate.get("status", "passed" if gate["passed"] else "missed")


def caution(facts: Facts, say: Say) -> list[str]:
    """What so small a model can and cannot do, chosen by its figures; empty without a model."""
    if not any(facts["stages"].values()):
        return []
    if facts["kind"] == "world":
        return [say("verdict.small_world")]
    found = [*_letters(facts, say), *_form(facts, say), *_class(facts, say), *_meaning(facts, say), *_heart(facts, say)]
    return [*found, say("caution.use")] if found else [say("verdict.small_text")]


def _letters(facts: Facts, say: Say) -> list[str]:
    """Whether it knows more of the text than which byte follows four others."""
    text, bits = facts.get("text"), figures_of(facts, "base").get("bits_per_byte")
    if not text or bits is None:
        return []
    simple = min(text["ngram"], text["xz"])
    key = {-1: "language", 0: "language_open", 1: "no_language"}[beyond(bits, simple)]
    return [say(f"caution.{key}", margin=say.number(abs(simple - (bits["value"] or 0.0))))]


def _form(facts: Facts, say: Say) -> list[str]:
    figure = figures_of(facts, last_model(facts)).get("well_formed")
    if figure is None:
        return []
    degree = "good" if beyond(figure, GOOD) > 0 else {1: "fair", 0: "open", -1: "poor"}[beyond(figure, FAIR)]
    return [say(f"caution.form_{degree}", share=say.figure(figure, "well_formed"))]


def _class(facts: Facts, say: Say) -> list[str]:
    """How often it infers the class of a word that it has never met."""
    side = _side(facts, "class", "held_out")
    return [] if side is None else [say("caution.class", share=say.figure(side["right"], "right"))]


def _meaning(facts: Facts, say: Say) -> list[str]:
    new, old = _side(facts, "meaning", "held_out"), _side(facts, "meaning", "trained")
    sentences = []
    if new is not None:
        key = "caution.new_meaning" if beyond(new["right"], FAIR) < 0 else "caution.new_meaning_some"
        sentences.append(say(key, share=say.figure(new["right"], "right")))
    if old is not None:
        right = old["right"]
        degree = "most" if beyond(right, FAIR) > 0 else "few" if beyond(right, REMEMBERED) < 0 else "some"
        sentences.append(say(f"caution.remembers_{degree}", share=say.figure(right, "right")))
    return sentences


def _heart(facts: Facts, say: Say) -> list[str]:
    found = facts.get("copied")
    if found is None:
        return []
    free, own = (say.figure(found[name], "copied") for name in ("free", "held_out"))
    key = {1: "copies", 0: "copies_open", -1: "copies_less"}[clearly(found["held_out"], found["free"])]
    return [say(f"caution.{key}", free=free, own=own)]


def _side(facts: Facts, kind: str, side: str) -> DictionarySideFacts | None:
    for row in facts.get("dictionary", []):
        if row["kind"] == kind:
            found: DictionarySideFacts | None = row.get(side)  # type: ignore[assignment]
            return found
    return None
