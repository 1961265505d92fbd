"""Veier / Paths: the page that shows the answers to one question, and the word at which the meaning was decided."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from nicegui import background_tasks, ui

from klype.answers.forks import Forks
from klype.api.results import judge_and_error
from klype.examine.charts import Cell, Panel, Picture
from klype.examine.say import Say
from klype.experiments.framework import facts
from klype.studio import elements as el
from klype.studio.answer_paths_search import CancelledError, FoundPaths, PathSearch, exact, flow
from klype.studio.fields import Counts, Select, Slider, TextArea, first_steps
from klype.studio.tokens import visible_text
from klype.words import Words

LONGEST = 4000
LISTED, MIN_SHOWN = 12, 0.001  # meanings in the table, and the least probability of one that was not drawn


@dataclass
class PathsPage(el.PagePart):
    """The page. ``search``: the last one, ``running``: those that have not ended; ``tries``: questions to begin
    with."""

    tries: Sequence[str]
    search: PathSearch | None = None
    forks: Forks | None = None
    running: list[PathSearch] = field(default_factory=list)

    def build(self) -> None:
        w, say, models = self.w, self.say, self.studio.models
        with el.card(id=el.PAGE_BEGINS, tabindex="-1"):
            with el.box("k-row"):
                self.text = TextArea(w("question"), LONGEST, self.start, draft="paths")
            with el.box("k-sliders").style("margin-top:10px"):
                names = {model.name: model.name for model in models}
                self.model = Select(w("model"), names, models[-1].name, self.start)
                self.n = Counts(self.visit, "answers", (8, 256, 8), 64)
                self.temperature = Slider(w("temperature"), (0.0, 2.0, 0.05), 0.7, lambda v: say.number(v, 2))
                self.limit = Counts(self.visit, "limit", (4, 128, 4), 32)
            self.n.released = self.temperature.released = self.limit.released = self.again
            with el.box("k-row").style("margin-top:10px"):
                el.button(w("ask"), self.start, "strong")
                self.cancel_button = el.button(self.visit.frame("cancel"), self.cancel)
                self.progress = el.progress_bar("k-grow")
            self.note = el.status()
            self.text.examples(w("try"), self.tries)
        self.cancel_button.set_visibility(False)
        self.progress.set_visibility(False)
        self.box = el.box()
        self.text.restore()
        ui.timer(0.2, self.tick)
        ui.context.client.on_delete(self.cancel)

    async def start(self) -> None:
        """Starts a search for the question in the field."""
        if not self.text.value.strip():
            ui.notify(self.w("say_something"), position="top")
            return
        model = self.studio.model(self.model.value)
        asking = await self.visit.attempt(model.context, self.text.value.strip())
        if asking is not None:
            self._run(partial(PathSearch, model, asking))

    def again(self) -> None:
        """Starts a search for the same question with other settings; distributions that are known are reused."""
        if self.search is not None:
            self._run(partial(PathSearch, self.search.model, self.search.asking, known=self.search.known))

    def cancel(self) -> None:
        for search in self.running:
            search.cancelled.set()

    def _run(self, begin: Callable[..., PathSearch]) -> None:
        self.cancel()
        # the sliders may be moved while it is computed
        search = begin(temperature=self.temperature.value, n=int(self.n.value), limit=int(self.limit.value))
        client, model = ui.context.client, search.model
        self.search = search
        self.running.append(search)

        def show(act: Callable[[], None]) -> None:
            if self.search is search and not client.is_deleted:
                with client:
                    act()

        async def work() -> None:
            try:
                found = await model.beside(search.paths)
                self.forks = None
                show(partial(self._draw, found))
                if (common := found.common) is not None and len(found.meant) > 1 and not search.cancelled.is_set():
                    self.forks = await model.beside(lambda source: search.fork(source, common))
                    show(partial(self._draw_fork, found))
            except CancelledError:
                pass
            except Exception as error:
                show(partial(self.visit.tell, error))
            finally:
                self.running.remove(search)

        background_tasks.create(work())

    def tick(self) -> None:
        search = self.search if self.search in self.running else None
        if self.cancel_button.visible != (search is not None):
            self.cancel_button.set_visibility(search is not None)
            self.progress.set_visibility(search is not None)
            el.retext(self.note, "")
        if search is not None:
            self.progress.props(f"value={search.done:.3f}")
            w, say, seconds = self.w, self.say, time.monotonic() - search.began
            about = {"share": say.share(search.done), "time": say.seconds(float(round(seconds)))}
            said = w("looking" if search.done >= 1 else "reading", **about)
            if seconds > 1 and self.note._text != said:  # a screen reader need not announce a short wait
                el.retext(self.note, said)

    def _draw(self, found: FoundPaths) -> None:
        w, say, tree = self.w, self.say, found.tree
        self.box.clear()
        with self.box:
            columns, prompt = [w("question"), w("answer"), "log p", w("ended")], found.asking.question.prompt
            rows: list[list[Cell]] = [[prompt, found.decode(t.tokens), t.logp, t.ended] for t in found.traces]
            made = Picture("answers", flow_title(found, w, say), w("how_flow"), [self._flow(found)], columns, rows)
            (self.flow,) = el.picture(self.visit, made)
            with el.box("k-panels"):
                with el.card(w("meanings")):
                    self._meanings(found)
                with el.card() as self.fork_card:
                    self._fork(found)
            title = w("exact", left=say.share(tree.unexplored, 1), n=say.count(tree.expansions))
            columns, rows = [w("answer"), w("low"), w("high")], [[a.text, a.low, a.high] for a in tree.answers[:200]]
            made = Picture("exact-answers", title, w("how_exact"), [exact(found, say, w)], columns, rows)
            el.picture(self.visit, made)

    def _draw_fork(self, found: FoundPaths) -> None:
        """Adds the fork to what is drawn. The chart is not replaced: one that goes before it has appeared is an error
        in the browser."""
        el.redraw(self.flow, self._flow(found).option, self.visit.lang)
        self.fork_card.clear()
        with self.fork_card:
            self._fork(found)

    def _flow(self, found: FoundPaths) -> Panel:
        rest = lambda n: self.w("rest", n=self.say.count(n)) if n else self.w("end")
        return flow(found, self.say, self.forks.fork if self.forks is not None else None, rest)

    def _meanings(self, found: FoundPaths) -> None:
        w, say = self.w, self.say
        listed = [(i, one) for i, one in enumerate(found.meant) if one.drawn or one.low >= MIN_SHOWN]
        rows = []
        for place, one in listed[:LISTED]:
            low, high = (say.number(100 * end, 1) for end in (one.low, one.high))
            bounds = "" if low == high else f"{low}–"
            share = say.figure(facts(one.share), "right")
            rows.append([partial(self._meant, found, place), share, f"{bounds}{say.share(one.high, 1)}"])
        el.table(self.visit, [w("meaning"), w("drawn_share"), w("certain_share")], rows, numeric=(1, 2))
        if len(listed) > LISTED:
            el.small(w("more", n=say.count(len(listed) - LISTED)))
        judge = say.judge_note(judge_and_error(found.asking.judge, found.asking.error_rate))
        el.small(w("how_meanings", judge=judge, left=say.share(found.tree.unexplored, 1)))

    def _meant(self, found: FoundPaths, place: int) -> None:
        one = found.meant[place]
        el.box("k-swatch", "span", aria_hidden="true").style(f"background:{el.meaning_colour(place)}")
        if one.right is not None:
            said = self.visit.frame("right" if one.right else "wrong")
            el.text_of("span", "✓ " if one.right else "✗ ", "k-mark ok" if one.right else "k-mark no", title=said)
        el.text_of("bdi", self.say.text(one.text) or "∅")

    def _fork(self, found: FoundPaths) -> None:
        """Adds whether a word decided the most frequent answer, and what follows other words in its place."""
        w, say, forks = self.w, self.say, self.forks
        el.text_of("h2", w("fork"))
        if forks is None or self.search is None:
            el.small(decision(found, None, "", w, say))
            return
        ids = [position.token for position in forks.positions]
        names = [visible_text(self.search.model, token, ids[:i]) for i, token in enumerate(ids)]
        with el.box("k-words"):
            for i, (position, name) in enumerate(zip(forks.positions, names, strict=True)):
                with el.box("w fork" if i == forks.fork else "w", "span"):
                    el.text_of("span", f"▶ {name}" if i == forks.fork else name)
                    el.text_of("small", say.share(position.own, 1))
        el.text_of("p", decision(found, forks, "" if forks.fork is None else names[forks.fork], w, say))
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
            instead = visible_text(self.search.model, other.token, ids[: forks.fork])
            rows.append([partial(el.text_of, "bdi", instead, "k-word"), say.share(other.p, 1), then])
        el.table(self.visit, [w("word"), w("p"), w("then")], rows, numeric=(1,))
        el.small(w("how_fork", n=forks.samples))


def flow_title(found: FoundPaths, w: Words, say: Say) -> str:
    """A title: how many meanings the drawn answers have."""
    n, meanings = len(found.traces), sum(m.drawn > 0 for m in found.meant)
    share = say.share(found.meant[0].drawn / n)
    return w("flow_one" if meanings < 2 else "flow", n=say.count(n), meanings=say.count(meanings), share=share)


def decision(found: FoundPaths, forks: Forks | None, word: str, w: Words, say: Say) -> str:
    """A sentence on whether a word decided the most frequent answer; ``forks``: None if that is not known (yet)."""
    if forks is None:
        return w("fork_none" if len(found.meant) < 2 else "fork_wait")
    if forks.fork is None:
        return w("fork_chance", p=say.number(forks.p, 3))
    moved = say.figure(facts(forks.positions[forks.fork].strength), "right")
    return w("fork_at", word=word, n=forks.fork + 1, moved=moved)


async def build(visit: el.Visit) -> None:
    """The page."""
    if visit.studio.models:
        PathsPage(visit, await asyncio.to_thread(visit.studio.suggestions, visit.lang))
    else:
        first_steps(visit, visit.frame("no_models"))
