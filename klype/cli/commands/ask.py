"""``klype ask``: one question, one answer."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

from klype.cli import options as o
from klype.cli.terminal import Terminal
from klype.errors import UsageError
from klype.option import Option
from klype.words import plain

if TYPE_CHECKING:
    from pathlib import Path

    from klype.api.model import Model
    from klype.api.results import Answer
    from klype.sources.opening import Opened
    from klype.values import Request


def command(
    terminal: Terminal,
    sampling: o.Sampling,
    model: o.AskedModel,
    text: o.Text = None,
    limit: o.Limit = 128,
    raw: o.Raw = None,
    precision: o.Precision = "float32",
    device: o.Device = "auto",
    speculate: o.Speculate = None,
    sure: o.Sure = False,
    best_of: Annotated[int, Option("Draw so many answers; the run's reward model picks one.", least=1, most=256)] = 1,
    decoder: Annotated[
        str,
        Option("Spend more passes on an answer: consensus, search, verify-statement …"),
    ] = "",
    budget: Annotated[
        str,
        Option("With --decoder: 8× a plain answer's passes. Of a server: 500requests,20000tokens."),
    ] = "",
    seed: o.Seed = 0,
    out: o.OutFile = None,
) -> None:
    """Ask MODEL one thing."""
    model, text = o.asked(model, text)
    from klype.api.asking import asking, prompt_of, reading_from
    from klype.api.model import load
    from klype.cli.deciding import split
    from klype.cli.remote import tell_cost
    from klype.device import EnergyMeter

    times, server = split(decoder, budget)
    if decoder and (best_of > 1 or speculate is not None or sure):
        raise UsageError("--decoder decides by itself: leave out --best-of, --speculate and --sure.")
    asked = load(model, precision, server, device)
    opened = asked.opened
    request = asked.request(prompt_of(opened, text, raw), sampling, limit, seed)
    if speculate is not None:
        from klype.cli.speculating import beside_plain, make_draft

        draft = make_draft(opened, speculate)  # one that cannot be had is refused before anything is said
    reading = reading_from(opened)
    if reading is not None:
        plain.aside(f"{reading.about(terminal.lang)} {reading.warning(text, terminal.lang)}".strip())
    picked, meter = None, EnergyMeter()
    if decoder:
        _decide(terminal, opened, request, (text, raw), (decoder, times), out)
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
        from klype.cli.sure import sure_of, tell

        document["sure"] = certainty = sure_of(opened, asking(opened, text, raw), trace, request.limit)
        if not terminal.as_json:
            tell(terminal, certainty)
    tell_cost(opened)
    terminal.document(document, out)


def _decide(
    terminal: Terminal,
    opened: Opened,
    request: Request,
    asked: tuple[str, bool | None],
    decoder: tuple[str, float],
    out: Path | None,
) -> None:
    """An answer that a decoder chose: the answer, why, and what it cost."""
    from klype.api.asking import asking
    from klype.cli.deciding import decided, document, tell
    from klype.cli.remote import tell_cost
    from klype.device import EnergyMeter

    meter, started = EnergyMeter(), time.perf_counter()
    ask = asking(opened, *asked)
    found = decided(opened, ask, request.limit, request.sampling, request.seed, *decoder, asked[1])
    told, chosen = document(found, *decoder), found.choice.chosen
    if not terminal.as_json:
        plain.tell(chosen.text + ("" if chosen.ended else " …"))
        tell(terminal, told)
    tell_cost(opened)
    made = {"answer": chosen.text, "tokens": len(chosen.tokens), "passes": found.passes,
            "seconds": time.perf_counter() - started, "joules": meter.joules(), "decoder": told}  # fmt: skip
    terminal.document(made, out)


def _best_of(model: Model, request: Request, n: int) -> tuple[Answer, dict[str, Any]]:
    """The answer that the run's reward model likes best, and what ``--json`` tells of the choice."""
    from dataclasses import replace

    from klype.device import pick_device
    from klype.train.reward_model import judge_of, pick

    judge = judge_of(model.opened.found, pick_device(model.opened.how.device))
    found = model.drawn(replace(request, n=n))
    best = pick(judge, [answer.trace for answer in found])
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
