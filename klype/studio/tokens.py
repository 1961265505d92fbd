"""Tokens on a page: an answer's, coloured by probability, each of which can be picked; what could have been said in its
place (from the trace: the model is not asked again); and any text's."""

from __future__ import annotations

import asyncio
import codecs
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from nicegui import ui
from nicegui.events import GenericEventArguments

from klype.answers import distribution_bounds
from klype.api.model import Model
from klype.engine.sampling import noise, shape_whole
from klype.examine.charts import Cell, Option, axis, bars, step_of
from klype.examine.say import Say, visible
from klype.samplers import SAMPLERS, active
from klype.studio import elements as el
from klype.studio.fields import Select, TextArea
from klype.studio.studio import AnswerBranch, Branches, SharedModel
from klype.values import Distribution, Floats, Sampling, Step
from klype.words import Words

Row = list[str | int]  # text, step of the probability scale, class of how it came, tooltip
Before = tuple[Sequence[int], Sequence[int]]  # the prompt, and what of its answer stands before a token
MOST_OF_A_CHARACTER = 3  # bytes, and so tokens, that stand before the last one of a character
LONGEST_TEXT, SHOWN_TOKENS, LISTED_TOKENS = 20_000, 2000, 40
# So many of the most probable tokens are listed at least, and at most; between, and as bars, those that can be seen.
FEWEST, MOST, SEEN_P = 5, 10, 5e-4


class Tokens(ui.element, component="tokens.js"):
    """``label`` is what a screen reader calls it. Tokens are sent once, as they come."""

    def __init__(self, rows: Sequence[Row], label: str, busy: bool, on_pick: Callable[[int], None]) -> None:
        super().__init__()
        self.rows, self.busy = list(rows), busy
        self._props.update(tokens=self.rows, label=label, busy=busy, picked=-1)

        def pick(given: object) -> None:
            """A browser may send anything: what is no place in the answer is the nearest one."""
            place = int(given) if isinstance(given, int | float) and math.isfinite(given) else 0
            on_pick(max(0, min(len(self.rows) - 1, place)))

        self.on("pick", lambda event: pick(event.args))

    def add(self, rows: Sequence[Row]) -> None:
        if rows:
            self.run_method("put", len(self.rows), list(rows))
            self.rows.extend(rows)


def pieces(model: Model, ids: Sequence[int]) -> list[str]:
    """Each token's text. A character of several tokens stands at the last of them (⋯ before)."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="backslashreplace")
    out = []
    for token in ids:
        name = model.opened.control(token)
        text = decoder.decode(b"" if name is not None else model.opened.spell(token))
        out.append(name if name is not None else visible(text) or "⋯")
    return out


def rows_of(model: Model, steps: Sequence[Step], first: int, percent: Callable[[float], str]) -> list[Row]:
    """Rows of the steps from ``first`` on."""
    out: list[Row] = []
    texts = pieces(model, [step.token for step in steps])
    for place, (step, text) in list(enumerate(zip(steps, texts, strict=True)))[first:]:
        p = min(1.0, math.exp(step.logp))
        control = "control" if model.opened.control(step.token) is not None else ""
        how = step.source if step.source in ("drafted", "forced") else control
        out.append([text.removeprefix(" ") if place == 0 else text, step_of(p), how, percent(p)])
    return out


def shown(model: Model, token: int, before: Sequence[int] = ()) -> str:
    """A token's text where its white space matters: as a sign. What it completes of the tokens ``before`` it is one
    character, and a token that only begins one is ⋯ with its bytes."""
    text = pieces(model, [*before[-MOST_OF_A_CHARACTER:], token])[-1]
    if text == "⋯":
        data = model.opened.spell(token).hex(" ").upper()
        return f"⋯ ({data})" if data else "∅"
    return text.strip(" ").replace("\n", "↵").replace("\t", "⇥") or "␣" * len(text)


@dataclass(frozen=True, slots=True)
class TokenBar:
    """One token: probability under the model, as drawn from, and in truth (None: nobody knows)."""

    token: int
    p: float
    drawn: float
    truth: float | None = None
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class TokenBars:
    """``exact``: the distribution is whole, so all bars are exact. ``kept``: how many tokens can be drawn."""

    bars: tuple[TokenBar, ...]
    exact: bool
    kept: int


def bars_of(
    step: Step, before: Before, sampling: Sampling, vocabulary: int, truth: Mapping[int, float] | None = None
) -> TokenBars | None:
    """The likeliest tokens, the one that was said, and the truth's likeliest. None: nothing is known."""
    q = step.distribution
    if q is None or not len(q.ids):
        return None
    p_K = np.exp(q.logp.astype(np.float64))
    drawn_K = drawn_from(q, before, sampling, vocabulary)
    place = {int(token): i for i, token in enumerate(q.ids)}
    listed = [int(token) for i, token in enumerate(q.ids[:MOST]) if i < FEWEST or p_K[i] >= SEEN_P]
    truest = sorted(truth, key=lambda token: -truth[token])[:4] if truth else []
    rows = []
    for token in dict.fromkeys([*listed, step.token, *truest]):
        i = place.get(token)
        p, drawn = (0.0, 0.0) if i is None else (float(p_K[i]), float(drawn_K[i]))
        rows.append(TokenBar(token, p, drawn, None if truth is None else truth.get(token, 0.0), token == step.token))
    rows.sort(key=lambda bar: -bar.p)  # what was said and what is true stand among the others, by their probability
    return TokenBars(tuple(rows), q.whole, int((drawn_K > 0).sum()))


