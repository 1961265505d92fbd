"""What could have been said at one place: the bars, what was drawn and why, and the other ways from there.

Everything comes from the trace; the model is not asked again.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from nicegui import ui

from klype.answers import bounds
from klype.engine.sampling import noise, shape_whole
from klype.examine.charts import Cell, Option, axis, bars
from klype.examine.say import Say, visible
from klype.samplers import SAMPLERS, active
from klype.studio.charts import chart, redraw
from klype.studio.conversation import Answer, Branches
from klype.studio.frame import Visit, as_data, box, button, retext, table, text_of
from klype.studio.studio import SharedModel
from klype.studio.tokens import shown
from klype.values import Distribution, Floats, Sampling, Step
from klype.words import Words

Before = tuple[Sequence[int], Sequence[int]]
"""The prompt, and what of its answer stands before a token."""
FEWEST, SEEN_P = 5, 5e-4
"""So many of the most probable tokens are listed at least; of the others, and as bars, those that can be seen."""


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
    """``rest``: the model's mass on all other tokens; ``exact``: the distribution is whole, so all bars are exact.
    ``kept``: how many tokens can be drawn."""

    bars: tuple[TokenBar, ...]
    rest: float
    exact: bool
    kept: int


def bars_of(
    step: Step,
    before: Before,
    sampling: Sampling,
    vocabulary: int,
    truth: Mapping[int, float] | None = None,
    most: int = 10,
) -> TokenBars | None:
    """The ``most`` likeliest tokens, the one that was said, and the truth's likeliest. None: nothing is known."""
    q = step.distribution
    if q is None or not len(q.ids):
        return None
    p_K = np.exp(q.logp.astype(np.float64))
    drawn_K = drawn_from(q, before, sampling, vocabulary)
    place = {int(token): i for i, token in enumerate(q.ids)}
    listed = [int(token) for i, token in enumerate(q.ids[:most]) if i < FEWEST or p_K[i] >= SEEN_P]
    truest = sorted(truth, key=lambda token: -truth[token])[:4] if truth else []
    rows = []
    for token in dict.fromkeys([*listed, step.token, *truest]):
        i = place.get(token)
        p, drawn = (0.0, 0.0) if i is None else (float(p_K[i]), float(drawn_K[i]))
        rows.append(TokenBar(token, p, drawn, None if truth is None else truth.get(token, 0.0), token == step.token))
    rows.sort(key=lambda bar: -bar.p)
    rest = max(0.0, 1.0 - sum(bar.p for bar in rows))
    return TokenBars(tuple(rows), rest, q.whole, int((drawn_K > 0).sum()))


def drawn_from(q: Distribution, before: Before, sampling: Sampling, vocabulary: int) -> Floats:
    """The listed tokens' probabilities as they would be drawn, by the function that answers are drawn with.

    Of a partial distribution: what is certain of them at this temperature, cut among what is listed; penalties, for
    which the others would have to be known, are left out.
    """
    if not q.whole:
        p_K = bounds.tempered(q, sampling.temperature, vocabulary).low_K
        logp_1K = torch.from_numpy(np.log(np.maximum(p_K, 1e-300)))[None]
        for name, value in active(sampling).items():
            if (cut := SAMPLERS[name].shape) is not None:
                logp_1K = cut(logp_1K, value)
        cut_K: Floats = logp_1K[0].exp().numpy()
        return cut_K if (cut_K[p_K > 0] == 0).any() else p_K
    found_K: Floats = shape_whole(q, sampling, before, vocabulary).double().exp().numpy()[q.ids]
    return found_K


