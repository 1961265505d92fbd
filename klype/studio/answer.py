"""Svar / Answer: the page for a conversation with one or more models, each token coloured by its probability."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from secrets import randbits
from typing import Any

from nicegui import background_tasks, ui

from klype.api.prompt_context import introduction
from klype.examine.charts import PROBABILITY_EDGES
from klype.samplers import SAMPLERS, TEMPERATURE, Sampling
from klype.studio import elements as el
from klype.studio.fields import Check, Counts, Slider, TextArea, first_steps, open_fold
from klype.studio.studio import AnswerBranch, Branches, Conversation, SharedModel, Turn
from klype.studio.tokens import TokenPanel, Tokens, rows_of, tokenizer_view, visible_text
from klype.words import Words
from klype.words.sentences import Sentences

EVERY_S = 0.05  # how often new tokens are sent to the browser
LONGEST = 20_000  # characters of a message
SIDE_BY_SIDE = 4


@dataclass
class ShownAnswer:
    """A model's answer on the page, in the box ``article``; ``turn``: the number of its turn."""

    turn: int
    model: SharedModel
    branches: Branches
    article: ui.element
    tokens: Tokens | None = None


@dataclass
class AnswerPage(el.PagePart):
    """The page. ``introductions``: what models have read → their names; ``tries``: questions to begin with."""

    conversation: Conversation
    introductions: Mapping[str, Sequence[str]]
    tries: Sequence[str]
    chosen: dict[str, Check] = field(default_factory=dict)
    sliders: dict[str, Slider] = field(default_factory=dict)
    said: list[ShownAnswer] = field(default_factory=list)

    def build(self) -> None:
        w, models = self.w, self.studio.models
        with el.box("k-split"):
            with el.box():
                for about, names in self.introductions.items():
                    whose = "" if len(names) == len(models) else f"{', '.join(names)}: "
                    el.small(self.say.text(f"{whose}{about}"))
                with el.box("k-legend", role="note"):
                    el.text_of("span", w("legend"))
                    for i, edge in enumerate([PROBABILITY_EDGES[0], *PROBABILITY_EDGES]):
                        el.text_of("span", f"{'<' if i else '≥'} {self.say.share(edge)}", f"k-tok plain p{i}")
                self.turns = el.box(aria_live="off")
                with el.card(id=el.PAGE_BEGINS, tabindex="-1"):
                    self.text = TextArea(w("message"), LONGEST, self.send, draft="message")
                    with el.box("k-row").style("margin-top:8px"):
                        el.button(w("send"), self.send, "strong")
                        self.stop_button = el.button(w("stop"), self.stop)
                        el.button(w("new"), self.forget)
                    with el.box("k-row k-models", "fieldset"):
                        el.text_of("legend", w("models"))
                        for model in models:
                            self.chosen[model.name] = Check(model.name, model is models[-1])
                    self.window = el.box()
                    self.text.examples(w("try"), self.tries)
                with el.card():
                    with el.box("k-sliders"):
                        self._samplers(penalties=False)
                        self.limit = Counts(self.visit, "limit", (8, 2048, 8), 64)
                    with el.fold(w("penalties")), el.box("k-sliders"):
                        self._samplers(penalties=True)
                    self.ahead = Check(w("ahead"), False)
                tokenizer_view(self.visit)
                open_fold(self.visit)
            with el.card(classes="k-side") as side:
                self.panel = TokenPanel(self.visit, side, self.sampling, self.fork)
        self.stop_button.set_visibility(False)
        self.timer = ui.timer(EVERY_S, self.tick, active=False)
        with self.turns:
            for place, turn in enumerate(self.conversation.turns):
                self._show(place, turn)
        self._fill()
        self.text.restore()
        self.timer.activate()
        if self.said and self.said[-1].branches.current.steps:
            self.look(self.said[-1], 0, opened=False)

    def _samplers(self, penalties: bool) -> None:
        """Adds a slider for each sampler: for penalties (of earlier tokens), or for the others."""
        say, said = self.say, Sentences(self.say.lang)
        for name, row in SAMPLERS.items():
            if (row.adjust is not None) == penalties:
                written = (lambda v: say.count(round(v))) if row.whole else (lambda v: say.number(v, 2))
                first = TEMPERATURE if name == "temperature" else row.off
                slider = Slider(say.text(row.title), row.slider, first, written)
                slider.props["title"] = said(row.help)
                slider.moved = lambda: self.panel.draw()
                self.sliders[name] = slider

    def sampling(self) -> Sampling:
        moved: dict[str, Any] = {name: slider.value for name, slider in self.sliders.items()}
        return Sampling(**{name: round(value) if SAMPLERS[name].whole else value for name, value in moved.items()})

    @el.unless_busy
    async def send(self) -> None:
        """Asks every chosen model; the answers come side by side."""
        names = [name for name, check in self.chosen.items() if check.value][:SIDE_BY_SIDE]
        question, sampling = self.text.value.strip(), self.sampling()
        if not question or not names or self.stop_button.visible:
            ui.notify(self.w("choose_model" if question and not names else "say_something"), position="top")
            return

        def asked() -> Turn:
            # one seed for all models, so that they differ by their probabilities only
            turn, seed = Turn(question), randbits(48)
            for name in names:
                prompt = self.studio.model(name).prompt_after(self.conversation, question)
                turn.branches[name] = Branches(name)
                turn.branches[name].begin(prompt, sampling, seed)
            return turn

        if (turn := await self.visit.attempt(asked)) is None:
            return
        self.conversation.turns.append(turn)
        self.text.set("")
        with self.turns:
            self._show(len(self.conversation.turns) - 1, turn)
        # a reload finds the conversation by the address
        ui.run_javascript(f"history.replaceState(null, '', '/?c={self.conversation.key}')")
        for branches in turn.branches.values():
            self._run(branches, branches.current)

    def fork(self, branches: Branches, at: int, token: int) -> None:
        """Starts a branch of the shown answer with ``token`` at place ``at``."""
        try:
            answer = branches.fork(at, token, self.sampling())
        except Exception as error:
            self.visit.tell(error)
            return
        self.show(branches, answer.number)
        self._run(branches, answer)

    def show(self, branches: Branches, number: int) -> None:
        """Shows the branch with this number."""
        branches.shown = number
        for said in self.said:
            if said.branches is branches:
                self._draw(said)

    def stop(self) -> None:
        for said in self.said:
            for answer in said.branches.answers:
                answer.running = False

    def forget(self) -> None:
        self.stop()
        ui.navigate.to("/")

    def _run(self, branches: Branches, answer: AnswerBranch) -> None:
        """Generates the answer in a task of the server's, which goes on when the page is reloaded."""
        ahead, limit = self.ahead.value, int(self.limit.value)

        async def work() -> None:
            model = self.studio.model(branches.model)
            try:
                await (model.extend_ahead if ahead and model.speculates else model.extend)(answer, limit)
            except Exception as error:
                answer.failed = self.visit.why(error)
            finally:
                answer.running = False

        background_tasks.create(work())
        self.timer.activate()

    def tick(self) -> None:
        """Sends the tokens that are new, and redraws the answers that have ended."""
        for said in self.said:
            answer = said.branches.current
            if said.tokens is not None and said.tokens.busy:
                if answer.running:
                    said.tokens.add(rows_of(said.model, answer.steps, len(said.tokens.rows), self.say.share))
                else:
                    self._draw(said)
        busy = any(answer.running for said in self.said for answer in said.branches.answers)
        if self.stop_button.visible != busy:
            self.stop_button.set_visibility(busy)
        if not busy:  # an idle page costs the server nothing
            self.timer.deactivate()
            self._fill()

    def _show(self, place: int, turn: Turn) -> None:
        known = {model.name: model for model in self.studio.models if model.name in turn.branches}
        unknown, warnings = set[str](), dict[str, list[str]]()
        for name, model in known.items():
            if model.reading is not None:
                unknown.update(model.reading.unknown_words(turn.question))
                warnings.setdefault(model.reading.warning(turn.question, self.visit.lang), []).append(name)
        with el.box("k-turn"):
            with el.box("k-asked"), el.box(tag="p"):
                for text, strange in split_at(turn.question, unknown):
                    el.text_of("u" if strange else "span", self.say.text(text), "k-strange" if strange else "")
            for text, names in warnings.items():
                if text:
                    el.text_of("p", f"{', '.join(names)}: {self.say.text(text)}", "k-small k-warn")
            with el.box("k-columns"):
                for name in turn.branches:
                    if name in known:
                        article = el.box(f"k-card k-said {known[name].stage}", "article")
                        self.said.append(ShownAnswer(place, known[name], turn.branches[name], article))
                        self._draw(self.said[-1])

    def _draw(self, said: ShownAnswer) -> None:
        w, model, answer = self.w, said.model, said.branches.current
        said.article.clear()
        with said.article:
            with el.box(tag="header"):
                el.text_of("h2", model.name)
                el.text_of("span", self.visit.frame(f"stage_{model.stage}") if model.stage else "", "k-stage")
            rows = rows_of(model, answer.steps, 0, self.say.share)
            said.tokens = Tokens(rows, w("answer_of", model=model.name), answer.running, partial(self.look, said))
            if answer.failed:
                el.text_of("p", self.say.text(answer.failed), "k-small k-warn")
            if answer.trace is not None:
                with el.box("k-costs", "ul"):
                    for part in costs(self.visit, model, answer):
                        el.text_of("li", part)
            if len(said.branches.answers) > 1:
                with el.box("k-branches", "ul", aria_label=w("ways")):
                    for one in said.branches.answers:
                        with el.box(tag="li"):
                            pressed = "true" if one is answer else "false"
                            act = partial(self.show, said.branches, one.number)
                            el.button(way(w, model, one), act, "tiny", aria_pressed=pressed)

    def look(self, said: ShownAnswer, at: int, opened: bool = True) -> None:
        """Shows the alternatives at a token. The truth can be known for a model's first message only."""
        turns = self.conversation.turns
        first = all(said.model.name not in turn.branches for turn in turns[: said.turn])
        self.panel.look(said.model, said.branches, at, turns[said.turn].question if first else "", opened)

    def _fill(self) -> None:
        """Draws how full each model's context window is."""
        self.window.clear()
        with self.window:
            for said in self.said:
                if said.turn < self.said[-1].turn:
                    continue
                answer, of = said.branches.current, said.model.window
                used = len(answer.prompt) + len(answer.steps)
                counts = {"n": self.say.count(used), "of": self.say.count(of)}
                el.text_of("div", self.w("window", model=said.model.name, **counts), "k-small")
                with el.box("k-window full" if used >= of else "k-window", aria_hidden="true"):
                    el.box().style(f"width:{100 * min(1.0, used / of):.1f}%")


