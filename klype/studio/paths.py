"""Veier / Paths: one question, all the ways to answer it, and the word at which the meaning was decided."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from nicegui import background_tasks, ui

from klype.answers.forks import Forks
from klype.api.results import judged
from klype.examine.charts import Cell, Option
from klype.examine.facts import FigureFacts
from klype.examine.say import Say
from klype.studio.charts import chart, meaning_colour, redraw
from klype.studio.fields import Counts, Select, Slider, Text
from klype.studio.frame import (
    PAGE_BEGINS,
    Progress,
    Scroll,
    Visit,
    as_data,
    box,
    button,
    card,
    examples,
    retext,
    status,
    table,
    text_of,
)
from klype.studio.opening import first_steps
from klype.studio.paths_search import Flow, FoundPaths, PathSearch, PathSettings, exact
from klype.studio.studio import CancelledError
from klype.studio.tokens import shown
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
    tries: Sequence[str]
    search: PathSearch | None = None
    found: FoundPaths | None = None
    forks: Forks | None = None
    running: list[PathSearch] = field(default_factory=list)

    def build(self) -> None:
        visit, w, say = self.visit, self.visit.words, self.visit.say
        names = {model.name: model.name for model in visit.studio.models}
        with card() as asking:
            asking.props.update(id=PAGE_BEGINS, tabindex="-1")
            with box("k-row"):
                self.text = Text(w("question"), 2, LONGEST, self.start, draft="paths")
            with box("k-sliders").style("margin-top:10px"):
                self.model = Select(w("model"), names, visit.studio.models[-1].name, self.start)
                self.n = Counts(visit, "answers", (8, 256, 8), 64).released(self.again)
                self.temperature = Slider(w("temperature"), (0.0, 2.0, 0.05), 0.7, lambda v: say.number(v, 2))
                self.temperature.released(self.again)
                self.limit = Counts(visit, "limit", (4, 128, 4), 32).released(self.again)
            with box("k-row").style("margin-top:10px"):
                button(w("ask"), self.start, "strong")
                self.cancel_button = button(visit.frame("cancel"), self.cancel)
                self.progress = Progress("k-grow")
            self.note = status()
            examples(w("try"), self.tries, self._take)
        self.cancel_button.set_visibility(False)
        self.progress.set_visibility(False)
        self.box = box()
        self.text.restore()
        ui.timer(0.2, self._tick)
        ui.context.client.on_delete(self.cancel)

    async def start(self) -> None:
        """A new question: nothing of the old one is of use."""
        if not self.text.value.strip():
            ui.notify(self.visit.words("say_something"), position="top")
            return
        model = self.visit.studio.model(self.model.value)
        try:
            asking = await asyncio.to_thread(model.ask_about, self.text.value.strip())
        except Exception as error:
            self.visit.tell(error)
            return
        self._run(PathSearch(model, asking))

    def again(self) -> None:
        """The same question at other settings: most of it has been read."""
        if self.search is not None:
            self._run(PathSearch(self.search.model, self.search.asking, self.search.known))

    def cancel(self) -> None:
        for search in self.running:
            search.cancelled.set()

    async def _take(self, text: str) -> None:
        self.text.set(text)
        await self.start()

    def _run(self, search: PathSearch) -> None:
        self.cancel()
        self.search = search
        self.running.append(search)
        settings = PathSettings(self.temperature.value, int(self.n.value), int(self.limit.value))
        client, model = ui.context.client, search.model

        def show(act: Callable[[], None]) -> None:
            if self.search is search and not client.is_deleted:
                with client:
                    act()

        async def work() -> None:
            try:
                found = await model.beside(lambda source: search.paths(source, settings))
                self.found, self.forks = found, None
                show(partial(self._draw, found))
                if found.common is not None and len(found.meant) > 1 and not search.cancelled.is_set():
                    common = found.common
                    self.forks = await model.beside(lambda source: search.fork(source, common, settings))
                    show(partial(self._draw_fork, found))
            except CancelledError:
                pass
            except Exception as error:
                show(partial(self.visit.tell, error))
            finally:
                self.running.remove(search)

        background_tasks.create(work())

    def _tick(self) -> None:
        busy = self.search is not None and self.search in self.running
        if self.cancel_button.visible != busy:
            self.cancel_button.set_visibility(busy)
            self.progress.set_visibility(busy)
            retext(self.note, "")
        if busy and self.search is not None:
            self.progress.fill(True, self.search.done)
            w, say, done = self.visit.words, self.visit.say, self.search.done
            time_s = say.seconds(float(round(time.monotonic() - self.search.began)))
            said = w("looking", time=time_s) if done >= 1 else w("reading", share=say.share(done), time=time_s)
            if time.monotonic() - self.search.began > 1 and self.note._text != said:
                retext(self.note, said)

    def _draw(self, found: FoundPaths) -> None:
        self.box.clear()
        with self.box:
            self._flow(found)
            with box("k-panels"):
                with card():
                    self._meanings(found)
                with card() as self.fork_card:
                    self._fork(found)
            self._exact(found)

    def _draw_fork(self, found: FoundPaths) -> None:
        """What is known of the fork, into what is drawn: a chart that is replaced before it has appeared is an error in
        the browser."""
        redraw(self.flow_chart, self._flow_option(found)[0], self.visit.lang)
        self.fork_card.clear()
        with self.fork_card:
            self._fork(found)

    def _flow_option(self, found: FoundPaths) -> tuple[Option, int, int]:
        """The flow's drawing, its height and its least width."""
        w, say = self.visit.words, self.visit.say
        rest = lambda n: w("rest", n=say.count(n)) if n else w("end")
        flow = Flow(found, say, self.forks.fork if self.forks is not None else None, rest)
        return *flow.drawn(), flow.width

    def _flow(self, found: FoundPaths) -> None:
        """All drawn answers, under how many meanings they have."""
        w, say = self.visit.words, self.visit.say
        option, height, width = self._flow_option(found)
        rows: list[list[Cell]] = [
            [found.asking.question.prompt, found.spell(t.tokens), t.logp, t.ended] for t in found.traces
        ]
        with card() as drawn:
            text_of("h2", flow_title(found, w, say))
            with Scroll(self.visit, w("flow_region")):
                drawing = chart(option, self.visit.lang, height, w("flow_region"))
                self.flow_chart = drawing.style(f"min-width:{width}px")
            text_of("p", w("how_flow"), "k-small")
            as_data(self.visit, "answers", [w("question"), w("answer"), "log p", w("ended")], lambda: rows, drawn)

    def _meanings(self, found: FoundPaths) -> None:
        w, say = self.visit.words, self.visit.say
        listed = [one for one in found.meant if one.drawn or one.low >= LEAST]
        rows = []
        for place, one in enumerate(listed[:LISTED]):
            ends = say.number(100 * one.low, 1), say.number(100 * one.high, 1)
            high = say.share(one.high, 1)
            bounds = high if ends[0] == ends[1] else f"{ends[0]}–{high}"  # one number where both ends read alike
            rows.append([partial(self._meant, found, place), say.figure(facts(one.share), "right"), bounds])
        text_of("h2", w("meanings"))
        table(self.visit, [w("meaning"), w("drawn_share"), w("certain_share")], rows, numeric=(1, 2))
        if len(listed) > LISTED:
            text_of("p", w("more", n=say.count(len(listed) - LISTED)), "k-small")
        left = say.share(found.tree.unexplored, 1)
        judge = say.judged(judged(found.asking.judge, found.asking.error_rate))
        text_of("p", w("how_meanings", judge=judge, left=left), "k-small")

    def _meant(self, found: FoundPaths, place: int) -> None:
        one = found.meant[place]
        box("k-swatch", "span", aria_hidden="true").style(f"background:{meaning_colour(place)}")
        if one.right is not None:
            said = self.visit.frame("right" if one.right else "wrong")
            text_of("span", "✓ " if one.right else "✗ ", "k-mark ok" if one.right else "k-mark no", title=said)
        text_of("bdi", self.visit.say.text(one.text) or "∅")

    def _fork(self, found: FoundPaths) -> None:
        """Whether a word decided the commonest answer, and what follows others in its place."""
        w, say, forks = self.visit.words, self.visit.say, self.forks
        text_of("h2", w("fork"))
        if forks is None or self.search is None:
            text_of("p", decision(found, None, "", w, say), "k-small")
            return
        model, ids = self.search.model, [position.token for position in forks.positions]
        with box("k-words"):
            for i, position in enumerate(forks.positions):
                name = shown(model, position.token, ids[:i])
                with box("w fork" if i == forks.fork else "w", "span"):
                    text_of("span", f"▶ {name}" if i == forks.fork else name)
                    text_of("small", say.share(position.own, 1))
        word = "" if forks.fork is None else shown(model, ids[forks.fork], ids[: forks.fork])
        text_of("p", decision(found, forks, word, w, say))
        if forks.fork is None:
            return
        rows = []
        for other in forks.others:
            named: dict[str, float] = {}
            for meaning, share in other.meanings[:3]:
                place = found.place_of(meaning)
                name = w("quoted", text=say.text(found.meant[place].text)) if place >= 0 else w("other_meaning")
                named[name] = named.get(name, 0.0) + share
            then = ", ".join(f"{say.share(share, 1)} {name}" for name, share in named.items())
            rows.append(
                [
                    partial(text_of, "bdi", shown(model, other.token, ids[: forks.fork]), "k-word"),
                    say.share(other.p, 1),
                    then,
                ]
            )
        table(self.visit, [w("word"), w("p"), w("then")], rows, numeric=(1,))
        text_of("p", w("how_fork", n=forks.samples), "k-small")

    def _exact(self, found: FoundPaths) -> None:
        w, say, tree = self.visit.words, self.visit.say, found.tree
        option, height, width = exact(found, say, w)
        rows: list[list[Cell]] = [[a.text, a.low, a.high] for a in tree.answers[:200]]
        with card() as drawn:
            text_of("h2", w("exact", left=say.share(tree.unexplored, 1), n=say.count(tree.expansions)))
            with Scroll(self.visit, w("exact_region")):
                chart(option, self.visit.lang, height, w("exact_region")).style(f"min-width:{width}px")
            text_of("p", w("how_exact"), "k-small")
            as_data(self.visit, "exact-answers", [w("answer"), w("low"), w("high")], lambda: rows, drawn)


def flow_title(found: FoundPaths, w: Words, say: Say) -> str:
    """How many meanings the drawn answers have."""
    n, meanings = len(found.traces), sum(m.drawn > 0 for m in found.meant)
    share = say.share(found.meant[0].drawn / n)
    return w("flow_one" if meanings < 2 else "flow", n=say.count(n), meanings=say.count(meanings), share=share)


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


async def build(visit: Visit) -> None:
    """The page."""
    if visit.studio.models:
        PathsPage(visit, await asyncio.to_thread(visit.studio.suggestions, visit.lang)).build()
    else:
        first_steps(visit, visit.frame("no_models"))
