"""``klype ask``: one question, one answer; and on request what a decoder chose and why (--decoder), how certain the
model is (--sure), and what speculative decoding gained (--speculate)."""

import time
from dataclasses import dataclass
from typing import Annotated, Any

from klype.cli import options as o
from klype.cli.terminal import Terminal, announce_start, budget_parts, tell_cost, tell_unread
from klype.errors import UsageError
from klype.option import Option
from klype.words import plain

BUDGET = 4.0  # a decoder's default budget, in multiples of a plain answer's passes


@dataclass(frozen=True, kw_only=True)
class AskOptions(o.MeaningOptions):
    """``klype ask``, beside how tokens are drawn."""

    limit: o.Limit = 128
    speculate: o.Speculate = None
    sure: o.Sure = False
    best_of: Annotated[int, Option("Draw this many answers; the run's reward model picks one.", least=1, most=256)] = 1
    decoder: Annotated[str, Option("Spend more passes on an answer: consensus, search, verify-statement …")] = ""
    budget: Annotated[
        str, Option("With --decoder: 8× the passes of a plain answer. For a server: 500requests,20000tokens.")
    ] = ""


def command(terminal: Terminal, sampling: o.Sampling, asked: AskOptions) -> None:
    """Ask MODEL one thing."""
    name, text = o.model_and_text(terminal, "ask", asked)
    if asked.decoder and (asked.best_of > 1 or asked.speculate is not None or asked.sure):
        raise UsageError("--decoder decides by itself: leave out --best-of, --speculate and --sure.")
    if asked.judge and not (asked.sure or asked.decoder):
        raise UsageError("--judge is for --sure and --decoder: a single answer is compared with nothing.")
    with announce_start(terminal):
        if asked.decoder or asked.best_of > 1 or asked.sure or asked.speculate is not None:
            from klype.cli import ask_methods  # a plain answer does not wait for it
        from klype.api.prompt_context import reading_from
        from klype.api.results import judge_and_error
        from klype.device import EnergyMeter

        times, server = decoder_budget(asked.decoder, asked.budget)
        model, ask = asked.open_prompt(name, text, server)
    opened, request = model.opened, model.request(ask.prompt, sampling, asked.limit, asked.seed)
    # before anything is printed: a draft that does not suit the model is an error
    draft = None if asked.speculate is None else (asked.speculate, ask_methods.make_draft(opened, asked.speculate))
    if (reading := reading_from(opened)) is not None:
        plain.aside(f"{reading.about(terminal.lang)} {reading.warning(text, terminal.lang)}".strip())
        if not reading.unknown_words(text):
            tell_unread(terminal, ask)
    meter, started = EnergyMeter(), time.perf_counter()
    document: dict[str, Any]
    if asked.decoder:
        found = ask_methods.decide(opened, ask, request, (asked.decoder, times), asked.raw)
        told, chosen = ask_methods.decision(found, asked.decoder, times), found.choice.chosen
        document = {
            "answer": chosen.text,
            "tokens": len(chosen.tokens),
            "passes": found.passes,
            "seconds": time.perf_counter() - started,
            "joules": meter.joules(),
            "decoder": told | judge_and_error(ask.judge, ask.error_rate),
        }
        terminal.answer(chosen.text + ("" if chosen.ended else " …"))
        terminal.lines(ask_methods.decision_lines(document["decoder"], terminal.lang))
    else:
        picked: dict[str, Any] = {}
        if asked.best_of > 1:
            answer, picked["best_of"] = ask_methods.best_of_drawn(model, request, asked.best_of)
            terminal.answer(answer.text, end="")
        else:
            pieces = model.write(request)
            for piece in pieces:
                terminal.answer(piece, end="")
            assert pieces.answer is not None, "what is written to the end is an answer"
            answer = pieces.answer
        trace = answer.trace
        terminal.answer("" if answer.ended == "stop" else " …")
        document = {
            "answer": answer.text,
            "tokens": len(trace.steps),
            "passes": trace.passes,
            "seconds": trace.seconds,
            "flops": opened.flops(trace),
            "joules": meter.joules() if trace.joules is None else trace.joules,
            **({} if reading is None else {"unknown": reading.unknown_words(text)}),
            **picked,
        }
        if draft is not None:
            document["speculation"] = ask_methods.beside_plain(opened, request, *draft)
            terminal.say("ask.speculated", **ask_methods.with_ratios_written(document["speculation"], terminal.lang))
        if asked.sure:
            document["sure"] = ask_methods.sure_of(opened, ask, trace, request.limit)
            terminal.lines(ask_methods.sure_lines(document["sure"], terminal.lang))
    tell_cost(opened)
    terminal.document(document, asked.out)


def decoder_budget(decoder: str, budget: str) -> tuple[float, str]:
    """Parses ``--budget`` ("8×", "500requests" or both) into a decoder's budget, in multiples of a plain answer's
    passes, and a server's limits.

    Raises UsageError for a decoder that does not exist, and for a decoder's budget without a decoder.
    """
    own, of_server = budget_parts(budget)
    if not decoder:
        if own[-1:] in ("×", "x", "X"):
            raise UsageError(f"--budget {own} is for a decoder.", "Name one: --decoder consensus.")
        return BUDGET, budget
    from klype.answers.decoder_requests import parse_budget
    from klype.answers.decoders import decoder as find

    find(decoder)
    return (parse_budget(own) if own else BUDGET), of_server
