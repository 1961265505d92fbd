"""``--sure``: how sure the model is of this very answer: its probability, others that agree, where it was decided."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from klype.api.asking import Asking
    from klype.cli.terminal import Terminal
    from klype.sources.opening import Opened
    from klype.values import Trace

SAMPLES = 32  # answers drawn at every word
LONGEST = 64  # tokens: of a longer answer it is not looked for where it was decided


def sure_of(opened: Opened, ask: Asking, trace: Trace, limit: int) -> dict[str, Any]:
    """``p`` of the answer as it was drawn and ``p_learnt`` at temperature 1: of this spelling, so of the text at least.

    ``same``: the share of SAMPLES further answers that mean the same. At temperature 0 all would be equal: they are
    drawn at 1, and ``temperature`` says so. ``decided``: the word that decided the meaning, null when chance could
    have shown as much; ``why`` there is none. Tokens whose probability the model does not tell: p is null.
    """
    from klype.answers.forks import ForkSettings, forks
    from klype.examine.intervals import proportion
    from klype.sources.source import answers
    from klype.values import Request

    hot = trace.sampling if trace.sampling.temperature else replace(trace.sampling, temperature=1.0)
    request = Request(
        ask.prompt, SAMPLES, limit, hot, trace.seed, tuple(ask.source.codec.stop), first_sample=trace.sample + 1
    )
    texts = [ask.source.codec.decode(other.tokens) for other in answers(ask.source, [request])[0]]
    own = ask.meaning(ask.source.codec.decode(trace.tokens))
    same = proportion(sum(ask.meaning(text) == own for text in texts), len(texts), "share of answers", ask.judge)
    found: dict[str, Any] = {
        "p": _p([step.drawn_logp for step in trace.steps]),
        "p_learnt": _p([step.logp for step in trace.steps]),
        "temperature": hot.temperature,
        "same": same.json(),
        "decided": None,
    }
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


def tell(terminal: Terminal, found: dict[str, Any]) -> None:
    """Three plain sentences."""
    from klype.cli.commands.next_token import visible
    from klype.values import Figure
    from klype.words import percent, short, words

    w, lang, same = words(terminal.lang, "sure"), terminal.lang, found["same"]
    said = [w("p", p=_share(found["p"], lang), learnt=_share(found["p_learnt"], lang))]
    figure = Figure(same["value"], same["low"], same["high"])
    ends = f"{percent(figure.low or 0.0, lang)} – {percent(figure.high or 0.0, lang)}"
    shown = {
        "share": percent(figure.value or 0.0, lang),
        "ends": ends,
        "judge": w(f"judge.{_key(same.get('judge', ''))}"),
    }
    said.append(
        w("same", n=same["n"], k=round((figure.value or 0.0) * same["n"]), t=short(found["temperature"], lang), **shown)
    )
    decided = found["decided"]
    if decided is None:
        said.append(w(f"undecided.{_key(found['why'])}", longest=LONGEST))
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
    from klype.words import count, percent

    if p is None:
        return "–"
    if p >= 0.001 or p == 0.0:
        return percent(p, lang, 1 if p < 0.1 else 0)
    return f"1 : {count(round(1 / p), lang)}" if p > 1e-9 else f"10^{math.log10(p):.0f}".replace("-", "\u2212")


def _key(text: str) -> str:
    return {"the world's grammar": "grammar", "content of the answering sentence": "claim"}.get(
        text, text.replace(" ", "_")
    )
