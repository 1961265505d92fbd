"""What is told beside an answer: how sure the model is of it (--sure), and what guesses ahead brought (--speculate)."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from klype.errors import KlypeError, UsageError
from klype.values import Request, Trace

if TYPE_CHECKING:
    from klype.api.asking import Asking
    from klype.cli.terminal import Terminal
    from klype.engine.speculation import Draft
    from klype.sources.opening import Opened


SAMPLES = 32  # answers drawn at every word
LONGEST = 64  # tokens: of a longer answer it is not looked for where it was decided


def sure_of(opened: Opened, ask: Asking, trace: Trace, limit: int) -> dict[str, Any]:
    """``p`` of the answer as it was drawn and ``p_learnt`` at temperature 1: of this spelling, so of the text at least.

    ``same``: the share of SAMPLES further answers that mean the same. At temperature 0 all would be equal: they are
    drawn at 1, and ``temperature`` says so. ``decided``: the word that decided the meaning, null when chance could
    have shown as much; ``why`` there is none. Tokens whose probability the model does not tell: p is null.
    """
    from klype.answers.forks import ForkSettings, forks
    from klype.examine.intervals import allowing, ends, proportion
    from klype.sources.source import answers
    from klype.values import Request

    hot = trace.sampling if trace.sampling.temperature else replace(trace.sampling, temperature=1.0)
    request = Request(
        ask.prompt, SAMPLES, limit, hot, trace.seed, tuple(ask.source.codec.stop), first_sample=trace.sample + 1
    )
    texts = [ask.source.codec.decode(other.tokens) for other in answers(ask.source, [request])[0]]
    own = ask.meaning(ask.source.codec.decode(trace.tokens))
    same = proportion(sum(ask.meaning(text) == own for text in texts), len(texts), "share of answers", ask.judge)
    if (error := ask.error_rate) is not None:  # of equal texts nobody doubts it
        alike = ends(proportion(texts.count(ask.source.codec.decode(trace.tokens)), len(texts)))[0]
        same = allowing(same, error, *((alike, 1.0) if error.value is None else ends(same)), within=(alike, 1.0))
    found: dict[str, Any] = {
        "p": _p([step.sampling_logprob for step in trace.steps]),
        "p_learnt": _p([step.logp for step in trace.steps]),
        "temperature": hot.temperature,
        "same": same.json(),
        "decided": None,
    }
    if not opened.goes_on:
        return {**found, "why": "server"}
    if not 1 < len(trace.steps) <= LONGEST:
        return {**found, "why": "too short" if len(trace.steps) < 2 else "too long"}
    decided = forks(
        ask.source, trace, ForkSettings(hot, max(limit, len(trace.steps)), SAMPLES, trace.seed), ask.meaning
    )
    if decided.fork is None:
        return {**found, "why": "by chance" if same.value is not None and same.value < 1 else "all the same"}
    at = decided.positions[decided.fork]
    before = decided.positions[decided.fork - 1].own if decided.fork else decided.before[0]
    if at.own <= before:  # it moved other meanings, not this one
        return {**found, "why": "by chance"}
    word = opened.spelled(at.token)
    return {
        **found,
        "decided": {"token": word, "index": decided.fork, "before": before, "after": at.own, "p": decided.p},
    }


def tell_sure(terminal: Terminal, found: dict[str, Any]) -> None:
    """Three plain sentences."""
    from klype.cli.commands.look import visible
    from klype.examine.say import Say
    from klype.values import Figure
    from klype.words import percent, short, words

    w, lang, same = words(terminal.lang, "sure"), terminal.lang, found["same"]
    said = [w("p", p=_share(found["p"], lang), learnt=_share(found["p_learnt"], lang))]
    figure = Figure(same["value"], same["low"], same["high"])
    ends = f"{percent(figure.low or 0.0, lang)} – {percent(figure.high or 0.0, lang)}"
    shown = {
        "share": percent(figure.value or 0.0, lang),
        "ends": ends,
        "judge": Say(lang).judged(same),
    }
    said.append(
        w("same", n=same["n"], k=round((figure.value or 0.0) * same["n"]), t=short(found["temperature"], lang), **shown)
    )
    if bounds := Say(lang).bounds(same):
        said.append(w("allowing", bounds=bounds))
    decided = found["decided"]
    if decided is None:
        said.append(w(f"undecided.{found['why'].replace(' ', '_')}", longest=LONGEST))
    else:
        token = visible(decided["token"]).strip()
        shares = {name: percent(decided[name], lang) for name in ("before", "after")}
        said.append(w("decided", word=token, n=decided["index"] + 1, **shares))
    for sentence in said:
        terminal.console.print(sentence, markup=False, highlight=False)


def _p(logps: list[float]) -> float | None:
    total = sum(logps)
    return math.exp(min(0.0, total)) if math.isfinite(total) else None


def _share(p: float | None, lang: str) -> str:
    """In percent; what is rarer than one in a thousand as one in so many."""
    from klype.examine.say import Say
    from klype.words import percent, words

    if p is None:
        return "–"
    if p >= 0.001 or p == 0.0:
        return percent(p, lang, 1 if p < 0.1 else 0)
    if p <= 1e-9:
        return f"10^{math.log10(p):.0f}".replace("-", "\u2212")
    return words(lang, "sure")("one_in", n=Say(lang).big(1 / p))


DOCUMENTS = 2000
"""Of the demo world, drawn anew for the counts of an n-gram draft."""
WARM = 8
"""Tokens written before anything is timed: what is made at first use is not compared."""


def beside_plain(opened: Opened, request: Request, name: str, draft: Draft, gamma: int = 4) -> dict[str, Any]:
    """What guessing was worth: acceptance, tokens a pass, and the time beside plain decoding and the formula.

    Both ways are warm and read the prompt anew. ``name`` and ``draft``: see ``make_draft``.
    """
    from klype.engine.speculation import speculate

    engine, warming = opened.engine, replace(request, limit=min(WARM, request.limit))
    engine.run([warming])
    speculate(engine, warming, draft, gamma)
    engine.prefixes.clear()
    ((plain,),) = engine.run([request])
    engine.prefixes.clear()
    ((trace,), counts) = speculate(engine, request, draft, gamma)
    return {
        "draft": name,
        "gamma": gamma,
        "alpha": counts.alpha,
        "tokens_per_pass": counts.tokens_per_pass,
        "cost": counts.cost,
        "passes": trace.passes,
        "seconds": trace.seconds,
        "plain_passes": plain.passes,
        "plain_seconds": plain.seconds,
        "speedup": plain.seconds / trace.seconds if trace.seconds else None,
        "predicted_speedup": counts.predicted_speedup,
        "same_tokens": trace.tokens == plain.tokens,
    }


class Guessing:
    """Answers written with a draft's guesses, piece by piece, as plain decoding's are; counts over all of them."""

    def __init__(self, opened: Opened, draft_name: str, gamma: int = 4) -> None:
        from klype.engine.speculation import Speculation

        self.opened = opened
        self.name = draft_name
        self.draft = make_draft(opened, draft_name)
        self.gamma = gamma
        self.counts = Speculation(gamma)  # of the last answer

    def stream(self, request: Request) -> Iterator[tuple[str, Trace | None]]:
        """As ``klype.sources.opening.stream``."""
        from klype.engine.speculation import Speculation, passes
        from klype.sources.opening import Pieces

        pieces, self.counts = Pieces(), Speculation(self.gamma)
        for steps, trace in passes(self.opened.engine, request, self.draft, self.counts):
            data = b"".join(self.opened.spell(step.token) for step in steps)
            yield pieces.add(data, trace is not None), trace

    def document(self) -> dict[str, Any]:
        return {
            "draft": self.name,
            "gamma": self.gamma,
            "alpha": self.counts.alpha,
            "tokens_per_pass": self.counts.tokens_per_pass,
            "cost": self.counts.cost,
            "predicted_speedup": self.counts.predicted_speedup,
        }


def make_draft(opened: Opened, name: str) -> Draft:
    """``lookup``, ``ngram`` (of a demo-world run), ``ngram:FILE``, or a MODEL with the same tokenizer.

    Errors: a draft that cannot be had, or that has another vocabulary.
    """
    from klype.engine.speculation import LookupDraft, ModelDraft, NgramDraft

    own = opened.loaded  # of klype's own models only
    if name == "lookup":
        return LookupDraft()
    if name == "ngram" or name.startswith("ngram:"):
        return NgramDraft(_texts(opened, name.partition(":")[2]), own.config.vocab_size)
    from klype.sources.opening import open_model

    loaded = open_model(name, opened.how.precision, device=str(own.model.device)).loaded
    if loaded.config.vocab_size != own.config.vocab_size or not loaded.tokenizer.agrees(own.tokenizer):
        raise UsageError(
            f"The draft {name} and {opened.name} do not share a tokenizer: {loaded.config.vocab_size} tokens and"
            f" {own.config.vocab_size}, not all of them the same.",
            "Choose a draft that was trained with the same one.",
        )
    return ModelDraft(loaded.model)


def _texts(opened: Opened, file: str) -> list[list[int]]:
    tokenizer = opened.loaded.tokenizer
    if file:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except OSError as error:
            raise UsageError(f"The text {file} of the n-gram draft cannot be read: {error.strerror}.") from None
        except ValueError as error:
            raise UsageError(f"The text {file} of the n-gram draft is not UTF-8: {error}.") from None
        return tokenizer.encode_documents(text.split("\n\n"))
    from klype.runs.folder import read_run
    from klype.world.world import World

    settings = read_run(opened.found.run).get("settings", {}) if opened.found.run else {}
    if settings.get("kind") != "world":
        raise KlypeError(
            f"There is no text at hand to count for {opened.name}.", "Name one: --speculate ngram:FILE, or use lookup."
        )
    world, rng = World(settings.get("world", "full")), random.Random(0)
    return tokenizer.encode_documents([world.text(world.document(rng).words) for _ in range(DOCUMENTS)])