def drawn_from(q: Distribution, before: Before, sampling: Sampling, vocabulary: int) -> Floats:
    """The listed tokens' probabilities as they would be drawn, by the function that answers are drawn with.

    Of a partial distribution: what is certain of them at this temperature, cut among what is listed; penalties, for
    which the others would have to be known, are left out.
    """
    if q.whole:
        found_K: Floats = shape_whole(q, sampling, before, vocabulary).double().exp().numpy()[q.ids]
        return found_K
    p_K = distribution_bounds.tempered(q, sampling.temperature, vocabulary).low_K
    logp_1K = torch.from_numpy(np.log(np.maximum(p_K, 1e-300)))[None]
    for name, value in active(sampling).items():
        if (cut := SAMPLERS[name].shape) is not None:
            logp_1K = cut(logp_1K, value)
    cut_K: Floats = logp_1K[0].exp().numpy()
    return cut_K if (cut_K[p_K > 0] == 0).any() else p_K


@dataclass
class TokenPanel(el.PagePart):
    """Beside the conversation; it follows the token that was picked and the sliders. ``side`` is what holds it: on a
    narrow screen a sheet that opens with a token."""

    side: ui.element
    sampling: Callable[[], Sampling]
    fork: Callable[[Branches, int, int], None]
    place: tuple[SharedModel, Branches, int] | None = None
    found: TokenBars | None = None
    truth: Mapping[int, float] | None = None
    drawn: ui.echart | None = None
    unfolded: bool = False

    def build(self) -> None:
        close = self.w("close")
        el.button(close, lambda: self.side.classes(remove="open"), "tiny k-close", aria_label=close)
        self.title = el.text_of("h2", self.w("panel"))
        self.note = el.small(self.w("panel_empty"))
        self.box = el.box()

    def look(self, model: SharedModel, branches: Branches, at: int, question: str, opened: bool = True) -> None:
        """At token ``at`` of the shown answer. The truth comes a moment later, where somebody knows it."""
        if not 0 <= at < len(branches.current.steps):
            return
        here = self.place = model, branches, at
        self.truth = None  # the bars do not wait for it
        if opened:
            self.side.classes("open")
        self.draw()
        if question:
            client = ui.context.client

            async def ask() -> None:
                found = await asyncio.to_thread(model.truth, question, branches.current.tokens[:at])
                if found is not None and self.place is here and not client.is_deleted:
                    with client:
                        self.truth = found
                        self.draw()

            ui.timer(0.0, ask, once=True)

    def draw(self) -> None:
        """All of it anew, as the sliders stand: from the trace, without the model. The chart stays the same element: a
        new one takes a browser three times as long."""
        if self.place is None or self.place[2] >= len(self.place[1].current.steps):
            return
        w, (model, branches, at) = self.w, self.place
        answer, before = branches.current, branches.current.tokens[:at]
        said = shown(model, answer.steps[at].token, before)
        el.retext(self.title, w("panel_at", n=self.say.count(at + 1), token=said))
        sampling = self.sampling()
        found = self.found = bars_of(answer.steps[at], (answer.prompt, before), sampling, model.vocabulary, self.truth)
        if found is None:
            el.retext(self.note, w("no_distribution"))
            self.box.clear()
            self.drawn = None
            return
        el.retext(self.note, why_chosen(answer, at, found, w, self.say))
        names = {bar.token: shown(model, bar.token, before) for bar in found.bars}
        if self.drawn is None:
            self.unfolded = False
            with self.box:
                self.drawn = el.chart({}, self.visit.lang, 0, "")
                el.small(" ".join([w("how_bars"), *([w("how_bars_aligned")] if model.stage == "align" else [])]))

                def unfold(event: GenericEventArguments) -> None:
                    self.unfolded = event.args is True
                    self.draw()

                others = el.fold(w("others")).on("toggle", unfold, js_handler="(e) => emit(e.target.open)")
                with others:
                    self.ways = el.box()
                columns = [w("token"), w("number"), w("model_p"), w("drawn_p", t=""), w("truth_p")]
                el.as_data(self.visit, "next-token", columns, self.rows, self.drawn)
        self.drawn.props["aria-label"] = w("chart_of", token=said)
        option, height = self._chart(found, names, self.say.plain(sampling.temperature))
        el.redraw(self.drawn.style(f"height: {height}px"), option, self.visit.lang)
        self.ways.clear()
        if self.unfolded:
            with self.ways:
                self._list(found, names, partial(self.fork, branches, at))

    def _list(self, found: TokenBars, names: Mapping[int, str], take: Callable[[int], None]) -> None:
        """The ways as a table, while somebody looks at it."""
        w, known, rows = self.w, self.truth is not None, []
        for bar in found.bars:
            name = names[bar.token]
            shares = [least(self.say, share) for share in (bar.p, bar.drawn, *([bar.truth or 0.0] if known else []))]
            label = w("take_named", token=name)
            act = partial(el.button, w("take"), partial(take, bar.token), "tiny", aria_label=label)
            rows.append([partial(el.text_of, "bdi", name), *shares, w("said") if bar.chosen else act])
        truth = [w("truth_p")] if known else []
        titles = [w("token"), w("model_short"), w("drawn_short"), *truth, w("way_from")]
        el.table(self.visit, titles, rows, numeric=range(1, len(titles) - 1))

    def _chart(self, found: TokenBars, names: Mapping[int, str], t: str) -> tuple[Option, int]:
        """The bars, with one for all tokens together that would be shown as 0 %; and how high they are."""
        w = self.w
        seen = [b for b in found.bars if b.chosen or max(b.p, b.drawn, b.truth or 0.0) >= SEEN_P]
        labels = [("▸ " if bar.chosen else "") + names[bar.token] for bar in seen]
        series = {w("model_p"): ("aligned", [bar.p for bar in seen]),
                  w("drawn_p", t=t): ("aligned", [bar.drawn for bar in seen])}  # fmt: skip
        if self.truth is not None:
            series[w("truth_p")] = ("truth", [bar.truth or 0.0 for bar in seen])
        rest = [1 - sum(values) for _, values in series.values()]
        rest[1] *= found.exact  # of how the others are drawn nothing is certain where they are not known
        if max(rest) >= SEEN_P:
            labels.append(w("rest"))
            for (_, values), share in zip(series.values(), rest, strict=True):
                values.append(max(0.0, share))
        height = 76 + len(labels) * (54 if self.truth is not None else 36)
        return bars(labels, series, axis(percent=True, min=0, max=1), numbers=True), height

    def rows(self) -> list[list[Cell]]:
        if self.found is None or self.place is None:
            return []
        spelled = self.place[0].opened.spelled
        return [[visible(spelled(b.token)), b.token, b.p, b.drawn, b.truth] for b in self.found.bars]


