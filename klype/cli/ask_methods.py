"""What ``klype ask`` and ``chat`` do beyond a plain answer: decoders, best-of-n, certainty, speculative decoding."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from klype.answers import decoders
from klype.answers.decoder_requests import Check, DecodeQuestion, DecoderSettings
from klype.answers.decoders import DecoderResult
from klype.answers.forks import ForkSettings, forks
from klype.api.model import Model
from klype.api.prompt_context import PromptContext
from klype.api.results import Answer, fields_of
from klype.cli.next_tree_forks import visible
from klype.device import pick_device
from klype.engine.speculation import Draft, LookupDraft, ModelDraft, Speculation, speculate
from klype.errors import UsageError
from klype.examine.intervals import ends, proportion, with_bounds
from klype.examine.say import Say
from klype.judge.meaning import label
from klype.sources.opening import OpenModel, open_model
from klype.sources.source import answers, tokens_of
from klype.train.reward_model import RewardModel, best_of_n, open_reward_model
from klype.values import Request, Trace
from klype.words import number, percent, short, words
from klype.words.sentences import Sentences

SHOWN = 5  # meanings listed of those that a decoder found
SAMPLES = 32  # answers drawn for --sure, and continuations drawn at every token
LONGEST = 64  # tokens: in a longer answer the deciding token is not searched for
GAMMA = 4  # tokens guessed before a pass of the model
WARM = 8  # tokens generated before anything is timed, so that one-time initialisation is not measured


def best_of_drawn(model: Model, request: Request, n: int) -> tuple[Answer, dict[str, Any]]:
    """Draws ``n`` answers; returns the one with the highest reward, and the ``best_of`` field of ``--json``."""
    found = model.draw(replace(request, n=n))
    best = best_of_n(reward_model(model.opened), [answer.trace for answer in found])
    scores = {"score": best.scores[best.chosen], "scores": list(best.scores), "kl_most": best.kl_most}
    return found[best.chosen], {"n": n, "tokens": sum(len(one.trace.steps) for one in found), **scores}


def decide(
    opened: OpenModel, ask: PromptContext, request: Request, decoder: tuple[str, float], raw: bool | None
) -> DecoderResult:
    """Answers one question with ``decoder``: its name and its budget. Raises UsageError where the decoder needs
    something that this model lacks."""
    text = ask.question.prompt
    known: dict[str, Check] = {"likelihood": decoders.likelihood_check}
    if not opened.as_raw(raw):
        known |= yes_check(opened, text)
    if decoder[0] == "verify-statement":
        known["statement"] = decoders.statement_check(lambda answer: statement(opened, text, answer))
    if decoder[0] == "verify-reward":
        judge = reward_model(opened)
        known["reward"] = decoders.reward_check(lambda prompts, answers: judge.score(prompts, answers).tolist())
    sampling, seed = request.sampling, request.seed
    # decoders that draw need a temperature: at 0 all answers are one
    posed = DecodeQuestion(ask.prompt, ask.meaning, request.limit, opened.stop, seed, sampling=sampling, checks=known)
    (found,) = decoders.decide(opened.source, [posed], *decoder, DecoderSettings(sampling.temperature or 1.0))
    return found


def decision(found: DecoderResult, name: str, budget: float) -> dict[str, Any]:
    """The ``decoder`` field of ``--json``: what was chosen, among what, and at what cost."""
    return {
        "name": name,
        "budget": budget,
        "plain": found.plain.chosen.text,
        "changed": found.choice.chosen.meaning != found.plain.chosen.meaning,
        "shares": [
            {"text": one.text, "meaning": label(one.meaning), "share": one.share} for one in found.choice.shares
        ],
        **fields_of(found, "passes", "plain_passes", "positions", "plain_positions"),
        "times": found.passes / max(1, found.plain_passes),
    }


def decision_lines(told: dict[str, Any], lang: str) -> Iterator[str]:
    """``decision`` in a few sentences."""
    w, row = words(lang, "deciding"), decoders.decoder(told["name"])
    yield w("chosen", about=Sentences(lang)(row.about))
    if row.spends:
        for share in told["shares"][:SHOWN]:
            yield w("share", share=percent(share["share"], lang), text=share["text"])
        yield w("changed", plain=told["plain"]) if told["changed"] else w("same")
        if "judge" in told:
            yield w("judged", judge=Say(lang).judge_note(told))
    yield w("cost", **{**told, "times": number(told["times"], lang, 1)})


def reward_model(opened: OpenModel) -> RewardModel:
    return open_reward_model(opened.found, pick_device(opened.how.device))


def statement(opened: OpenModel, first: str, then: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens of two texts joined by a space, split where the second begins; an empty text becomes a full stop."""
    return tuple(opened.encode_text(first.strip() or ".")), tuple(opened.encode_answer(f" {then.strip() or '.'}"))


