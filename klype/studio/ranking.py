"""Rangering / Ranking: the page on which people rank answers, many at once, and align a model with their rankings."""

import asyncio
import re
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nicegui import ui

from klype.errors import KlypeError
from klype.examine.say import Say, visible
from klype.preferences import formats
from klype.preferences.records import KINDS
from klype.runs.annotator_session import AnnotatorSession, RankingTask
from klype.studio import elements as el
from klype.studio.alignment import AlignCard
from klype.studio.fields import PageSelect, Select, TextLine, Upload, UploadedFile, first_steps
from klype.studio.ranking_stores import MAX_KEY, MAX_NAME, RankingStore, StoreSummary, label_of, ranking_store, sign_in
from klype.words import Words

MAX_IMPORT, IMPORT_KINDS = 16 << 20, (".jsonl", ".json")
REFRESH_S = 6.0  # how often a page asks for the summary; RECOUNT_S (ranking_stores.py): how often that is computed
# Names in the page's catalogue and in the summary: of figures about all annotators; and what is counted for each.
ALPHAS, COUNTED = {"alpha": "ordinal", "alpha_best": "nominal"}, ("rankings", "none_good", "skipped")
CONTRADICTIONS = {"opposed": "opposed_pairs", "cyclic": "cyclic_triads"}
LISTED_PEOPLE = 40  # annotators, and pairs of them, in the tables
Act = Callable[[Mapping[str, Any]], Awaitable[None]]


class RankingBoard(ui.element, component="ranking.js"):
    """The answers as cards, ordered by keys or dragging in the browser. ``labels``: the words on it.

    The browser sends ``arrive`` once (who ranked here last, and the tab's id), and ``act`` for every action:
    ``{"do": "order" | "none" | "skip" | "undo" | "write" | "leave", "turn", "groups", "text"}``.
    It keeps a half-made order under ``task.draft`` until it is stored."""

    def __init__(self, labels: Mapping[str, str], store: str, on_act: Act, on_arrive: Act) -> None:
        super().__init__()
        self._props.update(labels=dict(labels), store=store)
        self.show(None)
        self.on("act", lambda event: on_act(event.args if isinstance(event.args, dict) else {}))
        self.on("arrive", lambda event: on_arrive(event.args if isinstance(event.args, dict) else {}))

    def show(self, task: RankingTask | None, said: str = "") -> None:
        """Shows a task (None: none is left), and a message about the last action."""
        turn, draft, question, cards = 0, "", "", list[list[object]]()
        if task is not None:
            turn, draft, question = task.number, task.draft, visible(task.asked.question.transcript)
            cards = [[candidate.id, visible(candidate.text)] for candidate in task.asked.candidates]
        self._props.update(said=said, open=task is not None, turn=turn, draft=draft, question=question, cards=cards)
        self.update()


