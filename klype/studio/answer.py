"""Svar / Answer: a conversation with one or more models, every token coloured by how probable it was."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from secrets import randbits
from typing import Any

from nicegui import background_tasks, ui

from klype.examine.charts import PROBABILITY_EDGES
from klype.samplers import SAMPLERS, TEMPERATURE, Sampling
from klype.studio.answer_panel import TokenPanel
from klype.studio.conversation import Answer, Branches, Conversation, Turn
from klype.studio.fields import Check, Number, Slider, Text
from klype.studio.frame import Visit, button, card, text_of
from klype.studio.studio import Model, begin, speculated, write
from klype.studio.tokens import Tokens, rows_of, shown, spelled, tokenizer_view

EVERY_S = 0.05
"""New tokens are sent this often."""
LONGEST = 20_000
"""Characters of a message."""
SIDE_BY_SIDE = 4


@dataclass
class ShownAnswer:
    """One model's answer on the page."""

    turn: int
    branches: Branches
    tokens: Tokens | None = None
    costs: ui.element | None = None
    box: ui.element | None = None


@dataclass
class AnswerPage:
    """The page as one visitor has it."""

    visit: Visit
    conversation: Conversation
    chosen: dict[str, Check] = field(default_factory=dict)
    sliders: dict[str, Slider] = field(default_factory=dict)
    said: list[ShownAnswer] = field(default_factory=list)
    sending: bool = False

    def build(self) -> None:
        w = self.visit.words
        with ui.element("div").classes("k-split"):
            with ui.element("div"):
                self._settings()
                self.turns = ui.element("div")
                self.turns.props["aria-live"] = "off"
                with card():
                    self.text = Text(w("message"), 2, LONGEST, self.send, draft="message")
                    with ui.element("div").classes("k-row").style("margin-top:8px"):
                        button(w("send"), self.send, "strong")
                        self.stop_button = button(w("stop"), self.stop)
                        button(w("new"), self.forget)
                    self.window = ui.element("div")
                self._examples()
                self._tokenizer()
            with card("k-side") as side:
                self.panel = TokenPanel(self.visit, side, self.sampling, self.fork)
        self.stop_button.set_visibility(False)
        self.timer = ui.timer(EVERY_S, self._tick, active=False)
        with self.turns:
            for place, turn in enumerate(self.conversation.turns):
                self._show(place, turn)
        self._fill()
        self.text.restore()
        self.timer.activate()
        if self.conversation.turns:
            self._pick_first()

    def sampling(self) -> Sampling:
        moved: dict[str, Any] = {name: slider.value for name, slider in self.sliders.items()}
        return Sampling(**{name: round(value) if SAMPLERS[name].whole else value for name, value in moved.items()})

    async def send(self) -> None:
        """Ask every chosen model; their answers come side by side."""
        names = [name for name, check in self.chosen.items() if check.value][:SIDE_BY_SIDE]
        question = self.text.value.strip()
        if not question or not names or self.sending or self.stop_button.visible:
            ui.notify(self.visit.words("choose_model" if question and not names else "say_something"), position="top")
            return
        turn, seed = Turn(question), randbits(48)
        self.sending = True
        try:
            prompts = [await asyncio.to_thread(begin, self._named(name), self.conversation, question) for name in names]
        except Exception as error:
            self.visit.tell(error)
            return
        finally:
            self.sending = False
        begun: list[tuple[Branches, Answer]] = []
        for name, prompt in zip(names, prompts, strict=True):
            turn.branches[name] = branches = Branches(name)
            begun.append((branches, branches.begin(prompt, self.sampling(), seed)))
        self.conversation.turns.append(turn)
        self.text.set("")
        self.examples.set_visibility(False)
        with self.turns:
            self._show(len(self.conversation.turns) - 1, turn)
        ui.run_javascript(f"history.replaceState(null, '', '/?c={self.conversation.key}')")
        for branches, answer in begun:
            self._run(branches, answer)

    def fork(self, branches: Branches, at: int, token: int) -> None:
        """Another way from here: the answer goes on after this token instead."""
        try:
            answer = branches.fork(at, token, self.sampling())
        except Exception as error:
            self.visit.tell(error)
            return
        self._redraw(branches)
        self._run(branches, answer)

    def stop(self) -> None:
        for turn in self.conversation.turns:
            for branches in turn.branches.values():
                for answer in branches.answers:
                    answer.running = False

    def forget(self) -> None:
        self.stop()
        ui.navigate.to("/")

    def _run(self, branches: Branches, answer: Answer) -> None:
        """The work belongs to the conversation: it goes on when the page is loaded anew."""
        ahead, limit = self.ahead.value, int(self.limit.value)

        async def work() -> None:
            voice = self.visit.studio.voice(branches.model)
            try:
                if ahead and voice.model.speculates:
                    await speculated(voice, answer, limit)
                else:
                    await write(voice, answer, limit)
            except Exception as error:
                answer.failed = self.visit.why(error)
            finally:
                answer.running = False

        background_tasks.create(work())
        self.timer.activate()

    def _tick(self) -> None:
        """What has come since the last time is sent; who has ended is drawn whole."""
        busy = False
        for said in self.said:
            answer = said.branches.current
            busy = busy or any(one.running for one in said.branches.answers)
            if said.tokens is None or not said.tokens.busy:
                continue
            if answer.running:
                first = len(said.tokens.rows)
                said.tokens.add(rows_of(self._model(said.branches), answer.steps, first, self.visit.say.share))
            else:
                self._draw(said)
        if self.stop_button.visible != busy:
            self.stop_button.set_visibility(busy)
        if not busy:
            self.timer.deactivate()
            self._fill()

    def _of(self, branches: Branches) -> ShownAnswer | None:
        return next((said for said in self.said if said.branches is branches), None)

    def _model(self, branches: Branches) -> Model:
        return self._named(branches.model)

    def _named(self, name: str) -> Model:
        return self.visit.studio.voice(name).model

    def _show(self, place: int, turn: Turn) -> None:
        with ui.element("div").classes("k-turn"):
            with ui.element("div").classes("k-asked"):
                text_of("p", self.visit.say.text(turn.question))
            self._warn(turn)
            with ui.element("div").classes("k-columns"):
                for name, branches in turn.branches.items():
                    if name not in self.visit.studio.voices:
                        continue
                    with ui.element("article").classes(f"k-card k-said {self._model(branches).stage}") as box:
                        pass
                    said = ShownAnswer(place, branches, box=box)
                    self.said.append(said)
                    self._draw(said)

    def _warn(self, turn: Turn) -> None:
        """The words of a question that a model does not know, and which model that is."""
        found: dict[str, list[str]] = {}
        for model in (self._named(name) for name in turn.branches if name in self.visit.studio.voices):
            said = model.reading.warning(turn.question, self.visit.lang) if model.reading is not None else ""
            if said:
                found.setdefault(said, []).append(model.name)
        for said, names in found.items():
            text_of("p", f"{', '.join(names)}: {self.visit.say.text(said)}", "k-small k-warn")

    def _redraw(self, branches: Branches) -> None:
        said = self._of(branches)
        if said is not None:
            self._draw(said)

    def _draw(self, said: ShownAnswer) -> None:
        assert said.box is not None
        w, branches = self.visit.words, said.branches
        model, answer = self._model(branches), branches.current
        said.box.clear()
        with said.box:
            with ui.element("header"):
                text_of("h3", model.name)
                text_of("span", self.visit.frame(f"stage_{model.stage}") if model.stage else "", "k-stage")
            rows = rows_of(model, answer.steps, 0, self.visit.say.share)
            pick: Callable[[int], None] = lambda i: self.panel.look(model, said.branches, i, self._question(said))
            said.tokens = Tokens(rows, w("answer_of", model=model.name), answer.running, pick)
            if answer.failed:
                text_of("p", self.visit.say.text(answer.failed), "k-small k-warn")
            self._costs(model, answer)
            self._ways(branches)

    def _question(self, said: ShownAnswer) -> str:
        """The text whose truth may be known: a first message, and not in the middle of a conversation."""
        turns = self.conversation.turns
        first = all(said.branches.model not in turn.branches for turn in turns[: said.turn])
        return turns[said.turn].question if first else ""

    def _costs(self, model: Model, answer: Answer) -> None:
        if answer.trace is None:
            return
        w, say, trace = self.visit.words, self.visit.say, answer.trace
        tokens = len(trace.steps)
        speed = tokens / trace.seconds if trace.seconds > 0 else 0.0
        flops = model.flops(trace)
        parts = [w("tokens", n=say.count(tokens)), w("passes", n=say.count(trace.passes))]
        parts += [w("speed", n=say.count(round(speed)))] if speed else []
        parts += [w("flops", n=say.big(flops))] if flops is not None else []
        parts += [w("joules", n=say.number(answer.joules))] if answer.joules is not None else []
        if answer.accepted is not None:
            parts.append(w("accepted", n=say.count(answer.accepted), of=say.count(answer.proposed or 0)))
        parts.append(w(f"ended_{trace.ended}"))
        with ui.element("ul").classes("k-costs"):
            for part in parts:
                text_of("li", part)

    def _ways(self, branches: Branches) -> None:
        """The tree of branches, each with the token that it took."""
        if len(branches.answers) < 2:
            return
        w, model = self.visit.words, self._model(branches)
        with ui.element("ul").classes("k-branches") as ways:
            ways.props["aria-label"] = w("ways")
            for answer in branches.answers:
                if answer.parent is None:
                    name = w("first_way")
                else:
                    took = shown(spelled(model, answer.steps[answer.at].token))
                    name = w("way", n=answer.number + 1, of=answer.parent + 1, place=answer.at + 1, token=took)
                with ui.element("li"):
                    chosen = button(name, partial(self._go, branches, answer.number), "tiny")
                    chosen.props["aria-pressed"] = "true" if answer.number == branches.shown else "false"

    def _go(self, branches: Branches, number: int) -> None:
        branches.shown = number
        self._redraw(branches)

    def _pick_first(self) -> None:
        said = self.said[-1] if self.said else None
        if said is not None and said.branches.current.steps:
            self.panel.look(self._model(said.branches), said.branches, 0, self._question(said), opened=False)

    def _settings(self) -> None:
        w, say, models = self.visit.words, self.visit.say, self.visit.studio.models
        with card():
            if not models:
                text_of("p", w("no_models"), "k-empty")
            with ui.element("fieldset").classes("k-row k-models"):
                text_of("legend", w("models"))
                for i, model in enumerate(models):
                    self.chosen[model.name] = Check(model.name, i == len(models) - 1)
            for about in dict.fromkeys(model.reading.about(self.visit.lang) for model in models if model.reading):
                text_of("p", self.visit.say.text(about), "k-small")
            with ui.element("div").classes("k-sliders"):
                self._samplers(penalties=False)
                self.limit = Slider(w("limit"), (8, 2048, 8), 64, lambda v: say.count(round(v)))
            with ui.element("details").classes("k-fold"):
                text_of("summary", w("penalties"))
                with ui.element("div").classes("k-sliders"):
                    self._samplers(penalties=True)
            self.ahead = Check(w("ahead"), False)
        with ui.element("div").classes("k-legend") as legend:
            legend.props["role"] = "note"
            text_of("span", w("legend"))
            ends = [1.0, *PROBABILITY_EDGES]
            for i, edge in enumerate(ends):
                text = f"≥ {say.share(ends[1])}" if i == 0 else f"< {say.share(edge)}"
                text_of("span", text, f"k-tok plain p{i}")

    def _samplers(self, penalties: bool) -> None:
        """A slider for each sampler: those that look at what was said before, or the others."""
        say = self.visit.say
        for name, row in SAMPLERS.items():
            if (row.adjust is not None) == penalties:
                shown: Number = (lambda v: say.count(round(v))) if row.whole else (lambda v: say.number(v, 2))
                first = TEMPERATURE if name == "temperature" else row.off
                slider = Slider(say.text(row.title), row.slider, first, shown)
                slider.props["title"] = say.text(row.help)
                self.sliders[name] = slider.moved(lambda: self.panel.draw())

    def _examples(self) -> None:
        """Questions to begin with, of the run that the models came from."""
        found = self.visit.studio.questions.get(self.visit.lang, ())[:3]
        self.examples = ui.element("div").classes("k-chips").style("margin:-4px 0 14px")
        self.examples.set_visibility(bool(found) and not self.conversation.turns)
        with self.examples:
            text_of("span", self.visit.words("try"), "k-small")
            for question in found:
                button(question, partial(self._take, question), "tiny")

    async def _take(self, text: str) -> None:
        self.text.set(text)
        await self.send()

    def _tokenizer(self) -> None:
        if self.visit.studio.models:
            tokenizer_view(self.visit)

    def _fill(self) -> None:
        """The context window as a bar that fills, a model a bar."""
        self.window.clear()
        if not self.conversation.turns:
            return
        say, turn = self.visit.say, self.conversation.turns[-1]
        with self.window:
            for name, branches in turn.branches.items():
                if name not in self.visit.studio.voices:
                    continue
                model, answer = self._model(branches), branches.current
                used = len(answer.prompt) + len(answer.steps)
                share = min(1.0, used / model.window)
                shown_as = {"model": name, "n": say.count(used), "of": say.count(model.window)}
                text_of("div", self.visit.words("window", **shown_as), "k-small")
                with ui.element("div").classes("k-window full" if share >= 1 else "k-window") as bar:
                    bar.props["aria-hidden"] = "true"
                    ui.element("div").style(f"width:{100 * share:.1f}%")


def build(visit: Visit) -> None:
    """The page."""
    AnswerPage(visit, visit.studio.conversations.get(visit.request.query_params.get("c", "")[:64])).build()
