"""``klype ask``: one question, one answer; and on request what a decoder chose and why (--decoder), how certain the
model is (--sure), and what speculative decoding gained (--speculate)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from klype.cli import options as o
from klype.cli.next_tree_forks import visible
from klype.cli.terminal import Terminal, budget_parts, starting, tell_cost, tell_unread
from klype.errors import UsageError
from klype.option import Option
from klype.words import number, percent, plain, short, words
from klype.words.sentences import Sentences

if TYPE_CHECKING:
    from klype.answers.decoders import DecoderResult
    from klype.answers.decoding import Check
    from klype.api.model import Model
    from klype.api.prompt_context import PromptContext
    from klype.api.results import Answer
    from klype.engine.speculation import Draft, Speculation
    from klype.sources.opening import OpenModel
    from klype.train.reward_model import RewardModel
    from klype.values import Request, Trace

SHOWN = 5  # meanings listed of those that a decoder found
SAMPLES = 32  # answers drawn for --sure, and continuations drawn at every token
LONGEST = 64  # tokens: in a longer answer the deciding token is not searched for
GAMMA = 4  # tokens guessed before a pass of the model
WARM = 8  # tokens generated before anything is timed, so that one-time initialisation is not measured
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
    with starting(terminal):
        from klype.api.prompt_context import reading_from
        from klype.api.results import judge_and_error
        from klype.device import EnergyMeter

        times, server = decoder_budget(asked.decoder, asked.budget)
        model, ask = asked.opened(name, text, server)
    opened, request = model.opened, model.request(ask.prompt, sampling, asked.limit, asked.seed)
    # before anything is printed: a draft that does not suit the model is an error
    draft = None if asked.speculate is None else (asked.speculate, make_draft(opened, asked.speculate))
    if (reading := reading_from(opened)) is not None:
        plain.aside(f"{reading.about(terminal.lang)} {reading.warning(text, terminal.lang)}".strip())
        if not reading.unknown(text):
            tell_unread(terminal, ask)
    meter, started = EnergyMeter(), time.perf_counter()
    document: dict[str, Any]
    if asked.decoder:
        found = decide(opened, ask, request, (asked.decoder, times), asked.raw)
        told, chosen = decision(found, asked.decoder, times), found.choice.chosen
        document = {
            "answer": chosen.text,
            "tokens": len(chosen.tokens),
            "passes": found.passes,
            "seconds": time.perf_counter() - started,
            "joules": meter.joules(),
            "decoder": told | judge_and_error(ask.judge, ask.error_rate),
        }
        terminal.answer(chosen.text + ("" if chosen.ended else " …"))
        terminal.lines(decision_lines(document["decoder"], terminal.lang))
    else:
        picked: dict[str, Any] = {}
        if asked.best_of > 1:
            answer, picked["best_of"] = best_of_drawn(model, request, asked.best_of)
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
            **({} if reading is None else {"unknown": reading.unknown(text)}),
            **picked,
        }
        if draft is not None:
            document["speculation"] = beside_plain(opened, request, *draft)
            terminal.say("ask.speculated", **with_ratios_written(document["speculation"], terminal.lang))
        if asked.sure:
            document["sure"] = sure_of(opened, ask, trace, request.limit)
            terminal.lines(sure_lines(document["sure"], terminal.lang))
    tell_cost(opened)
    terminal.document(document, asked.out)


def best_of_drawn(model: Model, request: Request, n: int) -> tuple[Answer, dict[str, Any]]:
    """Draws ``n`` answers; returns the one with the highest reward, and the ``best_of`` field of ``--json``."""
    from klype.train.reward_model import best_of_n

    found = model.draw(replace(request, n=n))
    best = best_of_n(reward_model(model.opened), [answer.trace for answer in found])
    scores = {"score": best.scores[best.chosen], "scores": list(best.scores), "kl_most": best.kl_most}
    return found[best.chosen], {"n": n, "tokens": sum(len(one.trace.steps) for one in found), **scores}


def decoder_budget(decoder: str, budget: str) -> tuple[float, str]:
    """Parses ``--budget`` ("8×", "500requests" or both) into a decoder's budget, in multiples of a plain answer's
    passes, and a server's limits.

    Raises UsageError for a decoder that does not exist, and for a decoder's budget without a decoder.
    """
    own, of_server = budget_parts(budget)
    if not decoder:
        if own[-1:] in ("×", "x", "X") and own:
            raise UsageError(f"--budget {own} is for a decoder.", "Name one: --decoder consensus.")
        return BUDGET, budget
    from klype.answers.decoders import decoder as find
    from klype.answers.decoding import parse_budget

    find(decoder)
    return (parse_budget(own) if own else BUDGET), of_server


def decide(
    opened: OpenModel, ask: PromptContext, request: Request, decoder: tuple[str, float], raw: bool | None
) -> DecoderResult:
    """Answers one question with ``decoder``: its name and its budget. Raises UsageError where the decoder needs
    something that this model lacks."""
    from klype.answers import decoders
    from klype.answers.decoding import DecodeQuestion, DecoderSettings

    text = ask.question.prompt
    known: dict[str, Check] = {"likelihood": decoders.likelihood}
    if not opened.as_raw(raw):
        known |= yes_check(opened, text)
    if decoder[0] == "verify-statement":
        known["statement"] = decoders.given(lambda answer: statement(opened, text, answer))
    if decoder[0] == "verify-reward":
        judge = reward_model(opened)
        known["reward"] = decoders.judged(lambda prompts, answers: judge.score(prompts, answers).tolist())
    sampling, seed = request.sampling, request.seed
    # decoders that draw need a temperature: at 0 all answers are one
    posed = DecodeQuestion(ask.prompt, ask.meaning, request.limit, opened.stop, seed, sampling=sampling, checks=known)
    (found,) = decoders.decide(opened.source, [posed], *decoder, DecoderSettings(sampling.temperature or 1.0))
    return found


def decision(found: DecoderResult, name: str, budget: float) -> dict[str, Any]:
    """The ``decoder`` field of ``--json``: what was chosen, among what, and at what cost."""
    from klype.api.results import picked
    from klype.judge.meaning import label

    return {
        "name": name,
        "budget": budget,
        "plain": found.plain.chosen.text,
        "changed": found.choice.chosen.meaning != found.plain.chosen.meaning,
        "shares": [
            {"text": one.text, "meaning": label(one.meaning), "share": one.share} for one in found.choice.shares
        ],
        **picked(found, "passes", "plain_passes", "positions", "plain_positions"),
        "times": found.passes / max(1, found.plain_passes),
    }


def decision_lines(told: dict[str, Any], lang: str) -> Iterator[str]:
    """``decision`` in a few sentences."""
    from klype.answers.decoders import decoder
    from klype.examine.say import Say

    w, row = words(lang, "deciding"), decoder(told["name"])
    yield w("chosen", about=Sentences(lang)(row.about))
    if row.spends:
        for share in told["shares"][:SHOWN]:
            yield w("share", share=percent(share["share"], lang), text=share["text"])
        yield w("changed", plain=told["plain"]) if told["changed"] else w("same")
        if "judge" in told:
            yield w("judged", judge=Say(lang).judged(told))
    yield w("cost", **{**told, "times": number(told["times"], lang, 1)})


def reward_model(opened: OpenModel) -> RewardModel:
    from klype.device import pick_device
    from klype.train.reward_model import open_reward_model

    return open_reward_model(opened.found, pick_device(opened.how.device))


def statement(opened: OpenModel, first: str, then: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens of two texts joined by a space, split where the second begins; an empty text becomes a full stop."""
    return tuple(opened.plain(first.strip() or ".")), tuple(opened.say(f" {then.strip() or '.'}"))