class TokenPanel:
    """Beside the conversation; it follows the token that was picked and the sliders."""

    def __init__(
        self,
        visit: Visit,
        side: ui.element,
        sampling: Callable[[], Sampling],
        fork: Callable[[Branches, int, int], None],
    ) -> None:
        """``side`` is what holds it: on a narrow screen a sheet that opens with a token."""
        self.visit, self.side, self.sampling, self.fork = visit, side, sampling, fork
        self.place: tuple[SharedModel, Branches, int] | None = None
        self.truth: Mapping[int, float] | None = None
        close = visit.words("close")
        button(close, lambda: side.classes(remove="open"), "tiny k-close", aria_label=close)
        self.title = text_of("h2", visit.words("panel"))
        self.note = text_of("p", visit.words("panel_empty"), "k-small")
        self.box = box()
        self.drawn: ui.echart | None = None
        self.ways: ui.element | None = None
        self.unfolded = False

    def look(self, model: SharedModel, branches: Branches, at: int, question: str, opened: bool = True) -> None:
        """At token ``at`` of the shown answer. The truth comes a moment later, where somebody knows it."""
        if not 0 <= at < len(branches.current.steps):
            return
        self.place, self.truth = (model, branches, at), None
        if opened:
            self.side.classes("open")
        self._build()
        if question:
            client, here = ui.context.client, self.place

            async def ask() -> None:
                found = await asyncio.to_thread(model.truth, question, branches.current.tokens[:at])
                if found is not None and self.place == here and not client.is_deleted:
                    with client:
                        self.truth = found
                        self._build()

            ui.timer(0.0, ask, once=True)

    def draw(self) -> None:
        """The bars anew after a slider has moved: from the trace, without the model."""
        found = self._bars()
        if found is not None and self.drawn is not None:
            self._redraw(self.drawn, found)
            self._tell(found)

    def _redraw(self, drawn: ui.echart, found: TokenBars) -> None:
        option, height = self._chart(found)
        drawn.style(f"height: {height}px")
        redraw(drawn, option, self.visit.lang)

    def _bars(self) -> TokenBars | None:
        if self.place is None:
            return None
        model, branches, at = self.place
        answer = branches.current
        if at >= len(answer.steps):
            return None
        before = answer.prompt, answer.tokens[:at]
        return bars_of(answer.steps[at], before, self.sampling(), model.vocabulary, self.truth)

    def _build(self) -> None:
        """The chart stays the same element from token to token: a new one takes a browser three times as long."""
        found = self._bars()
        if found is None and self.drawn is not None:
            self.box.clear()
            self.drawn = self.ways = None
        if self.place is None or self.place[2] >= len(self.place[1].current.steps):
            return
        model, branches, at = self.place
        w, said = self.visit.words, shown(model, branches.current.tokens[at], branches.current.tokens[:at])
        retext(self.title, w("panel_at", n=self.visit.say.count(at + 1), token=said))
        if found is None:
            retext(self.note, w("no_distribution"))
            return
        self._tell(found)
        label = w("chart_of", token=said)
        if self.drawn is None:
            with self.box:
                self._lay(found, label, model.stage == "align")
        else:
            self.drawn.props["aria-label"] = label
            self._redraw(self.drawn, found)
        self._list()

    def _lay(self, found: TokenBars, label: str, aligned: bool) -> None:
        w = self.visit.words
        option, height = self._chart(found)
        self.drawn = chart(option, self.visit.lang, height, label)
        text_of("p", " ".join([w("how_bars"), *([w("how_bars_aligned")] if aligned else [])]), "k-small")
        with box("k-fold", "details") as fold:
            text_of("summary", w("others"))
            self.ways = box()
        fold.on("toggle", lambda event: self._unfold(event.args is True), js_handler="(e) => emit(e.target.open)")
        columns = [w("token"), w("number"), w("model_p"), w("drawn_p", t=""), w("truth_p")]
        as_data(self.visit, "next-token", columns, self._rows, self.drawn)
        self.unfolded = False

    def _unfold(self, unfolded: bool) -> None:
        self.unfolded = unfolded
        self._list()

    def _list(self) -> None:
        """The ways as a table, while somebody looks at it."""
        found, w, say = self._bars(), self.visit.words, self.visit.say
        if self.ways is None or self.place is None or found is None:
            return
        self.ways.clear()
        if not self.unfolded:
            return
        (model, branches, at), known = self.place, self.truth is not None
        before = branches.current.tokens[:at]
        rows = []
        for bar in found.bars:
            name = shown(model, bar.token, before)
            p, drawn, true = (least(say, share or 0.0) for share in (bar.p, bar.drawn, bar.truth))
            cells: list[object] = [partial(text_of, "bdi", name), p, drawn, *([true] if known else [])]
            take = partial(button, w("take"), partial(self.fork, branches, at, bar.token), "tiny",
                           aria_label=w("take_named", token=name))  # fmt: skip
            rows.append([*cells, w("said") if bar.chosen else take])
        truth = [w("truth_p")] if known else []
        names = [w("token"), w("model_short"), w("drawn_short"), *truth, w("way_from")]
        with self.ways:
            table(self.visit, names, rows, numeric=range(1, len(names) - 1))

    def _tell(self, found: TokenBars) -> None:
        """What was drawn, and why."""
        assert self.place is not None
        _, branches, at = self.place
        retext(self.note, why_chosen(branches.current, at, found, self.visit.words, self.visit.say))

    def _chart(self, found: TokenBars) -> tuple[Option, int]:
        """The bars, with one for all tokens together that would be shown as 0 %; and how high they are."""
        assert self.place is not None
        w, (model, branches, at) = self.visit.words, self.place
        seen = [b for b in found.bars if b.chosen or max(b.p, b.drawn, b.truth or 0.0) >= SEEN_P]
        labels = [("▸ " if bar.chosen else "") + shown(model, bar.token, branches.current.tokens[:at]) for bar in seen]
        t = self.visit.say.plain(self.sampling().temperature)
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

    def _rows(self) -> list[list[Cell]]:
        found = self._bars()
        if found is None or self.place is None:
            return []
        return [[visible(self.place[0].opened.spelled(b.token)), b.token, b.p, b.drawn, b.truth] for b in found.bars]


def least(say: Say, share: float) -> str:
    """A share; one that is there and would be shown as nothing is "< 0.1 %"."""
    return f"< {say.share(0.001, 1)}" if 0 < share < SEEN_P else say.share(share, 1)


def why_chosen(answer: Answer, at: int, found: TokenBars, w: Words, say: Say) -> str:
    """How probable a token was, how it came to stand there, and how many others could have."""
    step = answer.steps[at]
    p = min(1.0, math.exp(step.logp)) if step.logp > -math.inf else 0.0
    parts = [w("was", p=say.share(p, 1), bits=say.number(-math.log2(p), 1) if p > 0 else "∞")]
    if step.source in ("forced", "drafted"):
        parts.append(w(f"was_{step.source}"))
    elif answer.sampling.temperature == 0:
        parts.append(w("was_greedy"))
    else:
        u = float(noise(answer.seed, 0, len(answer.prompt) + at))
        drawn = min(1.0, math.exp(step.sampling_logprob)) if step.sampling_logprob > -math.inf else 0.0
        t = say.plain(answer.sampling.temperature)
        parts.append(w("was_drawn", p=say.share(drawn, 1), u=say.number(u, 3), t=t))
    parts.append(w("kept" if found.exact else "partial", n=say.count(found.kept)))
    return " ".join(parts)
