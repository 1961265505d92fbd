"""``klype ask``: one question, one answer; with --decoder what was chosen, what spoke for it, and what it cost."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

from klype.cli import options as o
from klype.cli.progress import starting
from klype.cli.terminal import Terminal
from klype.errors import UsageError
from klype.option import Option
from klype.words import plain

if TYPE_CHECKING:
    from pathlib import Path

    from klype.answers.decoders import Decided
    from klype.answers.decoding import Check, DecodeQuestion
    from klype.api.asking import Asking
    from klype.api.model import Model
    from klype.api.results import Answer
    from klype.sources.opening import Opened
    from klype.values import Request, Sampling


def command(
    terminal: Terminal,
    sampling: o.Sampling,
    model: o.AnyModel = None,
    typed: o.Text = None,
    limit: o.Limit = 128,
    raw: o.Raw = None,
    precision: o.Precision = "float32",
    device: o.Device = "auto",
    speculate: o.Speculate = None,
    sure: o.Sure = False,
    judge: o.JudgeName = "",
    best_of: Annotated[int, Option("Draw this many answers; the run's reward model picks one.", least=1, most=256)] = 1,
    decoder: Annotated[
        str,
        Option("Spend more passes on an answer: consensus, search, verify-statement …"),
    ] = "",
    budget: Annotated[
        str,
        Option("With --decoder: 8× the passes of a plain answer. For a server: 500requests,20000tokens."),
    ] = "",
    seed: o.Seed = 0,
    out: o.OutFile = None,
) -> None:
    """Ask MODEL one thing."""
    model, text = o.asked(terminal, "ask", model, typed)
    if decoder and (best_of > 1 or speculate is not None or sure):
        raise UsageError("--decoder decides by itself: leave out --best-of, --speculate and --sure.")
    if judge and not (sure or decoder):
        raise UsageError("--judge is for --sure and --decoder: a single answer is compared with nothing.")
    with starting(terminal):
        from klype.api.asking import asking, prompt_of, reading_from
        from klype.api.judging import open_judge
        from klype.api.model import load
        from klype.cli.terminal import tell_cost, tell_unread
        from klype.device import EnergyMeter

        times, server = split(decoder, budget)
        asked = load(model, precision, server, device)
    opened = asked.opened
    ruling = open_judge(judge, opened, (precision, device))
    request = asked.request(prompt_of(opened, text, raw), sampling, limit, seed)
    if speculate is not None:
        from klype.cli.beside import beside_plain, make_draft

        draft = make_draft(opened, speculate)  # one that cannot be had is refused before anything is said
    ask = asking(opened, text, raw, ruling)
    reading = reading_from(opened)
    if reading is not None:
        plain.aside(f"{reading.about(terminal.lang)} {reading.warning(text, terminal.lang)}".strip())
        if not reading.unknown(text):
            tell_unread(terminal, ask)
    picked, meter = None, EnergyMeter()
    if decoder:
        _decide(terminal, opened, request, ask, (decoder, times, raw), out)
        return
    if best_of > 1:
        answer, picked = _best_of(asked, request, best_of)
        if not terminal.as_json:
            plain.tell(answer.text, end="")
    else:
        pieces = asked.write(request)
        for piece in pieces:
            if not terminal.as_json:
                plain.tell(piece, end="")
        assert pieces.answer is not None, "what is written to the end is an answer"
        answer = pieces.answer
    trace = answer.trace
    if not terminal.as_json:
        plain.tell("" if answer.ended == "stop" else " …")
    document = {
        "answer": answer.text,
        "tokens": len(trace.steps),
        "passes": trace.passes,
        "seconds": trace.seconds,
        "flops": opened.flops(trace),
        "joules": meter.joules() if trace.joules is None else trace.joules,
    }
    if reading is not None:
        document["unknown"] = reading.unknown(text)
    if picked is not None:
        document["best_of"] = picked
    if speculate is not None:
        document["speculation"] = found = beside_plain(opened, request, speculate, draft)
        _tell(terminal, found)
    if sure:
        from klype.cli.beside import sure_of, tell_sure

        document["sure"] = certainty = sure_of(opened, ask, trace, request.limit)
        if not terminal.as_json:
            tell_sure(terminal, certainty)
    tell_cost(opened)
    terminal.document(document, out)


def _decide(
    terminal: Terminal,
    opened: Opened,
    request: Request,
    ask: Asking,
    decoder: tuple[str, float, bool | None],
    out: Path | None,
) -> None:
    """An answer that a decoder chose: the answer, why, and what it cost."""
    from klype.api.results import judged
    from klype.cli.terminal import tell_cost
    from klype.device import EnergyMeter

    meter, started = EnergyMeter(), time.perf_counter()
    found = decided(opened, ask, request.limit, request.sampling, request.seed, *decoder)
    told, chosen = decision(found, *decoder[:2]) | judged(ask.judge, ask.error_rate), found.choice.chosen
    if not terminal.as_json:
        plain.tell(chosen.text + ("" if chosen.ended else " …"))
        tell_decision(terminal, told)
    tell_cost(opened)
    made = {"answer": chosen.text, "tokens": len(chosen.tokens), "passes": found.passes,
            "seconds": time.perf_counter() - started, "joules": meter.joules(), "decoder": told}  # fmt: skip
    terminal.document(made, out)


def _best_of(model: Model, request: Request, n: int) -> tuple[Answer, dict[str, Any]]:
    """The answer that the run's reward model likes best, and what ``--json`` tells of the choice."""
    from dataclasses import replace

    from klype.device import pick_device
    from klype.train.reward_model import best_of_n, open_reward_model

    judge = open_reward_model(model.opened.found, pick_device(model.opened.how.device))
    found = model.drawn(replace(request, n=n))
    best = best_of_n(judge, [answer.trace for answer in found])
    scores = {"score": best.scores[best.chosen], "scores": list(best.scores), "kl_most": best.kl_most}
    return found[best.chosen], {"n": n, "tokens": sum(len(one.trace.steps) for one in found), **scores}


def _tell(terminal: Terminal, found: dict[str, Any]) -> None:
    from klype.words import number, percent

    def said(value: float | None) -> str:
        return "–" if value is None else number(value, terminal.lang, 2)

    alpha = found["alpha"]
    terminal.say(
        "ask.speculated",
        draft=found["draft"],
        alpha="–" if alpha is None else percent(alpha, terminal.lang),
        tokens=said(found["tokens_per_pass"]),
        passes=found["passes"],
        plain=found["plain_passes"],
        speedup=said(found["speedup"]),
        predicted=said(found["predicted_speedup"]),
    )


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


def decision(found: Decided, name: str, budget: float) -> dict[str, Any]:
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


def tell_decision(terminal: Terminal, told: dict[str, Any]) -> None:
    """Why, and at what cost, in a few lines."""
    from klype.answers.decoders import decoder
    from klype.examine.say import Say
    from klype.words import number, percent, words

    w, lang = words(terminal.lang, "deciding"), terminal.lang
    row = decoder(told["name"])
    lines = [w("chosen", about=row.about.get(lang, row.about["en"]))]
    if row.spends:
        for share in told["shares"][:SHOWN]:
            lines.append(w("share", share=percent(share["share"], lang), text=share["text"]))
        lines.append(w("changed", plain=told["plain"]) if told["changed"] else w("same"))
        lines += [w("judged", judge=Say(lang).judged(told))] if "judge" in told else []
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
        from klype.train.reward_model import open_reward_model

        judge = open_reward_model(opened.found, pick_device(opened.how.device))
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