def yes_check(opened: OpenModel, question: str) -> dict[str, Check]:
    """A check that asks the model itself whether the answer is right; empty if yes and no are not one token each."""
    from klype.answers.decoders import yes as check
    from klype.sources.source import tokens_of

    def put(answer: str) -> tuple[int, ...]:
        text = f"{question}\nProposed answer: {answer}\nIs the proposed answer right? Yes or No?"
        return tuple(opened.prompt([{"role": "user", "content": text}]))

    def whole(word: str) -> list[int]:
        firsts = {opened.say(spelled)[0] for spelled in (word, f" {word}")}
        codec = opened.source.codec
        return sorted({token for token in firsts if codec.decode([token]).strip() == word} | tokens_of(codec, word))

    yes, no = whole("Yes"), whole("No")
    return {"yes": check(put, yes, no)} if yes and no else {}


def sure_of(opened: OpenModel, ask: PromptContext, trace: Trace, limit: int) -> dict[str, Any]:
    """The ``sure`` field of ``--json``: how certain the model is of an answer.

    ``p``: the answer's probability as it was drawn, ``p_learnt``: at temperature 1; both are of this tokenization, and
    so lower bounds for the text, and null where the model does not tell a token's probability. ``same``: the share of
    SAMPLES further answers that mean the same. They are drawn at ``temperature``, which is 1 for a greedy answer: at 0
    all would be equal. ``decided``: the token that decided the meaning; if null, ``why`` none was found.
    """
    from klype.answers.forks import ForkSettings, forks
    from klype.examine.intervals import allowing, ends, proportion
    from klype.sources.source import answers
    from klype.values import Request

    def p(logps: Iterable[float]) -> float | None:
        total = sum(logps)
        return math.exp(min(0.0, total)) if math.isfinite(total) else None

    hot = trace.sampling if trace.sampling.temperature else replace(trace.sampling, temperature=1.0)
    decode, first = ask.source.codec.decode, trace.sample + 1
    request = Request(ask.prompt, SAMPLES, limit, hot, trace.seed, tuple(ask.source.codec.stop), first_sample=first)
    texts, own = [decode(other.tokens) for other in answers(ask.source, [request])[0]], decode(trace.tokens)
    alike = [ask.meaning(text) for text in texts].count(ask.meaning(own))
    same = proportion(alike, len(texts), "share of answers", ask.judge)
    if (error := ask.error_rate) is not None:  # a judge cannot err about identical texts: at least those agree
        least = ends(proportion(texts.count(own), len(texts)))[0]
        same = allowing(same, error, *((least, 1.0) if error.value is None else ends(same)), within=(least, 1.0))
    found: dict[str, Any] = {
        "p": p(step.sampling_logprob for step in trace.steps),
        "p_learnt": p(step.logp for step in trace.steps),
        "temperature": hot.temperature,
        "same": same.json(),
        "decided": None,
    }
    if not opened.goes_on:
        return {**found, "why": "server"}
    if not 1 < len(trace.steps) <= LONGEST:
        return {**found, "why": "too short" if len(trace.steps) < 2 else "too long"}
    settings = ForkSettings(hot, max(limit, len(trace.steps)), SAMPLES, trace.seed)
    looked = forks(ask.source, trace, settings, ask.meaning)
    if looked.fork is None:
        return {**found, "why": "by chance" if same.value is not None and same.value < 1 else "all the same"}
    at = looked.positions[looked.fork]
    before = looked.positions[looked.fork - 1].own if looked.fork else looked.before[0]
    if at.own <= before:  # the token made other meanings less probable, not this one more
        return {**found, "why": "by chance"}
    word = {"token": opened.spelled(at.token), "index": looked.fork, "before": before, "after": at.own, "p": looked.p}
    return {**found, "decided": word}


