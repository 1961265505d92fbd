"""Veier / Paths: one question, all the ways to answer it, and the word at which the meaning was decided."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from nicegui import background_tasks, ui

from klype.answers.forks import Forks
from klype.examine.facts import FigureFacts
from klype.examine.say import Say
from klype.studio.charts import Option, chart, meaning_colour, redraw
from klype.studio.fields import Choice, Slider, Text
from klype.studio.frame import Cell, Visit, as_data, button, card, table, text_of
from klype.studio.paths_search import FoundPaths, PathSearch, PathSettings, flow_option, tree_option
from klype.studio.studio import CancelledError, SharedModel
from klype.studio.tokens import shown, spelled
from klype.values import Figure
from klype.words import Words

LONGEST = 4000
LISTED = 12
LEAST = 0.001
"""Meanings that were not drawn are shown from this probability on."""


@dataclass
class PathsPage:
    """The page as one visitor has it."""

    visit: Visit
    search: PathSearch | None = None
    found: FoundPaths | None = None
    forks: Forks | None = None
    running: list[PathSearch] = field(default_factory=list)

    def build(self) -> None:
        visit, w = self.visit, self.visit.words
        if not visit.studio.models:
            text_of("p", visit.frame("no_models"), "k-card k-empty")
            return
        names = {model.name: model.name for model in visit.studio.models}
        questions = visit.studio.questions.get(visit.lang, ())
        with card():
            with ui.element("div").classes("k-row"):
                self.text = Text(w("question"), 2, LONGEST, self.start, draft="paths")
            with ui.element("div").classes("k-sliders").style("margin-top:10px"):
                self.model = Choice(w("model"), names, visit.studio.models[-1].name, self.start)
                self.n = Slider(w("answers"), (8, 256, 8), 64, lambda v: visit.say.count(round(v)))
                self.temperature = Slider(w("temperature"), (0.0, 2.0, 0.05), 0.7, lambda v: visit.say.number(v, 2))
                self.limit = Slider(w("limit"), (4, 128, 4), 32, lambda v: visit.say.count(round(v)))
            for slider in (self.n, self.temperature, self.limit):
                slider.released(self.again)
            with ui.element("div").classes("k-row").style("margin-top:10px"):
                button(w("ask"), self.start, "strong")
                self.cancel_button = button(visit.frame("cancel"), self.cancel)
                self.progress = ui.element("div").classes("k-progress k-grow")
                with self.progress:
                    self.bar = ui.element("div").style("width:0%")
            if questions:
                with ui.element("div").classes("k-chips").style("margin-top:10px"):
                    text_of("span", w("try"), "k-small")
                    for question in questions[:3]:
                        button(question, partial(self._take, question), "tiny")
        self.cancel_button.set_visibility(False)
        self.progress.set_visibility(False)
        self.box = ui.element("div")
        self.text.restore()
        ui.timer(0.2, self._told)
        ui.context.client.on_delete(self.cancel)

    async def start(self) -> None:
        """A new question: nothing of the old one is of use."""
        if not self.text.value.strip():
            ui.notify(self.visit.words("say_something"), position="top")
            return
        voice = self.visit.studio.voice(self.model.value)
        try:
            asking = await asyncio.to_thread(voice.model.ask, self.text.value.strip())
        except Exception as error:
            self.visit.tell(error)
            return
        self._run(voice, PathSearch(voice.model, asking))

    def again(self) -> None:
        """The same question at other settings: most of it has been read."""
        if self.search is not None:
            self._run(
                self.visit.studio.voice(self.search.model.name),
                PathSearch(self.search.model, self.search.asking, self.search.known),
            )

    def cancel(self) -> None:
        for search in self.running:
            search.cancelled.set()

    async def _take(self, text: str) -> None:
        self.text.set(text)
        await self.start()

    def _run(self, voice: SharedModel, search: PathSearch) -> None:
        self.cancel()
        self.search = search
        self.running.append(search)
        settings = PathSettings(self.temperature.value, int(self.n.value), int(self.limit.value))
        client = ui.context.client

        def show(act: Callable[[], None]) -> None:
            if self.search is search and not client.is_deleted:
                with client:
                    act()

        async def work() -> None:
            try:
                found = await voice.beside(lambda source: search.paths(source, settings))
                self.found, self.forks = found, None
                show(self._draw)
                if found.common is not None and len(found.meant) > 1 and not search.cancelled.is_set():
                    common = found.common
                    self.forks = await voice.beside(lambda source: search.fork(source, common, settings))
                    show(self._draw_fork)
            except CancelledError:
                pass
            except Exception as error:
                why = error
                show(lambda: self.visit.tell(why))
            finally:
                self.running.remove(search)

        background_tasks.create(work())

    def _told(self) -> None:
        busy = self.search is not None and self.search in self.running
        if self.cancel_button.visible != busy:
            self.cancel_button.set_visibility(busy)
            self.progress.set_visibility(busy)
        if busy and self.search is not None:
            self.bar.style(f"width:{100 * self.search.done:.0f}%")

    def _draw(self) -> None:
        assert self.found is not None
        self.box.clear()
        with self.box:
            self._flow(self.found)
            with ui.element("div").classes("k-panels"):
                with card():
                    self._meanings(self.found)
                with card() as self.fork_card:
                    self._fork(self.found)
            self._exact(self.found)

    def _draw_fork(self) -> None:
        """What is known of the fork, into what is drawn: a chart that is replaced before it has appeared is an error in
        the browser."""
        assert self.found is not None
        redraw(self.flow_chart, self._flow_option(self.found)[0], self.visit.lang)
        self.fork_card.clear()
        with self.fork_card:
            self._fork(self.found)

    def _flow_option(self, found: FoundPaths) -> tuple[Option, int]:
        """The flow's drawing and its height."""
        w, say = self.visit.words, self.visit.say
        fork = self.forks.fork if self.forks is not None else None
        rest = lambda n: w("rest", n=say.count(n)) if n else w("end")
        return flow_option(found, found_spell(self.visit, found), say, fork, rest)

    def _flow(self, found: FoundPaths) -> None:
        w, say = self.visit.words, self.visit.say
        spell = found_spell(self.visit, found)
        option, height = self._flow_option(found)
        with card() as box:
            text_of("h2", flow_title(found, w, say))
            with ui.element("div").classes("k-scroll") as scroll:
                scroll.props.update({"tabindex": "0", "role": "region", "aria-label": w("flow_region")})
                self.flow_chart = chart(option, self.visit.lang, height, w("flow_region")).style("min-width:680px")
            text_of("p", w("how_flow"), "k-small")
            rows: list[list[Cell]] = [
                [found.asking.question.prompt, spell(t.tokens), t.logp, t.ended] for t in found.traces
            ]
            columns = [w("question"), w("answer"), "log p", w("ended")]
            as_data(self.visit, "answers", columns, lambda: rows, box)

    def _meanings(self, found: FoundPaths) -> None:
        w, say = self.visit.words, self.visit.say
        text_of("h2", w("meanings"))
        rows = []
        listed = [one for one in found.meant if one.drawn or one.low >= LEAST]
        for place, one in enumerate(listed[:LISTED]):
            bounds = self._interval(one.low, one.high)
            rows.append([partial(self._meant, place), say.figure(facts(one.share), "right"), bounds])
        table([w("meaning"), w("drawn_share"), w("certain_share")], rows, numeric=(1, 2))
        if len(listed) > LISTED:
            text_of("p", w("more", n=say.count(len(listed) - LISTED)), "k-small")
        text_of(
            "p",
            w("how_meanings", judge=say.judge(found.asking.judge), left=say.share(found.tree.unexplored, 1)),
            "k-small",
        )

    def _interval(self, low: float, high: float) -> str:
        """57.5–59.6%: certain; one number where both ends read alike."""
        say = self.visit.say
        ends = say.number(100 * low, 1), say.number(100 * high, 1)
        return say.share(high, 1) if ends[0] == ends[1] else f"{ends[0]}–{say.share(high, 1)}"

    def _meant(self, place: int) -> None:
        assert self.found is not None
        one = self.found.meant[place]
        ui.element("span").classes("k-swatch").style(f"background:{meaning_colour(place)}").props["aria-hidden"] = (
            "true"
        )
        if one.right is not None:
            mark = text_of("span", "✓ " if one.right else "✗ ", "k-mark ok" if one.right else "k-mark no")
            mark.props["title"] = self.visit.frame("right" if one.right else "wrong")
        text_of("bdi", self.visit.say.text(one.text) or "∅")

    def _fork(self, found: FoundPaths) -> None:
        w, say = self.visit.words, self.visit.say
        text_of("h2", w("fork"))
        if self.forks is None:
            text_of("p", decision(found, None, "", w, say), "k-small")
            return
        model = self.search.model if self.search is not None else None
        if model is None:
            return
        with ui.element("div").classes("k-words"):
            for i, position in enumerate(self.forks.positions):
                name = shown(spelled(model, position.token))
                with ui.element("span").classes("w fork" if i == self.forks.fork else "w"):
                    text_of("span", f"▶ {name}" if i == self.forks.fork else name)
                    text_of("small", say.share(position.own))
        at = None if self.forks.fork is None else self.forks.positions[self.forks.fork]
        text_of("p", decision(found, self.forks, "" if at is None else shown(spelled(model, at.token)), w, say))
        if at is None:
            return
        rows = []
        for other in self.forks.others:
            named: dict[str, float] = {}
            for meaning, share in other.meanings[:3]:
                name = self._name(found, meaning)
                named[name] = named.get(name, 0.0) + share
            meant = ", ".join(f"{say.share(share)} {name}" for name, share in named.items())
            rows.append(
                [partial(text_of, "bdi", shown(spelled(model, other.token)), "k-word"), say.share(other.p), meant]
            )
        table([w("word"), w("p"), w("then")], rows, numeric=(1,))
        text_of("p", w("how_fork", n=self.forks.samples), "k-small")

    def _name(self, found: FoundPaths, meaning: object) -> str:
        place = next((i for i, one in enumerate(found.meant) if one.meaning == meaning), -1)
        return f"«{self.visit.say.text(found.meant[place].text)}»" if place >= 0 else self.visit.words("other_meaning")

    def _exact(self, found: FoundPaths) -> None:
        w, say = self.visit.words, self.visit.say
        option, height = tree_option(found, found_spell(self.visit, found), say, w("end"))
        tree = found.tree
        with card() as box:
            text_of("h2", w("exact", left=say.share(tree.unexplored, 1), n=say.count(tree.expansions)))
            with ui.element("div").classes("k-scroll") as scroll:
                scroll.props.update({"tabindex": "0", "role": "region", "aria-label": w("exact_region")})
                chart(option, self.visit.lang, height, w("exact_region")).style("min-width:680px")
            text_of("p", w("how_exact"), "k-small")
            rows: list[list[Cell]] = [[a.text, a.low, a.high] for a in tree.answers[:200]]
            as_data(self.visit, "exact-answers", [w("answer"), w("low"), w("high")], lambda: rows, box)


