"""What could have been said at one place: the bars, what was drawn and why, and the other ways from there."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from functools import partial

from nicegui import ui

from klype.engine.sampling import noise
from klype.examine.charts import axis, bars
from klype.examine.say import Say
from klype.studio.bars import Bars, bars_of, surprise_bits
from klype.studio.charts import Option, chart, redraw
from klype.studio.conversation import Answer, Branches
from klype.studio.frame import as_data, button, table
from klype.studio.models import Model
from klype.studio.tokens import shown, spelled
from klype.studio.visit import Visit, text_of
from klype.values import Sampling, Step
from klype.words import Words

Fork = Callable[[Branches, int, int], None]


class Panel:
    """Beside the conversation; it follows the token that was picked and the sliders."""

    def __init__(self, visit: Visit, side: ui.element, sampling: Callable[[], Sampling], fork: Fork) -> None:
        """``side`` is what holds it: on a narrow screen a sheet that opens with a token."""
        self.visit, self.side, self.sampling, self.fork = visit, side, sampling, fork
        self.place: tuple[Model, Branches, int] | None = None
        self.truth: Mapping[int, float] | None = None
        close = button(visit.words("close"), lambda: side.classes(remove="open"), "tiny k-close")
        close.props["aria-label"] = visit.words("close")
        self.title = text_of("h2", visit.words("panel"))
        self.note = text_of("p", visit.words("panel_empty"), "k-small")
        self.box = ui.element("div")
        self.drawn: ui.echart | None = None
        self.ways: ui.element | None = None
        self.unfolded = False

    def look(self, model: Model, branches: Branches, at: int, question: str, opened: bool = True) -> None:
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
                found = await asyncio.to_thread(_truth, model, question, branches.current.tokens[:at])
                if found is not None and self.place == here and not client.is_deleted:
                    with client:
                        self.truth = found
                        self._build()

            ui.timer(0.0, ask, once=True)

    def draw(self) -> None:
        """The bars anew after a slider has moved: from the trace, without the model."""
        found = self._bars()
        if found is not None and self.drawn is not None:
            redraw(self.drawn, self._option(found), self.visit.lang)
            self._tell(found)

    def _step(self) -> Step | None:
        if self.place is None:
            return None
        _, branches, at = self.place
        steps = branches.current.steps
        return steps[at] if at < len(steps) else None

    def _bars(self) -> Bars | None:
        step = self._step()
        if step is None or self.place is None:
            return None
        model, branches, at = self.place
        before = branches.current.prompt, branches.current.tokens[:at]
        return bars_of(step, before, self.sampling(), model.vocabulary, self.truth)

    def _build(self) -> None:
        """The chart stays the same element from token to token: a new one takes a browser three times as long."""
        found, step = self._bars(), self._step()
        if found is None and self.drawn is not None:
            self.box.clear()
            self.drawn = self.ways = None
        if self.place is None or step is None:
            return
        model, _, at = self.place
        w = self.visit.words
        said = shown(spelled(model, step.token))
        self.title._text = w("panel_at", n=self.visit.say.count(at + 1), token=said)
        self.title.update()
        if found is None:
            self.note._text = w("no_distribution")
            self.note.update()
            return
        self._tell(found)
        height = 76 + len(found.bars) * (44 if self.truth is not None else 28)
        label = w("chart_of", token=said)
        if self.drawn is None:
            self._lay(found, height, label)
        else:
            self.drawn.style(f"height: {height}px").props["aria-label"] = label
            redraw(self.drawn, self._option(found), self.visit.lang)
        self._list()

    def _lay(self, found: Bars, height: int, label: str) -> None:
        w = self.visit.words
        with self.box:
            self.drawn = chart(self._option(found), self.visit.lang, height, label)
            aligned = self.place is not None and self.place[0].stage == "align"
            text_of("p", " ".join([w("how_bars"), *([w("how_bars_aligned")] if aligned else [])]), "k-small")
            with ui.element("details").classes("k-fold") as fold:
                text_of("summary", w("others"))
                self.ways = ui.element("div")
            fold.on("toggle", lambda event: self._unfold(event.args is True), js_handler="(e) => emit(e.target.open)")
            as_data(self.visit, "next-token", self._columns(), self._rows, self.drawn)
        self.unfolded = False

    def _unfold(self, unfolded: bool) -> None:
        self.unfolded = unfolded
        self._list()

    def _list(self) -> None:
        """The ways as a table, while somebody looks at it."""
        found = self._bars()
        if self.ways is None or self.place is None or found is None:
            return
        self.ways.clear()
        if self.unfolded:
            with self.ways:
                self._ways(*self.place, found)

    def _tell(self, found: Bars) -> None:
        """What was drawn, and why."""
        step = self._step()
        assert step is not None
        assert self.place is not None
        _, branches, at = self.place
        self.note._text = why_chosen(branches.current, at, found, self.visit.words, self.visit.say)
        self.note.update()

    def _option(self, found: Bars) -> Option:
        assert self.place is not None
        w, say, model = self.visit.words, self.visit.say, self.place[0]
        labels = [("▸ " if bar.chosen else "") + shown(spelled(model, bar.token)) for bar in found.bars]
        t = say.plain(self.sampling().temperature)
        option = bars(
            labels,
            {w("model_p"): ("aligned", [bar.p for bar in found.bars]),
             w("drawn_p", t=t): ("aligned", [bar.drawn for bar in found.bars])},
            axis(percent=True, min=0, max=1),
        )  # fmt: skip
        option["legend"]["itemGap"] = 14
        if self.truth is not None:
            option["series"].append(
                {"type": "bar", "name": w("truth_p"), "data": [bar.truth or 0.0 for bar in found.bars],
                 "barMaxWidth": 13, "itemStyle": {"color": "$truth"}}
            )  # fmt: skip
        for series in option["series"]:
            series["label"] = {"show": True, "position": "right", "color": "$muted", "fontSize": 11,
                               "formatter": "fn:bar"}  # fmt: skip
        option["grid"]["right"] = 52
        return option

    def _columns(self) -> list[str]:
        w = self.visit.words
        return [w("token"), w("number"), w("model_p"), w("drawn_p", t=""), w("truth_p")]

    def _rows(self) -> list[list[str | float | int | None]]:
        found = self._bars()
        if found is None or self.place is None:
            return []
        return [[spelled(self.place[0], b.token), b.token, b.p, b.drawn, b.truth] for b in found.bars]

    def _ways(self, model: Model, branches: Branches, at: int, found: Bars) -> None:
        w, say = self.visit.words, self.visit.say
        rows = []
        for bar in found.bars:
            name = shown(spelled(model, bar.token))
            cells: list[object] = [partial(text_of, "bdi", name), say.share(bar.p), say.share(bar.drawn)]
            cells += [say.share(bar.truth or 0.0)] if self.truth is not None else []
            go = partial(self._go, branches, at, bar.token, name)
            rows.append([*cells, w("said") if bar.chosen else go])
        names = [
            w("token"),
            w("model_short"),
            w("drawn_short"),
            *([w("truth_p")] if self.truth is not None else []),
            w("way_from"),
        ]
        table(names, rows, numeric=range(1, len(names) - 1))

    def _go(self, branches: Branches, at: int, token: int, name: str) -> None:
        made = button(self.visit.words("take"), lambda: self.fork(branches, at, token), "tiny")
        made.props["aria-label"] = self.visit.words("take_named", token=name)


def why_chosen(answer: Answer, at: int, found: Bars, w: Words, say: Say) -> str:
    """How probable a token was, how it came to stand there, and how many others could have."""
    step = answer.steps[at]
    p = min(1.0, math.exp(step.logp)) if step.logp > -math.inf else 0.0
    parts = [w("was", p=say.share(p), bits=say.number(surprise_bits(p), 1) if p > 0 else "∞")]
    if step.how in ("forced", "drafted"):
        parts.append(w(f"was_{step.how}"))
    elif answer.sampling.temperature == 0:
        parts.append(w("was_greedy"))
    else:
        u = float(noise(answer.seed, 0, len(answer.prompt) + at))
        drawn = min(1.0, math.exp(step.drawn_logp)) if step.drawn_logp > -math.inf else 0.0
        t = say.plain(answer.sampling.temperature)
        parts.append(w("was_drawn", p=say.share(drawn), u=say.number(u, 3), t=t))
    parts.append(w("kept" if found.exact else "partial", n=say.count(found.kept)))
    return " ".join(parts)


def _truth(model: Model, question: str, tokens: tuple[int, ...]) -> Mapping[int, float] | None:
    """What the world says comes next; None where it does not know, or where the answer has left its language."""
    reader = model.truth(question)
    return None if reader is None else reader.next(tokens)