def sure_lines(found: dict[str, Any], lang: str) -> Iterator[str]:
    """``sure_of`` in three sentences."""
    from klype.examine.say import Say
    from klype.values import Figure

    say, same, w, word = Say(lang), found["same"], words(lang, "sure"), found["decided"]
    figure = Figure.of(same)
    value, low, high = (end or 0.0 for end in (figure.value, figure.low, figure.high))
    shares = {"share": percent(value, lang), "ends": f"{percent(low, lang)} – {percent(high, lang)}"}
    counts = {"n": figure.n, "k": round(value * figure.n), "t": short(found["temperature"], lang)}
    yield w("p", p=share_of(found["p"], lang), learnt=share_of(found["p_learnt"], lang))
    yield w("same", **counts, **shares, judge=say.judged(same))
    if bounds := say.bounds(same):
        yield w("allowing", bounds=bounds)
    if word is None:
        yield w(f"undecided.{found['why'].replace(' ', '_')}", longest=LONGEST)
    else:
        shares = {name: percent(word[name], lang) for name in ("before", "after")}
        yield w("decided", word=visible(word["token"]).strip(), n=word["index"] + 1, **shares)


def share_of(p: float | None, lang: str) -> str:
    """A probability in percent; below 0.1 % as "1 in 5,000", below 1e-9 as a power of ten."""
    from klype.examine.say import Say

    if p is None:
        return "–"
    if p >= 0.001 or p == 0.0:
        return percent(p, lang, 1 if p < 0.1 else 0)
    if p <= 1e-9:
        return f"10^{math.log10(p):.0f}".replace("-", "\u2212")
    return words(lang, "sure")("one_in", n=Say(lang).big(1 / p))