@dataclass
class RankingPage(el.PagePart):
    """One visitor's page: sign-in, board, agreement, import and export, and alignment.

    ``session``: None until the visitor has signed in. ``found``: the summary that is shown; ``sitting``: the browser
    tab's id.
    """

    store: RankingStore
    stores: Sequence[RankingStore]
    session: AnnotatorSession | None = None
    one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)
    found: StoreSummary | None = None
    sitting: str = ""

    def build(self) -> None:
        w = self.w
        with el.card(w("who")) as self.setup:
            with el.box("r-setup", "form") as form:  # browsers offer to fill in keys in forms only
                form.on("submit", js_handler="(e) => e.preventDefault()")
                if len(self.stores) > 1:
                    names, to = {store.key: store.name for store in self.stores}, f"{self.visit.page.route}?store="
                    PageSelect(w("store"), names, self.store.key, to)
                self.name = TextLine(w("name"), MAX_NAME, self.enter)
                self.key = TextLine(w("key"), MAX_KEY, self.enter, kind="password")
                with el.box():
                    el.button(w("begin"), self.enter, "strong")
            el.small(w("key_note"))
            self.refused = el.text_of("p", "", "k-small", role="alert")
        with el.card(classes="r-hidden") as self.table:
            with el.box("r-progress"):
                self.mine = el.text_of("strong", "")
                self.all = el.text_of("span", "", "k-small")
            self.board = RankingBoard(w.section("board"), self.store.key, self.act, self.arrive)
            el.text_of("p", w("keys"), "k-small r-keys")
        self.agree = el.box()
        with el.card(w("in_out")):
            with el.box("k-row"):
                self.format_select = Select(w("format"), {f: w(f"form_{f}") for f in formats.FORMATS}, "ranked")
                el.button(w("export"), self.export)
                Upload(self.visit, w("import"), MAX_IMPORT, IMPORT_KINDS, self.bring)
            el.small(w("in_out_note"))
        self.learn = AlignCard(self.visit, self.store)
        ui.timer(REFRESH_S, self.count)
        ui.context.client.on_delete(self.leave)

    # who ranks

    async def arrive(self, sent: Mapping[str, Any]) -> None:
        """Fills in the name that was used last in this browser, and signs in again after a reload of the same tab."""
        # it comes from a browser, and goes into the store's claims: letters, digits and hyphens only
        self.sitting = re.sub(r"[^0-9a-zA-Z-]", "", str(sent.get("sitting", "")))[:64]
        who = str(sent.get("who", ""))[:MAX_NAME]
        if name := who or str(sent.get("name", ""))[:MAX_NAME]:  # otherwise what is being typed stays
            self.name.set(name)
        if who and self.session is None:
            await self.enter(quietly=True)

    async def enter(self, quietly: bool = False) -> None:
        def sit() -> tuple[AnnotatorSession, RankingTask | None]:
            name = sign_in(self.studio.home, self.name.value, self.key.value)
            session = self.session = AnnotatorSession(self.store.open(), name, self.sitting or name, self.visit.lang)
            return session, session.next()

        async with self.one_at_a_time:
            if self.session is not None:
                return
            try:
                session, task = await asyncio.to_thread(sit)
            except KlypeError as error:
                await self.leave()
                el.retext(self.refused, "" if quietly else self.visit.why(error))
                return
            el.retext(self.refused, "")
            self.setup.classes("r-hidden")
            self.table.classes(remove="r-hidden")
            # the browser keeps the name for the form, and who is signed in for a reload of this tab
            self.board.run_method("setName", session.name, session.name)
            self._show(task)
        await self.count()

    async def leave(self) -> None:
        session, self.session = self.session, None
        if session is not None:
            await asyncio.to_thread(session.close)

    # ranking

    async def act(self, sent: Mapping[str, Any]) -> None:
        """Handles an action on the board: one at a time, in threads."""
        async with self.one_at_a_time:
            if (session := self.session) is None:
                return
            w, what, turn = self.w, str(sent.get("do", "")), sent.get("turn")
            # looked up, not cast: a browser may send anything
            kind = next((kind for kind in KINDS if kind == what), None)
            try:
                if kind is not None:
                    kept = await asyncio.to_thread(session.record, turn, kind, sent.get("groups"))
                    task = session.task or await asyncio.to_thread(session.next)
                    self._show(task, w(f"said_{kind}") if kept else w("said_already"))
                elif what == "undo":
                    task = await asyncio.to_thread(session.undo)
                    self._show(task or session.task, w("said_undone") if task else w("said_nothing"))
                elif what == "write":
                    task = await asyncio.to_thread(session.write, turn, str(sent.get("text", "")))
                    if task is not None:
                        self.board.run_method("written")
                        self._show(task, w("said_written"))
                elif what == "leave":
                    await self.leave()
                    # the name stays in the form; a reload no longer signs in by itself
                    self.board.run_method("setName", session.name, "")
                    self.table.classes("r-hidden")
                    self.setup.classes(remove="r-hidden")
            except KlypeError as error:
                self.board.run_method("refused", self.visit.why(error))
        await self.count()

    def _show(self, task: RankingTask | None, said: str = "") -> None:
        more = self.w("nothing_left") if task is None else self.w("again") if task.again else ""
        self.board.show(task, " ".join(part for part in (said, more) if part))
        self._show_progress()

    def _show_progress(self) -> None:
        if self.session is not None:
            el.retext(self.mine, self.w("mine", name=self.session.name, n=self.say.count(self.session.done)))
        if self.found is not None:
            said = [entry for entry in self.found.entries if entry.by == "person"]
            people, ranked = {e.annotator for e in said}, {e.asked.id for e in said if e.kind != "skip"}
            counts = {"people": len(people), "n": len(ranked), "of": self.found.questions}
            el.retext(self.all, self.w("all", **{name: self.say.count(count) for name, count in counts.items()}))

    # the store

    @el.unless_busy
    async def count(self) -> None:
        """Shows how many questions are ranked and how well people agree, if anything has changed."""
        try:
            found = await asyncio.to_thread(self.studio.summaries.of, self.store)
        except KlypeError as error:
            el.retext(self.refused, self.visit.why(error))
            return
        # the same object: nothing is new; deleted: the visitor has left meanwhile
        if found is not self.found and not self.agree.is_deleted:
            self.found = found
            self._show_progress()
            self.learn.know(found.agreement["annotators"])
            self.agree.clear()
            with self.agree:
                agreement(self.visit, found.agreement)

    async def export(self) -> None:
        form: Any = self.format_select.value

        def exported() -> bytes:
            with self.store.open() as store, tempfile.TemporaryDirectory() as folder:
                formats.export(file := Path(folder) / "rankings.jsonl", store.entries(), form)
                return file.read_bytes()

        if (data := await self.visit.attempt(exported)) is not None:
            ui.download.content(data, f"rankings-{form}.jsonl", "application/x-ndjson")

    async def bring(self, given: UploadedFile) -> None:
        def brought() -> tuple[int, int]:
            """Imports the rankings; errors name the visitor's file, not ours."""
            try:
                entries = formats.read(given.file, annotator=Path(given.name).stem[:MAX_NAME] or "imported")
            except KlypeError as error:
                raise KlypeError(error.message.replace(str(given.file), given.name), error.hint) from None
            finally:
                given.file.unlink(missing_ok=True)
            with self.store.open() as store:
                return store.put(entries), len(entries)

        if (counts := await self.visit.attempt(brought)) is not None:
            new, rows = map(self.say.count, counts)
            ui.notify(self.w("brought", new=new, rows=rows), position="top")
            await self.count()


