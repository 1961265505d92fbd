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
    margin = min(text["ngram"], text["xz"]) - (bits["value"] or 0.0)
    below = margin > 0 and (bits.get("high") or 0.0) < min(text["ngram"], text["xz"])
    return [say("caution.language" if below else "caution.no_language", margin=say.number(abs(margin)))]


def _form(facts: Facts, say: Say) -> list[str]:
    figure = figures_of(facts, last_model(facts)).get("well_formed")
    if figure is None:
        return []
    value = figure["value"] or 0.0
    degree = "good" if value >= GOOD else "fair" if value >= FAIR else "poor"
    return [say(f"caution.form_{degree}", share=say.value(figure, "well_formed"))]


def _class(facts: Facts, say: Say) -> list[str]:
    """What it can infer of a word that it has never met: the class, from the word's build."""
    side = _side(facts, "class", "held_out")
    if side is None:
        return []
    known = (side["right"].get("low") or 0.0) > FAIR
    return [say("caution.class" if known else "caution.no_class", share=say.value(side["right"], "right"))]


def _meaning(facts: Facts, say: Say) -> list[str]:
    new, old = _side(facts, "meaning", "held_out"), _side(facts, "meaning", "trained")
    sentences = []
    if new is not None:
        key = "caution.new_meaning" if (new["right"].get("high") or 1.0) < FAIR else "caution.new_meaning_some"
        sentences.append(say(key, share=say.value(new["right"], "right")))
    if old is not None:
        value = old["right"]["value"] or 0.0
        degree = "most" if value >= FAIR else "some" if value >= REMEMBERED else "few"
        sentences.append(say(f"caution.remembers_{degree}", share=say.value(old["right"], "right")))
    return sentences


def _heart(facts: Facts, say: Say) -> list[str]:
    found = facts.get("copied")
    if found is None:
        return []
    free, own = (say.value(found[name], "copied") for name in ("free", "held_out"))
    more = clearly(found["held_out"], found["free"]) > 0
    return [say("caution.copies" if more else "caution.copies_not", free=free, own=own)]


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