def least(say: Say, share: float) -> str:
    """A share; one that is there and would be shown as nothing is "< 0.1 %"."""
    return f"< {say.share(0.001, 1)}" if 0 < share < SEEN_P else say.share(share, 1)


def why_chosen(answer: AnswerBranch, at: int, found: TokenBars, w: Words, say: Say) -> str:
    """How probable a token was, how it came to stand there, and how many others could have."""
    step = answer.steps[at]
    p = min(1.0, math.exp(step.logp))
    parts = [w("was", p=say.share(p, 1), bits=say.number(-math.log2(p), 1) if p > 0 else "∞")]
    if step.source in ("forced", "drafted"):
        parts.append(w(f"was_{step.source}"))
    elif answer.sampling.temperature == 0:
        parts.append(w("was_greedy"))
    else:
        u = float(noise(answer.seed, 0, len(answer.prompt) + at))
        drawn, t = min(1.0, math.exp(step.sampling_logprob)), say.plain(answer.sampling.temperature)
        parts.append(w("was_drawn", p=say.share(drawn, 1), u=say.number(u, 3), t=t))
    parts.append(w("kept" if found.exact else "partial", n=say.count(found.kept)))
    return " ".join(parts)


def tokenizer_view(visit: el.Visit) -> None:
    """A fold: a text, the model whose tokens are wanted, and the pieces, with their numbers."""
    w, say = visit.words, visit.say

    async def cut() -> None:
        model = visit.studio.model(choice.value)
        ids = await visit.attempt(model.opened.plain, text.value)
        if ids is None:
            return
        texts = pieces(model, ids[:SHOWN_TOKENS])
        found.clear()
        with found:
            el.small(w("cut_into", n=say.count(len(ids)), characters=say.count(len(text.value))))
            with el.box("k-answer"):
                for i, (token, piece) in enumerate(zip(ids, texts, strict=False)):
                    el.text_of("span", piece, "k-tok plain even" if i % 2 else "k-tok plain", title=str(token))
            listed = zip(ids[:LISTED_TOKENS], texts, strict=False)
            rows = [[str(token), piece, model.opened.spell(token).hex(" ")] for token, piece in listed]
            with el.fold(w("as_bytes")):
                el.table(visit, [w("number"), w("token"), w("bytes")], rows)

    with el.fold(w("tokenizer"), "k-card"):
        el.small(w("tokenizer_how"))
        with el.box("k-row"):
            names = {model.name: model.name for model in visit.studio.models}
            choice = Select(w("model"), names, next(iter(names)), cut)
            text = TextArea(w("any_text"), LONGEST_TEXT, cut)
        el.button(w("cut"), cut)
        found = el.box().style("margin-top:10px")