def flow_title(found: FoundPaths, w: Words, say: Say) -> str:
    """How many meanings the drawn answers have."""
    n, meanings = len(found.traces), sum(m.drawn > 0 for m in found.meant)
    if meanings < 2:
        return w("flow_one", n=say.count(n))
    share = say.share(found.meant[0].drawn / n)
    return w("flow", n=say.count(n), meanings=say.count(meanings), share=share)


def decision(found: FoundPaths, forks: Forks | None, word: str, w: Words, say: Say) -> str:
    """Whether a word decided the commonest answer; ``forks`` None: it has not been looked for (yet)."""
    if forks is None:
        return w("fork_none" if len(found.meant) < 2 else "fork_wait")
    if forks.fork is None:
        return w("fork_chance", p=say.number(forks.p, 3))
    moved = say.figure(facts(forks.positions[forks.fork].strength), "right")
    return w("fork_at", word=word, n=forks.fork + 1, moved=moved)


def facts(figure: Figure) -> FigureFacts:
    """As the report's formatter takes it."""
    return FigureFacts(value=figure.value, low=figure.low, high=figure.high, n=figure.n)


def found_spell(visit: Visit, found: FoundPaths) -> Callable[[tuple[int, ...]], str]:
    """Tokens to text, as the model that was asked spells them."""
    return visit.studio.voice(found.model).model.codec.decode


def build(visit: Visit) -> None:
    """The page."""
    PathsPage(visit).build()
