"""Svar / Answer: a conversation with one or more models, every token coloured by how probable it was."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, groupby
from secrets import randbits
from typing import Any

from nicegui import background_tasks, ui

from klype.api.asking import introduction
from klype.examine.charts import PROBABILITY_EDGES
from klype.samplers import SAMPLERS, TEMPERATURE, Sampling
from klype.studio.answer_panel import TokenPanel
from klype.studio.conversation import Answer, Branches, Conversation, Turn
from klype.studio.fields import Check, Counts, Slider, Text
from klype.studio.frame import PAGE_BEGINS, Visit, box, button, card, examples, text_of
from klype.studio.opening import first_steps, open_fold
from klype.studio.studio import SharedModel
from klype.studio.tokens import Tokens, rows_of, shown, tokenizer_view

EVERY_S = 0.05
"""New tokens are sent this often."""
LONGEST = 20_000
"""Characters of a message."""
SIDE_BY_SIDE = 4


@dataclass
class ShownAnswer:
    """One model's answer on the page, in its box; ``turn`` is its turn's place."""

    turn: int
    model: SharedModel
    branches: Branches
    box: ui.element
    tokens: Tokens | None = None


@dataclass
class AnswerPage:
    """The page as one visitor has it. ``introductions``: what was read, and the names of the models that read it;
    ``tries``: questions to begin with."""

    visit: Visit
    conversation: Conversation
    introductions: Mapping[str, Sequence[str]]
    tries: Sequence[str]
    chosen: dict[str, Check] = field(default_factory=dict)
    sliders: dict[str, Slider] = field(default_factory=dict)
    said: list[ShownAnswer] = field(default_factory=list)
    sending: bool = False

    def build(self) -> None:
        w = self.visit.words
        with box("k-split"):
            with box():
                self._about()
                self.turns = box(aria_live="off")
                with card() as message:
                    message.props.update(id=PAGE_BEGINS, tabindex="-1")
                    self.text = Text(w("message"), 2, LONGEST, self.send, draft="message")
                    with box("k-row").style("margin-top:8px"):
                        button(w("send"), self.send, "strong")
                        self.stop_button = button(w("stop"), self.stop)
                        button(w("new"), self.forget)
                    self._who()
                    self.window = box()
                    examples(w("try"), self.tries, self._take)
                self._settings()
                tokenizer_view(self.visit)
                open_fold(self.visit)
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
        if self.said and self.said[-1].branches.current.steps:
            self._look(self.said[-1], 0, opened=False)

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
            for name in names:
                model = self.visit.studio.model(name)
                prompt = await asyncio.to_thread(model.prompt_after, self.conversation, question)
                turn.branches[name] = Branches(name)
                turn.branches[name].begin(prompt, self.sampling(), seed)
        except Exception as error:
            self.visit.tell(error)
            return
        finally:
            self.sending = False
        self.conversation.turns.append(turn)
        self.text.set("")
        with self.turns:
            self._show(len(self.conversation.turns) - 1, turn)
        ui.run_javascript(f"history.replaceState(null, '', '/?c={self.conversation.key}')")
        for branches in turn.branches.values():
            self._run(branches, branches.current)

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

    async def _take(self, text: str) -> None:
        self.text.set(text)
        await self.send()

    def _run(self, branches: Branches, answer: Answer) -> None:
        """The work belongs to the conversation: it goes on when the page is loaded anew."""
        ahead, limit = self.ahead.value, int(self.limit.value)

        async def work() -> None:
            model = self.visit.studio.model(branches.model)
            try:
                await (model.extend_ahead if ahead and model.speculates else model.extend)(answer, limit)
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
                said.tokens.add(rows_of(said.model, answer.steps, len(said.tokens.rows), self.visit.say.share))
            else:
                self._draw(said)
        if self.stop_button.visible != busy:
            self.stop_button.set_visibility(busy)
        if not busy:
            self.timer.deactivate()
            self._fill()

    def _show(self, place: int, turn: Turn) -> None:
        known = {model.name: model for model in self.visit.studio.models if model.name in turn.branches}
        unknown = {name: m.reading.unknown(turn.question) for name, m in known.items() if m.reading is not None}
        with box("k-turn"):
            with box("k-asked"), box(tag="p"):
                for text, strange in split_at(turn.question, set(chain(*unknown.values()))):
                    text_of("u" if strange else "span", self.visit.say.text(text), "k-strange" if strange else "")
            warnings: dict[str, list[str]] = {}
            for name in unknown:
                if text := known[name].reading.warning(turn.question, self.visit.lang):  # type: ignore[union-attr]
                    warnings.setdefault(text, []).append(name)
            for text, names in warnings.items():
                text_of("p", f"{', '.join(names)}: {self.visit.say.text(text)}", "k-small k-warn")
            with box("k-columns"):
                for name in turn.branches:
                    if name in known:
                        article = box(f"k-card k-said {known[name].stage}", "article")
                        self.said.append(ShownAnswer(place, known[name], turn.branches[name], article))
                        self._draw(self.said[-1])

    def _redraw(self, branches: Branches) -> None:
        for said in self.said:
            if said.branches is branches:
                self._draw(said)

    def _draw(self, said: ShownAnswer) -> None:
        w, model, answer = self.visit.words, said.model, said.branches.current
        said.box.clear()
        with said.box:
            with box(tag="header"):
                text_of("h2", model.name)
                text_of("span", self.visit.frame(f"stage_{model.stage}") if model.stage else "", "k-stage")
            rows = rows_of(model, answer.steps, 0, self.visit.say.share)
            said.tokens = Tokens(rows, w("answer_of", model=model.name), answer.running, partial(self._look, said))
            if answer.failed:
                text_of("p", self.visit.say.text(answer.failed), "k-small k-warn")
            self._costs(model, answer)
            self._ways(model, said.branches)

    def _look(self, said: ShownAnswer, at: int, opened: bool = True) -> None:
        """At one token. The truth may be known after a first message, and not in the middle of a conversation."""
        turns = self.conversation.turns
        first = all(said.model.name not in turn.branches for turn in turns[: said.turn])
        self.panel.look(said.model, said.branches, at, turns[said.turn].question if first else "", opened)

    def _costs(self, model: SharedModel, answer: Answer) -> None:
        if answer.trace is None:
            return
        w, say, trace = self.visit.words, self.visit.say, answer.trace
        tokens = len(trace.steps)
        speed = tokens / answer.seconds if answer.seconds > 0 else 0.0
        flops = model.opened.flops(trace)
        parts = [w("tokens", n=say.count(tokens)), w("passes", n=say.count(trace.passes))]
        parts += [say.seconds(answer.seconds), w("speed", n=say.count(round(speed)))] if speed else []
        parts += [w("flops", n=say.big(flops))] if flops is not None else []
        parts += [w("joules", n=say.number(answer.joules))] if answer.joules is not None else []
        if answer.accepted is not None:
            parts.append(w("accepted", n=say.count(answer.accepted), of=say.count(answer.proposed or 0)))
        parts.append(w(f"ended_{trace.ended}"))
        with box("k-costs", "ul"):
            for part in parts:
                text_of("li", part)

    def _ways(self, model: SharedModel, branches: Branches) -> None:
        """The tree of branches, each with the token that it took."""
        if len(branches.answers) < 2:
            return
        w = self.visit.words
        with box("k-branches", "ul", aria_label=w("ways")):
            for answer in branches.answers:
                if answer.parent is None:
                    name = w("first_way")
                else:
                    took = shown(model, answer.tokens[answer.at], answer.tokens[: answer.at])
                    name = w("way", n=answer.number + 1, of=answer.parent + 1, place=answer.at + 1, token=took)
                with box(tag="li"):
                    pressed = "true" if answer.number == branches.shown else "false"
                    button(name, partial(self._go, branches, answer.number), "tiny", aria_pressed=pressed)

    def _go(self, branches: Branches, number: int) -> None:
        branches.shown = number
        self._redraw(branches)

    def _who(self) -> None:
        w, models = self.visit.words, self.visit.studio.models
        with box("k-row k-models", "fieldset"):
            text_of("legend", w("models"))
            for i, model in enumerate(models):
                self.chosen[model.name] = Check(model.name, i == len(models) - 1)

    def _about(self) -> None:
        """What the models have read, and what a token's colour says."""
        w, models = self.visit.words, self.visit.studio.models
        for about, names in self.introductions.items():
            whose = "" if len(names) == len(models) else f"{', '.join(names)}: "
            text_of("p", self.visit.say.text(f"{whose}{about}"), "k-small")
        with box("k-legend", role="note"):
            text_of("span", w("legend"))
            for i, edge in enumerate([1.0, *PROBABILITY_EDGES]):
                share = self.visit.say.share(edge if i else PROBABILITY_EDGES[0])
                text = f"< {share}" if i else f"≥ {share}"
                text_of("span", text, f"k-tok plain p{i}")

    def _settings(self) -> None:
        w = self.visit.words
        with card():
            with box("k-sliders"):
                self._samplers(penalties=False)
                self.limit = Counts(self.visit, "limit", (8, 2048, 8), 64)
            with box("k-fold", "details"):
                text_of("summary", w("penalties"))
                with box("k-sliders"):
                    self._samplers(penalties=True)
            self.ahead = Check(w("ahead"), False)

    def _samplers(self, penalties: bool) -> None:
        """A slider for each sampler: those that look at what was said before, or the others."""
        say = self.visit.say
        for name, row in SAMPLERS.items():
            if (row.adjust is not None) == penalties:
                written: Callable[[float], str] = (
                    (lambda v: say.count(round(v))) if row.whole else (lambda v: say.number(v, 2))
                )
                first = TEMPERATURE if name == "temperature" else row.off
                slider = Slider(say.text(row.title), row.slider, first, written)
                slider.props["title"] = say.text(row.help)
                self.sliders[name] = slider.moved(lambda: self.panel.draw())

    def _fill(self) -> None:
        """The context window as a bar that fills, a model a bar."""
        self.window.clear()
        with self.window:
            for said in self.said:
                if said.turn < self.said[-1].turn:
                    continue
                answer, of, say = said.branches.current, said.model.window, self.visit.say
                used = len(answer.prompt) + len(answer.steps)
                counts = {"n": say.count(used), "of": say.count(of)}
                text_of("div", self.visit.words("window", model=said.model.name, **counts), "k-small")
                with box("k-window full" if used >= of else "k-window", aria_hidden="true"):
                    box().style(f"width:{100 * min(1.0, used / of):.1f}%")


def split_at(text: str, words: set[str]) -> list[tuple[str, bool]]:
    """The text in pieces: whole words that are among these (True), and what lies between them."""
    pieces = [(piece, piece in words) for piece in re.split(r"([^\W_]+)", text) if piece]
    return [("".join(piece for piece, _ in group), strange) for strange, group in groupby(pieces, lambda p: p[1])]


async def build(visit: Visit) -> None:
    """The page."""
    studio = visit.studio
    if not studio.models:
        first_steps(visit, visit.frame("no_models"))
        return

    def known() -> tuple[dict[str, list[str]], list[str]]:
        told: dict[str, list[str]] = {}
        for model in studio.models:
            if about := introduction(model.opened, visit.lang):
                told.setdefault(about, []).append(model.name)
        return told, studio.suggestions(visit.lang)

    conversation = studio.conversations.get(visit.request.query_params.get("c", "")[:64])
    AnswerPage(visit, conversation, *await asyncio.to_thread(known)).build()