def way(w: Words, model: SharedModel, answer: AnswerBranch) -> str:
    """The name of a branch, by the token that it took."""
    if answer.parent is None:
        return w("first_way")
    took = visible_text(model, answer.tokens[answer.at], answer.tokens[: answer.at])
    return w("way", n=answer.number + 1, of=answer.parent + 1, place=answer.at + 1, token=took)


def costs(visit: el.Visit, model: SharedModel, answer: AnswerBranch) -> list[str]:
    """What an answer cost (tokens, passes, time, operations, energy), and how it ended; empty while it runs."""
    w, say, trace = visit.words, visit.say, answer.trace
    if trace is None:
        return []
    tokens, flops = len(trace.steps), model.opened.flops(trace)
    speed = tokens / answer.seconds if answer.seconds > 0 else 0.0
    parts = [w("tokens", n=say.count(tokens)), w("passes", n=say.count(trace.passes))]
    parts += [say.seconds(answer.seconds), w("speed", n=say.count(round(speed)))] if speed else []
    parts += [w("flops", n=say.big(flops))] if flops is not None else []
    parts += [w("joules", n=say.number(answer.joules))] if answer.joules is not None else []
    if answer.accepted is not None:
        parts.append(w("accepted", n=say.count(answer.accepted), of=say.count(answer.proposed or 0)))
    return [*parts, w(f"ended_{trace.ended}")]


def split_at(text: str, words: set[str]) -> list[tuple[str, bool]]:
    """Splits a text into (piece, whether it is one of these words) pairs."""
    pieces = [(piece, piece in words) for piece in re.split(r"([^\W_]+)", text) if piece]
    return [("".join(piece for piece, _ in group), strange) for strange, group in groupby(pieces, lambda p: p[1])]


async def build(visit: el.Visit) -> None:
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
    AnswerPage(visit, conversation, *await asyncio.to_thread(known))
