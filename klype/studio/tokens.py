"""Tokens on a page: those of an answer, coloured by probability; the alternatives at one of them, from the trace,
without asking the model again; and those of any text."""

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

Row = list[str | int]  # text, step of the probability scale, CSS class, tooltip
Before = tuple[Sequence[int], Sequence[int]]  # the prompt, and the answer's tokens before a token
MAX_PARTIAL = 3  # tokens at most that a character has before its last one (UTF-8 has four bytes)
LONGEST_TEXT, SHOWN_TOKENS, LISTED_TOKENS = 20_000, 2000, 40
# the MIN_LISTED most probable tokens are always listed, up to MAX_LISTED if they have at least SEEN_P (shown as 0.1 %)
MIN_LISTED, MAX_LISTED, SEEN_P = 5, 10, 5e-4


class Tokens(ui.element, component="tokens.js"):
    """The tokens of an answer, each sent once, as they come. ``on_pick``: called with the place of the one that is
    picked; ``label``: for screen readers."""

    def __init__(self, rows: Sequence[Row], label: str, busy: bool, on_pick: Callable[[int], None]) -> None:
        super().__init__()
        self.rows, self.busy = list(rows), busy
        self._props.update(tokens=self.rows, label=label, busy=busy, picked=-1)

        def pick(given: object) -> None:
            """Calls back with the nearest place in the answer: a browser may send anything."""
            place = int(given) if isinstance(given, int | float) and math.isfinite(given) else 0
            on_pick(max(0, min(len(self.rows) - 1, place)))

        self.on("pick", lambda event: pick(event.args))

    def add(self, rows: Sequence[Row]) -> None:
        if rows:
            self.run_method("put", len(self.rows), list(rows))
            self.rows.extend(rows)


def pieces(model: Model, ids: Sequence[int]) -> list[str]:
    """The text of each token. A character of several tokens is shown at the last one, with ⋯ at the others."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="backslashreplace")
    out = []
    for token in ids:
        name = model.opened.control_name(token)
        text = decoder.decode(b"" if name is not None else model.opened.token_bytes(token))
        out.append(name if name is not None else visible(text) or "⋯")
    return out


def rows_of(model: Model, steps: Sequence[Step], first: int, percent: Callable[[float], str]) -> list[Row]:
    """The rows of ``Tokens`` for the steps from place ``first`` on."""
    out: list[Row] = []
    texts = pieces(model, [step.token for step in steps])
    for place, (step, text) in list(enumerate(zip(steps, texts, strict=True)))[first:]:
        p = min(1.0, math.exp(step.logp))
        control = "control" if model.opened.control_name(step.token) is not None else ""
        how = step.source if step.source in ("drafted", "forced") else control
        out.append([text.removeprefix(" ") if place == 0 else text, step_of(p), how, percent(p)])
    return out


def visible_text(model: Model, token: int, before: Sequence[int] = ()) -> str:
    """A token's text with visible white space. ``before``: the tokens before it, of which it may complete a character;
    a token that only begins one is ⋯ with its bytes."""
    text = pieces(model, [*before[-MAX_PARTIAL:], token])[-1]
    if text == "⋯":
        data = model.opened.token_bytes(token).hex(" ").upper()
        return f"⋯ ({data})" if data else "∅"
    return text.strip(" ").replace("\n", "↵").replace("\t", "⇥") or "␣" * len(text)


@dataclass(frozen=True, slots=True)
class TokenBar:
    """A token's probability under the model, as drawn from, and in truth (None: not known)."""

    token: int
    p: float
    drawn: float
    truth: float | None = None
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class TokenBars:
    """The bars of a step. ``exact``: the whole distribution is known; ``kept``: how many tokens can be drawn."""

    bars: tuple[TokenBar, ...]
    exact: bool
    kept: int


def bars_of(
    step: Step, before: Before, sampling: Sampling, vocabulary: int, truth: Mapping[int, float] | None = None
) -> TokenBars | None:
    """The most probable tokens of a step, the one that was chosen, and the most probable in truth, by probability; None
    if the trace has no distribution."""
    q = step.distribution
    if q is None or not len(q.ids):
        return None
    p_K = np.exp(q.logp.astype(np.float64))
    drawn_K = sampling_probabilities(q, before, sampling, vocabulary)
    place = {int(token): i for i, token in enumerate(q.ids)}
    listed = [int(token) for i, token in enumerate(q.ids[:MAX_LISTED]) if i < MIN_LISTED or p_K[i] >= SEEN_P]
    truest = sorted(truth, key=lambda token: -truth[token])[:4] if truth else []
    rows = []
    for token in dict.fromkeys([*listed, step.token, *truest]):
        i = place.get(token)
        p, drawn = (0.0, 0.0) if i is None else (float(p_K[i]), float(drawn_K[i]))
        rows.append(TokenBar(token, p, drawn, None if truth is None else truth.get(token, 0.0), token == step.token))
    rows.sort(key=lambda bar: -bar.p)
    return TokenBars(tuple(rows), q.whole, int((drawn_K > 0).sum()))


