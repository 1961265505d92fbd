"""``klype ask --decoder``: what was chosen, what spoke for it, and what it cost beside a plain answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from klype.errors import UsageError

if TYPE_CHECKING:
    from klype.answers.checks import Check
    from klype.answers.decoders import Decided
    from klype.answers.decoding import DecodeQuestion
    from klype.api.asking import Asking
    from klype.cli.terminal import Terminal
    from klype.sources.opening import Opened
    from klype.values import Sampling

SHOWN = 5
BUDGET = 4.0


def split(decoder: str, budget: str) -> tuple[float, str]:
    """``--budget`` as what a decoder may spend, and what a server may be asked for: "8×", "500requests", or both.

    Errors: plain answers without a decoder, a decoder that does not exist.
    """
    parts = budget.split(",") if budget else []
    server = [part for part in parts if part.strip().endswith(("requests", "tokens"))]
    own = ",".join(part for part in parts if part not in server)
    if not decoder:
        if own.strip()[-1:] in ("×", "x", "X"):
            raise UsageError(f"--budget {own} is for a decoder.", "Name one: --decoder consensus.")
        return BUDGET, budget
    from klype.answers.decoders import decoder as find
    from klype.answers.decoding import parse_budget

    find(decoder)
    return (parse_budget(own) if own else BUDGET), ",".join(server)


def decided(
    opened: Opened, ask: Asking, limit: int, sampling: Sampling, seed: int, name: str, budget: float, raw: bool | None
) -> Decided:
    """One question decided. UsageError where the decoder needs what this model has not."""
    from klype.answers.decoders import decide
    from klype.answers.decoding import Tuning

    tuning = Tuning(temperature=sampling.temperature or 1.0)
    posed = _posed(opened, ask, limit, sampling, seed, raw, name)
    return decide(opened.source, [posed], name, budget, tuning)[0]


def document(found: Decided, name: str, budget: float) -> dict[str, Any]:
    """What ``--json`` tells of the choice."""
    from klype.judge.meaning import label

    return {
        "name": name,
        "budget": budget,
        "plain": found.plain.chosen.text,
        "changed": found.choice.chosen.meaning != found.plain.chosen.meaning,
        "shares": [
            {"text": share.text, "meaning": label(share.meaning), "share": share.share} for share in found.choice.shares
        ],
        "passes": found.passes,
        "plain_passes": found.plain_passes,
        "times": found.passes / max(1, found.plain_passes),
        "positions": found.positions,
        "plain_positions": found.plain_positions,
    }


def tell(terminal: Terminal, told: dict[str, Any]) -> None:
    """Why, and at what cost, in a few lines."""
    from klype.answers.decoders import decoder
    from klype.words import number, percent, words

    w, lang = words(terminal.lang, "deciding"), terminal.lang
    row = decoder(told["name"])
    lines = [w("chosen", about=row.about.get(lang, row.about["en"]))]
    if row.spends:
        for share in told["shares"][:SHOWN]:
            lines.append(w("share", share=percent(share["share"], lang), text=share["text"]))
        lines.append(w("changed", plain=told["plain"]) if told["changed"] else w("same"))
    shown = {key: told[key] for key in ("passes", "plain_passes", "positions", "plain_positions")}
    lines.append(w("cost", times=number(told["times"], lang, 1), **shown))
    for line in lines:
        terminal.console.print(line, markup=False, highlight=False)


def _posed(
    opened: Opened, ask: Asking, limit: int, sampling: Sampling, seed: int, raw: bool | None, name: str
) -> DecodeQuestion:
    from klype.answers.decoding import DecodeQuestion

    known = _checks(opened, ask.question.prompt, name, not opened.as_raw(raw))
    return DecodeQuestion(ask.prompt, ask.meaning, limit, opened.stop, seed, sampling=sampling, checks=known)


def _checks(opened: Opened, question: str, name: str, chat: bool) -> dict[str, Check]:
    from klype.answers import checks

    known: dict[str, Check] = {"likelihood": checks.likelihood}
    if chat:
        known |= _yes(opened, question)
    if name == "verify-statement":
        known["statement"] = checks.given(lambda answer: _joined(opened, question, answer))
    if name == "verify-reward":
        from klype.device import pick_device
        from klype.train.reward_model import judge_of

        judge = judge_of(opened.found, pick_device(opened.how.device))
        known["reward"] = checks.judged(lambda prompts, answers: judge.score(prompts, answers).tolist())
    return known


def _joined(opened: Opened, first: str, then: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two texts as one, with a space between them, cut where the second begins; of an empty one, a full stop."""
    return tuple(opened.plain(first.strip() or ".")), tuple(opened.say(f" {then.strip() or '.'}"))


def _yes(opened: Opened, question: str) -> dict[str, Check]:
    """None where the model has not one token each for yes and no."""
    from klype.answers import checks
    from klype.sources.source import tokens_of

    def put(answer: str) -> tuple[int, ...]:
        text = f"{question}\nProposed answer: {answer}\nIs the proposed answer right? Yes or No?"
        return tuple(opened.prompt([{"role": "user", "content": text}]))

    def whole(word: str) -> list[int]:
        said = [opened.say(spelled) for spelled in (word, f" {word}")]
        firsts = {ids[0] for ids in said if opened.source.codec.decode(ids[:1]).strip() == word}
        return sorted(firsts | tokens_of(opened.source.codec, word))

    yes, no = whole("Yes"), whole("No")
    return {"yes": checks.yes(put, yes, no)} if yes and no else {}