def yes_check(opened: OpenModel, question: str) -> dict[str, Check]:
    """A check that asks the model itself whether the answer is right; empty if yes and no are not one token each."""

    def put(answer: str) -> tuple[int, ...]:
        text = f"{question}\nProposed answer: {answer}\nIs the proposed answer right? Yes or No?"
        return tuple(opened.prompt([{"role": "user", "content": text}]))

    def whole(word: str) -> list[int]:
        firsts = {opened.encode_answer(spelled)[0] for spelled in (word, f" {word}")}
        codec = opened.source.codec
        return sorted({token for token in firsts if codec.decode([token]).strip() == word} | tokens_of(codec, word))

    yes, no = whole("Yes"), whole("No")
    return {"yes": decoders.yes_no_check(put, yes, no)} if yes and no else {}


def sure_of(opened: OpenModel, ask: PromptContext, trace: Trace, limit: int) -> dict[str, Any]:
    """The ``sure`` field of ``--json``: how certain the model is of an answer.

    ``p``: the answer's probability as it was drawn, ``p_learnt``: at temperature 1; both are of this tokenization, and
    so lower bounds for the text, and null where the model does not tell a token's probability. ``same``: the share of
    SAMPLES further answers that mean the same. They are drawn at ``temperature``, which is 1 for a greedy answer: at 0
    all would be equal. ``decided``: the token that decided the meaning; if null, ``why`` none was found.
    """

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
        same = with_bounds(same, error, *((least, 1.0) if error.value is None else ends(same)), within=(least, 1.0))
    found: dict[str, Any] = {
        "p": p(step.sampling_logprob for step in trace.steps),
        "p_learnt": p(step.logp for step in trace.steps),
        "temperature": hot.temperature,
        "same": same.json(),
        "decided": None,
    }
    if not opened.can_continue:
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
    figures = {"index": looked.fork, "before": before, "after": at.own, "p": looked.p}
    return {**found, "decided": {"token": opened.token_text(at.token), **figures}}


def sure_lines(found: dict[str, Any], lang: str) -> Iterator[str]:
    """``sure_of`` in three sentences."""
    say, same, w, word = Say(lang), found["same"], words(lang, "sure"), found["decided"]
    value, low, high = (same.get(name) or 0.0 for name in ("value", "low", "high"))
    shares = {"share": percent(value, lang), "ends": f"{percent(low, lang)} – {percent(high, lang)}"}
    counts = {"n": (n := same.get("n", 0)), "k": round(value * n), "t": short(found["temperature"], lang)}
    yield w("p", p=share_of(found["p"], lang), learnt=share_of(found["p_learnt"], lang))
    yield w("same", **counts, **shares, judge=say.judge_note(same))
    if bounds := say.bounds(same):
        yield w("allowing", bounds=bounds)
    if word is None:
        yield w(f"undecided.{found['why'].replace(' ', '_')}", longest=LONGEST)
    else:
        shares = {name: percent(word[name], lang) for name in ("before", "after")}
        yield w("decided", word=visible(word["token"]).strip(), n=word["index"] + 1, **shares)


def share_of(p: float | None, lang: str) -> str:
    """A probability in percent; below 0.1 % as "1 in 5,000", below 1e-9 as a power of ten."""
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
    engine, warming = opened.engine, replace(request, limit=min(WARM, request.limit))
    engine.run([warming])
    speculate(engine, warming, draft, GAMMA)
    engine.runner.forget()  # else the prompt's keys and values would be reused
    ((plain,),) = engine.run([request])
    engine.runner.forget()
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
    return {"draft": name, **fields_of(counts, "gamma", "alpha", "tokens_per_pass", "cost", "predicted_speedup")}


def with_ratios_written(told: dict[str, Any], lang: str) -> dict[str, Any]:
    """``speculation``'s fields for a sentence: ratios as text, "–" for those that could not be measured."""
    said = {**told, "alpha": "–" if told["alpha"] is None else percent(told["alpha"], lang)}
    for name in {"tokens_per_pass", "speedup", "predicted_speedup"} & told.keys():
        said[name] = "–" if told[name] is None else number(told[name], lang, 2)
    return said


def make_draft(opened: OpenModel, name: str) -> Draft:
    """The draft called ``name``: "lookup", or a MODEL. Raises UsageError for a MODEL with another tokenizer."""
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
