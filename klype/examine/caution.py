"""What so small a model can and cannot do: sentences chosen by its figures, never by hope."""

from __future__ import annotations

from klype.examine.facts import DictionarySideFacts, Facts, FigureFacts
from klype.examine.say import Say

Figures = dict[str, FigureFacts]
GOOD, FAIR = 0.8, 0.5
REMEMBERED = 0.1  # share of definitions below which hardly any is


def caution(facts: Facts, say: Say) -> list[str]:
    """The paragraph's sentences; empty without a model."""
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


def last_model(facts: Facts) -> str:
    """The newest stage there is a model of."""
    return next((s for s in ("aligned", "finetuned", "base") if facts["stages"].get(s)), "base")


def figures_of(facts: Facts, stage: str) -> Figures:
    """Those that have a value."""
    found = {str(name): figures for name, figures in facts["stages"].items()}.get(stage) or {}
    return {name: figure for name, figure in found.items() if figure["value"] is not None}


def clearly(before: FigureFacts, after: FigureFacts) -> int:
    """1 more, −1 less, 0 when the intervals overlap (or there are none)."""
    low0, high0, low1, high1 = before.get("low"), before.get("high"), after.get("low"), after.get("high")
    if low0 is None or high0 is None or low1 is None or high1 is None:
        return 0
    return int(low1 > high0) - int(high1 < low0)


def beyond(figure: FigureFacts, threshold: float) -> int:
    """1 when all of the interval is above the threshold, −1 when all is below, 0 when it straddles (or is none)."""
    low, high = figure.get("low"), figure.get("high")
    return 0 if low is None or high is None else int(low > threshold) - int(high < threshold)


def changed(facts: Facts, name: str) -> int:
    """1 when alignment raised it, −1 when it lowered it, 0 when that cannot be told: by the paired difference where
    there is one, else by intervals that do not overlap."""
    gain = facts.get("gains", {}).get(name)
    if gain is not None:
        return beyond(gain, 0.0)
    before, after = (figures_of(facts, stage).get(name) for stage in ("finetuned", "aligned"))
    return 0 if before is None or after is None else clearly(before, after)