def agreement(visit: el.Visit, summary: Mapping[str, Any]) -> None:
    """A card with ``klype rank``'s summary: how much everybody has ranked, how well they agree with themselves and each
    other, and habits. Nothing if nobody has ranked."""
    w, say = visit.words, visit.say
    people = summary["annotators"]
    if not people:
        return

    def figure(given: Mapping[str, Any], written: Callable[..., str] = say.figure) -> str:
        """A figure, or a dash: the text below explains why it is missing."""
        return "–" if given.get("value") is None else written(given)

    share, found = lambda given: say.share(given["value"]), summary["contradictions"]
    numbers = {w(key): figure(summary["alpha"][level]) for key, level in ALPHAS.items()}
    numbers |= {w(key): figure(found[name], share) for key, name in CONTRADICTIONS.items()}
    rows, data = [], []
    for one in people:
        done, counts = one["rankings"] + one["skipped"], [one[key] for key in COUNTED]
        pace = say.seconds(one["seconds"] / done) if one["seconds"] and done else "–"
        rows.append([label_of(one["name"], w), *map(say.count, counts), pace, figure(one["with_oneself"])])
        data.append([one["name"], one["by"], *counts, one["seconds"], *el.ends(one["with_oneself"])])
    with el.card(w("agreement")):
        el.big_numbers(numbers)
        titles = [w(f"column_{key}") for key in ("who", "rankings", "none", "skipped", "seconds", "self")]
        el.table(visit, titles, rows[:LISTED_PEOPLE], range(1, 6), w("agreement"))
        for text in habits(people, w, say):
            el.text_of("p", text, "k-warn")
        for pair in summary["between"][:LISTED_PEOPLE]:
            if pair["tau_b"]["value"] is not None:
                a, b = (label_of(name, w) for name in pair["annotators"])
                el.small(w("between", a=a, b=b, tau=figure(pair["tau_b"])))
        el.small(w("how_agreement"))
        columns = ["annotator", "by", *COUNTED, "seconds", "tau_b", "low", "high", "n"]
        el.as_data(visit, "agreement", columns, lambda: data)


def habits(people: Sequence[Mapping[str, Any]], w: Words, say: Say) -> list[str]:
    """A sentence for everyone who mostly puts the answer shown first on top, more often than by chance."""
    return [
        w("habit", who=label_of(one["name"], w), **{key: say.count(one["first_shown"][key]) for key in ("times", "of")})
        for one in people
        if one["always_first"]
    ]


async def build(visit: el.Visit) -> None:
    """The page of the store in the address; without any store, how to make one, or why none can be opened."""
    try:
        found = await asyncio.to_thread(visit.studio.ranking_stores)
    except KlypeError as error:
        el.text_of("p", visit.why(error), "k-card k-empty")
        return
    if not found:
        first_steps(visit, visit.words("no_store"))
        return
    RankingPage(visit, ranking_store(found, visit.request.query_params.get("store", "")), found)