def sampling_probabilities(q: Distribution, before: Before, sampling: Sampling, vocabulary: int) -> Floats:
    """The listed tokens' probabilities under a sampling, by the function that answers are drawn with.

    Of a partial distribution they are lower bounds at this temperature, with top-k and the like applied to the listed
    tokens; penalties, which need all tokens, are left out.
    """
    if q.whole:
        found_K: Floats = shape_whole(q, sampling, before, vocabulary).double().exp().numpy()[q.ids]
        return found_K
    p_K = distribution_bounds.temperature_bounds(q, sampling.temperature, vocabulary).low_K
    logp_1K = torch.from_numpy(np.log(np.maximum(p_K, 1e-300)))[None]
    for name, value in active(sampling).items():
        if (cut := SAMPLERS[name].shape) is not None:
            logp_1K = cut(logp_1K, value)
    cut_K: Floats = logp_1K[0].exp().numpy()
    return cut_K if (cut_K[p_K > 0] == 0).any() else p_K


@dataclass
class TokenPanel(el.PagePart):
    """The alternatives at the token that was picked, as the sliders are set. ``side``: the box that holds it, on a
    narrow screen a sheet that opens when a token is picked."""

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
        """Shows token ``at`` of the shown answer; the truth follows where it is known. ``question``: a first message,
        "" for a later one, whose truth is not known."""
        if not 0 <= at < len(branches.current.steps):
            return
        here = self.place = model, branches, at
        self.truth = None
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
        """Draws everything for the current token and sliders. The chart stays the same element (see ``el.redraw``)."""
        if self.place is None or self.place[2] >= len(self.place[1].current.steps):
            return
        w, (model, branches, at) = self.w, self.place
        answer, before = branches.current, branches.current.tokens[:at]
        said = visible_text(model, answer.steps[at].token, before)
        el.retext(self.title, w("panel_at", n=self.say.count(at + 1), token=said))
        sampling = self.sampling()
        found = self.found = bars_of(answer.steps[at], (answer.prompt, before), sampling, model.vocabulary, self.truth)
        if found is None:
            el.retext(self.note, w("no_distribution"))
            self.box.clear()
            self.drawn = None
            return
        el.retext(self.note, why_chosen(answer, at, found, w, self.say))
        names = {bar.token: visible_text(model, bar.token, before) for bar in found.bars}
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
        """Adds the table of alternatives, each with a button that takes it."""
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
        """The bar chart and its height in pixels. Tokens that would be shown as 0 % are one bar together."""
        w = self.w
        seen = [b for b in found.bars if b.chosen or max(b.p, b.drawn, b.truth or 0.0) >= SEEN_P]
        labels = [("▸ " if bar.chosen else "") + names[bar.token] for bar in seen]
        series = {w("model_p"): ("aligned", [bar.p for bar in seen]),
                  w("drawn_p", t=t): ("aligned", [bar.drawn for bar in seen])}  # fmt: skip
        if self.truth is not None:
            series[w("truth_p")] = ("truth", [bar.truth or 0.0 for bar in seen])
        rest = [1 - sum(values) for _, values in series.values()]
        rest[1] *= found.exact  # for a partial distribution nothing is certain about the unlisted tokens
        if max(rest) >= SEEN_P:
            labels.append(w("rest"))
            for (_, values), share in zip(series.values(), rest, strict=True):
                values.append(max(0.0, share))
        height = 76 + len(labels) * (54 if self.truth is not None else 36)
        return bars(labels, series, axis(percent=True, min=0, max=1), numbers=True), height

    def rows(self) -> list[list[Cell]]:
        if self.found is None or self.place is None:
            return []
        spelled = self.place[0].opened.token_text
        return [[visible(spelled(b.token)), b.token, b.p, b.drawn, b.truth] for b in self.found.bars]


def least(say: Say, share: float) -> str:
    """A share as text: "< 0.1 %" instead of 0.0 % where it is positive."""
    return f"< {say.share(0.001, 1)}" if 0 < share < SEEN_P else say.share(share, 1)


def why_chosen(answer: AnswerBranch, at: int, found: TokenBars, w: Words, say: Say) -> str:
    """Sentences on how probable a token was, how it was chosen, and how many others could have been."""
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
    """Adds a folded form that shows any text as a model's tokens, with their ids and bytes."""
    w, say = visit.words, visit.say

    async def cut() -> None:
        model = visit.studio.model(choice.value)
        ids = await visit.attempt(model.opened.encode_text, text.value)
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
            rows = [[str(token), piece, model.opened.token_bytes(token).hex(" ")] for token, piece in listed]
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