def beside_plain(opened: OpenModel, request: Request, name: str, draft: Draft) -> dict[str, Any]:
    """Answers the request with and without speculative decoding; returns the ``speculation`` field of ``--json``.

    Both are timed after a warm-up and process the prompt from scratch. ``name`` and ``draft``: see ``make_draft``.
    """
    from klype.engine.speculation import speculate

    engine, warming = opened.engine, replace(request, limit=min(WARM, request.limit))
    engine.run([warming])
    speculate(engine, warming, draft, GAMMA)
    engine.prefixes.clear()  # else the prompt's keys and values would be reused
    ((plain,),) = engine.run([request])
    engine.prefixes.clear()
    ((trace,), counts) = speculate(engine, request, draft, GAMMA)
    return {
        **speculation(name, counts),
        "passes": trace.passes,
        "seconds": trace.seconds,
        "plain_passes": plain.passes,
        "plain_seconds": plain.seconds,
        "speedup": plain.seconds / trace.seconds if trace.seconds else None,
        "same_tokens": trace.tokens == plain.tokens,
    }


def speculation(name: str, counts: Speculation) -> dict[str, Any]:
    """The ``speculation`` field of ``--json``: what guessing with the draft ``name`` was worth."""
    from klype.api.results import picked

    return {"draft": name, **picked(counts, "gamma", "alpha", "tokens_per_pass", "cost", "predicted_speedup")}


def with_ratios_written(told: dict[str, Any], lang: str) -> dict[str, Any]:
    """``speculation``'s fields for a sentence: ratios as text, "–" for those that could not be measured."""
    said = {**told, "alpha": "–" if told["alpha"] is None else percent(told["alpha"], lang)}
    for name in {"tokens_per_pass", "speedup", "predicted_speedup"} & told.keys():
        said[name] = "–" if told[name] is None else number(told[name], lang, 2)
    return said


def make_draft(opened: OpenModel, name: str) -> Draft:
    """The draft called ``name``: "lookup", or a MODEL. Raises UsageError for a MODEL with another tokenizer."""
    from klype.engine.speculation import LookupDraft, ModelDraft
    from klype.sources.opening import open_model

    own = opened.loaded  # raises for models that klype's own engine does not run
    if name == "lookup":
        return LookupDraft()
    loaded = open_model(name, opened.how.precision, device=str(own.model.device)).loaded
    if loaded.config.vocab_size != own.config.vocab_size or not loaded.tokenizer.agrees(own.tokenizer):
        raise UsageError(
            f"The draft {name} and {opened.name} do not share a tokenizer: {loaded.config.vocab_size} tokens and"
            f" {own.config.vocab_size}, not all of them the same.",
            "Choose a draft that was trained with the same one.",
        )
    return ModelDraft(loaded.model)
