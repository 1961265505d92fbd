"""Rangering / Ranking: answers put in order, by many people at once, and a model that learns from it."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from nicegui import ui

from klype.errors import KlypeError
from klype.examine.say import Say, visible
from klype.preferences import formats
from klype.preferences.records import KINDS
from klype.studio.alignment import AlignCard
from klype.studio.annotators import KEY_MOST, NAME_MOST, Annotators, AnnotatorSession, RankingTask
from klype.studio.fields import Choice, TextLine, Upload, UploadedFile, UploadLimits
from klype.studio.frame import Visit, as_data, button, card, table, text_of
from klype.studio.ranking_stores import RankingStore, ranking_store, ranking_stores
from klype.studio.studio import StoreSummary
from klype.words import Words

Act = Callable[[Mapping[str, Any]], Awaitable[None]]


class RankingBoard(ui.element, component="ranking.js"):
    """``labels`` are the words on it. It says ``arrive`` once (who sat here last, and the tab's own mark), and ``act``
    for whatever is done: ``{"do": "order" | "none" | "skip" | "undo" | "write" | "leave", "turn", "groups", "text"}``.
    A half-made order stays in the browser under the turn's name until it is kept."""

    def __init__(self, labels: Mapping[str, str], store: str, on_act: Act, on_arrive: Act) -> None:
        super().__init__()
        self._props.update(
            labels=dict(labels), store=store, turn=0, draft="", question="", cards=[], said="", open=False
        )
        self.on("act", lambda event: on_act(event.args if isinstance(event.args, dict) else {}))
        self.on("arrive", lambda event: on_arrive(event.args if isinstance(event.args, dict) else {}))

    def lay(self, turn: RankingTask | None, said: str = "") -> None:
        """Shows a turn (None: nothing is left), and what is to be said about the last one."""
        self._props["said"] = said
        self._props["open"] = turn is not None
        if turn is not None:
            cards = [[candidate.id, visible(candidate.text)] for candidate in turn.asked.candidates]
            question = visible(turn.asked.question.transcript)
            self._props.update(turn=turn.number, draft=turn.draft, question=question, cards=cards)
        else:
            self._props.update(turn=0, draft="", question="", cards=[])
        self.update()

    def say(self, text: str) -> None:
        """Something was refused: the order stays as it is."""
        self.run_method("refused", text)


LISTED_PEOPLE = 40
"""Annotators, and pairs of them, that are listed."""


def agreement(visit: Visit, summary: Mapping[str, Any]) -> None:
    """Everything of ``klype rank``'s summary, in words and a table. Nothing at all when nobody has ranked."""
    w, say = visit.words, visit.say
    people = summary["annotators"]
    if not people:
        return
    with card():
        text_of("h2", w("agreement"))
        alpha = summary["alpha"]
        with ui.element("div").classes("r-numbers"):
            for key, shown in (
                ("alpha", _figure(visit, alpha["ordinal"])),
                ("alpha_best", _figure(visit, alpha["nominal"])),
                ("opposed", _share(visit, summary["contradictions"]["opposed_pairs"])),
                ("cyclic", _share(visit, summary["contradictions"]["cyclic_triads"])),
            ):
                with ui.element("div"):
                    text_of("b", shown)
                    text_of("span", w(key))
        columns = [w(f"column_{key}") for key in ("who", "rankings", "none", "skipped", "seconds", "self")]
        rows = []
        for one in people[:LISTED_PEOPLE]:
            done = one["rankings"] + one["skipped"]
            pace = "–" if not one["seconds"] or not done else say.seconds(one["seconds"] / done)
            numbers = [say.count(one[key]) for key in ("rankings", "none_good", "skipped")]
            rows.append([visible(one["name"]), *numbers, pace, _figure(visit, one["with_oneself"])])
        with ui.element("div").classes("k-scroll") as scroll:
            scroll.props.update({"tabindex": 0, "role": "region", "aria-label": w("agreement")})
            table(columns, rows, numeric=range(1, 6))
        for text in habits(people, w, say):
            text_of("p", text, "k-warn")
        for pair in summary["between"][:LISTED_PEOPLE]:
            if pair["tau_b"]["value"] is not None:
                a, b = map(visible, pair["annotators"])
                text_of("p", w("between", a=a, b=b, tau=_figure(visit, pair["tau_b"])), "k-small")
        text_of("p", w("how_agreement"), "k-small")
        data = [
            [one["name"], one["by"], one["rankings"], one["none_good"], one["skipped"], one["seconds"],
             *(one["with_oneself"].get(k) for k in ("value", "low", "high", "n"))]
            for one in people
        ]  # fmt: skip
        names = ["annotator", "by", "rankings", "none_good", "skipped", "seconds", "tau_b", "low", "high", "n"]
        as_data(visit, "agreement", names, lambda: data)


def habits(people: Sequence[Mapping[str, Any]], w: Words, say: Say) -> list[str]:
    """Who puts what is shown first on top more often than chance explains, and mostly, in a sentence each."""
    return [
        w("habit", who=visible(one["name"]), **{key: say.count(one["first_shown"][key]) for key in ("times", "of")})
        for one in people
        if one["always_first"]
    ]


def _figure(visit: Visit, figure: Mapping[str, Any]) -> str:
    """Short: why there is none stands in the explanation."""
    if figure.get("value") is None:
        return "–"
    return visit.say.figure(figure)  # type: ignore[arg-type]


def _share(visit: Visit, share: Mapping[str, Any]) -> str:
    return "–" if share["value"] is None else visit.say.share(share["value"])


IMPORT = UploadLimits(16 << 20, (".jsonl", ".json"))
REFRESH_S = 6.0
"""How agreement is at most computed anew, whoever ranks."""


@dataclass
class RankingPage:
    """The page as one visitor has it."""

    visit: Visit
    place: RankingStore
    desk: AnnotatorSession | None = None
    turn_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    tally: StoreSummary | None = None
    counting: bool = False
    sitting: str = ""

    def build(self, found: Sequence[RankingStore]) -> None:
        w = self.visit.words
        with card() as self.setup:
            text_of("h2", w("who"))
            with ui.element("form").classes("r-setup") as form:  # browsers want keys in one
                form.on("submit", js_handler="(e) => e.preventDefault()")
                if len(found) > 1:
                    options = {place.key: place.name for place in found}
                    self.choice = Choice(w("store"), options, self.place.key, self._elsewhere)
                self.name = TextLine(w("name"), NAME_MOST, self.enter)
                self.key = TextLine(w("key"), KEY_MOST, self.enter, kind="password")
                with ui.element("div"):
                    button(w("begin"), self.enter, "strong")
            text_of("p", w("key_note"), "k-small")
            self.refused = text_of("p", "", "k-small")
            self.refused.props["role"] = "alert"
        with card() as self.table:
            with ui.element("div").classes("r-progress"):
                self.mine = text_of("strong", "")
                self.all = text_of("span", "", "k-small")
            labels = w.section("board")
            self.board = RankingBoard(labels, self.place.key, self.act, self.arrive)
            text_of("p", w("keys"), "k-small r-keys")
        self.table.classes("r-hidden")
        self.agree = ui.element("div")
        with card():
            text_of("h2", w("in_out"))
            with ui.element("div").classes("k-row"):
                self.form = Choice(w("format"), {f: w(f"form_{f}") for f in formats.FORMATS}, "ranked", lambda: None)
                button(w("export"), self.export)
                Upload(self.visit, w("import"), IMPORT, self.bring)
            text_of("p", w("in_out_note"), "k-small")
        self.learn = AlignCard(self.visit, self.place)
        self.learn.build()
        ui.timer(REFRESH_S, self.count)
        ui.context.client.on_delete(self._leave)

    # who ranks

    async def arrive(self, sent: Mapping[str, Any]) -> None:
        """A browser that has been here: its name is there already, and in the same tab the work goes on at once."""
        self.sitting = re.sub(r"[^0-9a-zA-Z-]", "", str(sent.get("sitting", "")))[:64]
        self.name.set(str(sent.get("name", "") or sent.get("who", ""))[:NAME_MOST])
        who = str(sent.get("who", ""))
        if who and self.desk is None:
            self.name.set(who)
            await self._enter(quietly=True)

    async def enter(self) -> None:
        await self._enter(quietly=False)

    async def _enter(self, quietly: bool) -> None:
        async with self.turn_lock:
            if self.desk is not None:
                return
            try:
                desk = self.desk = await asyncio.to_thread(self._sit, self.name.value, self.key.value)
                turn = await asyncio.to_thread(desk.next)
            except KlypeError as error:
                await self._leave()
                self._refuse("" if quietly else self.visit.why(error))
                return
            self._refuse("")
            self.setup.classes("r-hidden")
            self.table.classes(remove="r-hidden")
            self.board.run_method("setName", desk.name, desk.name)
            self._lay(turn)
        await self.count()

    def _sit(self, name: str, key: str) -> AnnotatorSession:
        known = Annotators(self.visit.studio.home).enter(name, key)
        return AnnotatorSession.at(self.place.open(), known, self.sitting or known)

    def _refuse(self, why: str) -> None:
        self.refused._text = why
        self.refused.update()

    async def _leave(self) -> None:
        desk, self.desk = self.desk, None
        if desk is not None:
            await asyncio.to_thread(desk.close)

    def _elsewhere(self) -> None:
        ui.navigate.to(f"{self.visit.page.route}?store={self.choice.value}")

    # ranking

    async def act(self, sent: Mapping[str, Any]) -> None:
        """Whatever is done on the board; one thing after the other, and nothing of it in the server's own thread."""
        async with self.turn_lock:
            desk = self.desk
            if desk is None:
                return
            try:
                await self._done(desk, str(sent.get("do", "")), sent)
            except KlypeError as error:
                self.board.say(self.visit.why(error))
        await self.count()

    async def _done(self, desk: AnnotatorSession, what: str, sent: Mapping[str, Any]) -> None:
        w = self.visit.words
        kind = next((kind for kind in KINDS if kind == what), None)
        if kind is not None:
            kept = await asyncio.to_thread(desk.say, sent.get("turn"), kind, sent.get("groups"))
            said = w(f"said_{kind}") if kept else w("said_already")
            self._lay(await asyncio.to_thread(desk.next) if desk.turn is None else desk.turn, said)
        elif what == "undo":
            turn = await asyncio.to_thread(desk.undo)
            self._lay(turn or desk.turn, w("said_undone") if turn else w("said_nothing"))
        elif what == "write":
            turn = await asyncio.to_thread(desk.write, sent.get("turn"), str(sent.get("text", "")))
            if turn is not None:
                self.board.run_method("written")
                self._lay(turn, w("said_written"))
        elif what == "leave":
            await self._leave()
            self.board.run_method("setName", desk.name, "")
            self.table.classes("r-hidden")
            self.setup.classes(remove="r-hidden")

    def _lay(self, turn: RankingTask | None, said: str = "") -> None:
        again = self.visit.words("again") if turn is not None and turn.again else ""
        nothing = self.visit.words("nothing_left") if turn is None else ""
        self.board.lay(turn, " ".join(part for part in (said, nothing or again) if part))
        self._tell()

    def _tell(self) -> None:
        w, say = self.visit.words, self.visit.say
        if self.desk is not None:
            self.mine._text = w("mine", name=self.desk.name, n=say.count(self.desk.done))
            self.mine.update()
        if self.tally is not None:
            people = {e.annotator for e in self.tally.entries if e.by == "person"}
            ranked = {e.asked.id for e in self.tally.entries if e.by == "person" and e.kind != "skip"}
            self.all._text = w("all", people=say.count(len(people)), n=say.count(len(ranked)),
                               of=say.count(self.tally.questions))  # fmt: skip
            self.all.update()

    # what has come of it

    async def count(self) -> None:
        """Looks whether anybody has ranked since; figures are computed beside the page, one count at a time."""
        if self.counting:
            return
        self.counting = True
        try:
            tally = await asyncio.to_thread(self.visit.studio.tallies.of, self.place)
            if tally is not self.tally and not self.visit_gone():
                self.tally = tally
                self._tell()
                self.learn.know(tally.summary["annotators"])
                self.agree.clear()
                with self.agree:
                    agreement(self.visit, tally.summary)
        except KlypeError as error:
            self._refuse(self.visit.why(error))
        finally:
            self.counting = False

    def visit_gone(self) -> bool:
        return self.agree.is_deleted

    async def export(self) -> None:
        try:
            data = await asyncio.to_thread(self._exported, self.form.value)
        except KlypeError as error:
            self.visit.tell(error)
            return
        ui.download.content(data, f"rankings-{self.form.value}.jsonl", "application/x-ndjson")

    def _exported(self, form: Any) -> bytes:
        with self.place.open() as store, tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "rankings.jsonl"
            formats.export(file, store.entries(), form)
            return file.read_bytes()

    async def bring(self, given: UploadedFile) -> None:
        try:
            new, rows = await asyncio.to_thread(self._bring, given)
        except KlypeError as error:
            self.visit.tell(error)
            return
        say = self.visit.say
        ui.notify(self.visit.words("brought", new=say.count(new), rows=say.count(rows)), position="top")
        await self.count()

    def _bring(self, given: UploadedFile) -> tuple[int, int]:
        """An error names the file as its owner calls it, not where it lies here."""
        try:
            entries = formats.read(given.file, annotator=Path(given.name).stem[:NAME_MOST] or "imported")
        except KlypeError as error:
            raise KlypeError(error.message.replace(str(given.file), given.name), error.hint) from None
        finally:
            given.file.unlink(missing_ok=True)
        with self.place.open() as store:
            return store.put(entries), len(entries)


async def build(visit: Visit) -> None:
    """The page."""
    ui.add_head_html(f"<style>{styles()}</style>")
    try:
        found = await asyncio.to_thread(ranking_stores, visit.studio)
        place = await asyncio.to_thread(ranking_store, visit.studio, visit.request.query_params.get("store", ""))
    except KlypeError as error:
        text_of("p", visit.why(error), "k-card k-empty")
        return
    if place is None:
        text_of("p", visit.words("no_store"), "k-card k-empty")
        return
    RankingPage(visit, place).build(found)


def styles() -> str:
    """Of the pages with long work on them."""
    files = resources.files("klype.studio")
    return "".join((files / name).read_text(encoding="utf-8") for name in ("ranking.css", "work.css"))
