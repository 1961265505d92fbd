"""Ranking on a page: orders, claims and keys without a browser; two browsers at once and a killed server with one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nicegui import ElementFilter
from nicegui.events import GenericEventArguments, handle_event

from klype.errors import KlypeError, UsageError
from klype.preferences import formats
from klype.preferences.records import Candidate, RankingItem
from klype.preferences.store import Store
from klype.runs.annotator_session import AGAIN_EVERY, AnnotatorSession, order_of
from klype.runs.ranking import STORE, open_store
from klype.studio.alignment import newest_alignment, start_alignment
from klype.studio.background_jobs import without_options
from klype.studio.fields import Upload
from klype.studio.ranking import RankingBoard
from klype.studio.ranking_stores import RECOUNT_S, STORES, RankingStore, SummaryCache, ranking_store, sign_in
from klype.studio.runs_detail import all_runs
from klype.studio.studio import Studio
from klype.values import Question
from klype.words import words
from scripts.chromium import CHROMIUM, QUIET
from tests.studio_toys import visiting
from tests.studio_work_toys import HOSTILE, run_with_questions

pytestmark = pytest.mark.usefixtures("elsewhere")

ROOT = Path(__file__).resolve().parent.parent
slow = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
    pytest.mark.xdist_group("studio"),
]

# orders

ASKED = RankingItem(Question("q", "?"), tuple(Candidate(f"answer {i}", id=10 + i) for i in range(5)), id=1)


@given(st.permutations(range(5)), st.lists(st.booleans(), min_size=5, max_size=5), st.integers(1, 5))
def test_an_order_from_a_browser_is_the_order_that_is_kept(ids: list[int], tied: list[bool], placed: int) -> None:
    groups: list[list[int]] = []
    for i, tie in zip(ids[:placed], tied, strict=False):
        if tie and groups:
            groups[-1].append(10 + i)
        else:
            groups.append([10 + i])
    order = order_of(ASKED, groups)
    assert sorted(i for group in order for i in group) == list(range(5))
    assert [[10 + i for i in group] for group in order[: len(groups)]] == groups
    assert len(order) == len(groups) + (placed < 5)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=4)
)


@given(junk)
def test_a_browser_may_send_anything_as_an_order(sent: Any) -> None:
    try:
        order = order_of(ASKED, sent)
    except UsageError:
        return
    assert sorted(i for group in order for i in group) == list(range(5))


# the desk


@pytest.fixture
def place(tmp_path: Path) -> RankingStore:
    return RankingStore("toy", run_with_questions(tmp_path))


def first(desk: AnnotatorSession) -> list[list[int]]:
    assert desk.task is not None
    return [[desk.task.asked.candidates[0].id]]


def test_every_question_comes_once_with_repeats_and_nothing_is_kept_twice(place: RankingStore) -> None:
    desk = AnnotatorSession(place.open(), "Kari", "tab")
    while (turn := desk.next()) is not None:
        assert desk.record(turn.number, "order", first(desk))
        assert not desk.record(turn.number, "order", [[turn.asked.candidates[0].id]])
    entries = desk.store.entries()
    fresh = [entry.asked.id for entry in entries if not entry.again]
    assert sorted(fresh) == sorted({asked.id for asked in desk.store.questions()})
    assert all(entry.seconds is not None and entry.order[0] == (0,) for entry in entries)
    desk.close()


def test_one_is_asked_again_after_some_time_with_the_same_answers(tmp_path: Path) -> None:
    place = RankingStore("toy", run_with_questions(tmp_path, questions=AGAIN_EVERY + 2))
    desk = AnnotatorSession(place.open(), "Kari", "tab")
    again = []
    while (turn := desk.next()) is not None:
        again += [turn.asked.id] * turn.again
        desk.record(turn.number, "none" if turn.asked.id % 2 else "order", first(desk))
    assert len(again) == 1
    told = [entry for entry in desk.store.entries() if entry.asked.id == again[0]]
    assert [entry.again for entry in told] == [False, True]
    assert {c.id for c in told[0].asked.candidates} == {c.id for c in told[1].asked.candidates}
    desk.close()


def test_who_sits_down_after_another_finds_no_half_made_order_of_theirs(place: RankingStore) -> None:
    drafts: dict[str, set[str]] = {}
    for name in ("Kari", "Ola"):
        desk = AnnotatorSession(place.open(), name, name)
        drafts[name] = set()
        while (turn := desk.next()) is not None:
            drafts[name].add(turn.draft)
            desk.record(turn.number, "order", first(desk))
            again = desk.undo()
            assert again is not None
            assert again.draft == turn.draft  # what is taken back lies there as it was
            desk.record(again.number, "order", first(desk))
        desk.close()
    assert len(drafts["Kari"]) == len(drafts["Ola"]) > 3
    assert drafts["Kari"].isdisjoint(drafts["Ola"])


def test_what_is_undone_lies_there_again_and_can_be_kept_anew(place: RankingStore) -> None:
    desk = AnnotatorSession(place.open(), "Kari", "tab")
    assert desk.undo() is None
    turn = desk.next()
    assert turn is not None
    desk.record(turn.number, "skip", None)
    desk.next()
    back = desk.undo()
    assert back is not None
    assert (back.asked.id, back.number) != (turn.asked.id, turn.number)
    assert back.asked == turn.asked or {c.id for c in back.asked.candidates} == {c.id for c in turn.asked.candidates}
    assert desk.done == 0
    assert desk.record(back.number, "order", first(desk))
    assert [entry.kind for entry in desk.store.entries()] == ["order"]
    desk.close()


def test_two_windows_of_one_annotator_keep_one_ranking(tmp_path: Path) -> None:
    place = RankingStore("toy", run_with_questions(tmp_path, questions=1))
    one, two = (AnnotatorSession(place.open(), "Kari", sitting) for sitting in ("a", "b"))
    turns = [one.next(), two.next()]
    assert all(turns)
    kept = [
        desk.record(turn.number, "order", first(desk)) for desk, turn in zip((one, two), turns, strict=True) if turn
    ]
    assert kept == [True, False]
    assert len(one.store.entries()) == 1
    one.close()
    two.close()


def test_a_better_answer_is_written_and_others_do_not_see_it(place: RankingStore) -> None:
    desk = AnnotatorSession(place.open(), "Kari", "tab")
    turn = desk.next()
    assert turn is not None
    for wrong in ("", " ", "x" * 30_000, turn.asked.candidates[0].text):
        with pytest.raises(UsageError):
            desk.write(turn.number, wrong)
    more = desk.write(turn.number, "Nobody knows.")
    assert more is not None
    assert more.asked.candidates[:-1] == turn.asked.candidates
    assert desk.record(more.number, "order", [[more.asked.candidates[-1].id]])
    other = AnnotatorSession(place.open(), "Ola", "tab")
    while (seen := other.next()) is not None:
        assert all(c.author in ("", "Ola") for c in seen.asked.candidates)
        other.record(seen.number, "skip", None)
    desk.close()
    other.close()


def ten_people(place: RankingStore) -> list[tuple[str, int]]:
    """Ten people rank all that is to be ranked, at once; who ranked what for the first time."""
    failed: list[BaseException] = []

    def sit(name: str) -> None:
        try:
            desk = AnnotatorSession(place.open(), name, name)
            while (turn := desk.next()) is not None:
                assert desk.record(turn.number, "order", first(desk))
            desk.close()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=sit, args=(f"person {i}",)) for i in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failed
    with place.open() as store:
        return [(entry.annotator, entry.asked.id) for entry in store.entries() if not entry.again]


@pytest.mark.slow
def test_ten_people_at_once_lose_nothing(tmp_path: Path) -> None:
    made = ten_people(RankingStore("toy", run_with_questions(tmp_path, questions=6)))
    assert len(made) == len(set(made)) == 10 * 6


# names, places


def test_a_name_is_locked_by_its_first_key(tmp_path: Path) -> None:
    people = partial(sign_in, tmp_path)
    assert people("  Kari   Nordmann ", "") == "Kari Nordmann"
    assert people("Kari Nordmann", "hemmelig") == "Kari Nordmann"
    for wrong in ("", "Hemmelig", "hemmelig "):
        with pytest.raises(UsageError, match="locked"):
            people("Kari Nordmann", wrong)
    assert people("Kari Nordmann", "hemmelig")
    assert people("Ola", "")
    kept = (tmp_path / "annotators.json").read_text(encoding="utf-8")
    assert "hemmelig" not in kept
    for name in ("", " ", "x" * 61, "a\u202eb", "simulated: me", "model: x", "a\x00b"):
        with pytest.raises(UsageError):
            people(name, "")


def test_places_are_runs_and_named_stores_and_nothing_that_a_browser_says(tmp_path: Path) -> None:
    run = run_with_questions(tmp_path)
    studio = Studio([], tmp_path, ["false"])
    (tmp_path / STORES).write_text(f'[team]\nurl = "sqlite:///{tmp_path}/team.db"\nrun = "{run}"\n')
    found = studio.ranking_stores()
    assert [place.name for place in found] == ["toy", "team"]
    assert ranking_store(found, found[1].key) == found[1]
    for said in ("", "../../etc", str(run), "x" * 10_000):
        assert ranking_store(found, said) == found[0]
    with found[1].open() as store:
        store.add([ASKED])
    assert (tmp_path / "team.db").is_file()
    (tmp_path / STORES).write_text("[team]\n")
    with pytest.raises(KlypeError, match="cannot be read"):
        studio.ranking_stores()


def test_a_store_is_counted_once_for_all_and_anew_when_anything_was_said(place: RankingStore) -> None:
    now = [0.0]
    tallies, desk = SummaryCache(lambda: now[0]), AnnotatorSession(place.open(), "Kari", "tab")
    turn, before = desk.next(), tallies.of(place)
    assert turn is not None
    assert before is tallies.of(place)
    assert (len(before.entries), before.questions) == (0, len(desk.store.questions()))
    desk.record(turn.number, "order", first(desk))
    assert tallies.of(place) is before  # a moment old is good enough while others rank
    now[0] += RECOUNT_S
    assert [entry.annotator for entry in tallies.of(place).entries] == ["Kari"]
    desk.undo()
    now[0] += RECOUNT_S
    assert tallies.of(place).entries == []
    desk.close()


def test_a_snapshot_holds_what_was_said_by_those_who_were_asked(place: RankingStore, tmp_path: Path) -> None:
    for name in ("Kari", "Ola"):
        desk = AnnotatorSession(place.open(), name, name)
        turn = desk.next()
        assert turn is not None
        desk.record(turn.number, "order", first(desk))
        desk.close()
    entries = place.snapshot(tmp_path / "copy", ("Kari",))
    with Store.open(tmp_path / "copy" / STORE) as copied:
        assert [entry.annotator for entry in copied.entries()] == ["Kari"]
    assert len(entries) == 1
    with pytest.raises(UsageError, match="1 rankings"):
        start_alignment(Studio([], tmp_path, ["false"]), place, ("Kari",))


def test_one_s_own_language_comes_first_and_then_the_rest(tmp_path: Path) -> None:
    place = RankingStore("few", None, str(tmp_path / "few.db"))
    with place.open() as store:
        store.add(
            [
                RankingItem(Question(f"q{i}", f"{lang} {i}", extra={"lang": lang}), (Candidate("a"), Candidate("b")))
                for i, lang in enumerate(["en", "nb", "en", "nb", "en", "nb"])
            ]
        )
    for lang in ("nb", "en", ""):
        desk, languages = AnnotatorSession(place.open(), f"Kari {lang}", "tab", lang), []
        while (turn := desk.next()) is not None:
            languages.append(turn.asked.question.extra["lang"])
            desk.record(turn.number, "order", first(desk))
        assert len(languages) == 6
        assert languages[:3] == [lang] * 3 or not lang
        desk.close()


def test_what_is_begun_here_leaves_no_half_made_run_in_a_menu(place: RankingStore, tmp_path: Path) -> None:
    studio = Studio([], tmp_path, ["false"])
    menus = [store.name for store in studio.ranking_stores()]
    with pytest.raises(UsageError, match="0 rankings"):
        start_alignment(studio, place, ("Kari",))
    desk = AnnotatorSession(place.open(), "Kari", "tab")
    for _ in range(2):
        desk.next()
        desk.record(desk.turns, "order", first(desk))
    desk.close()
    seen = start_alignment(studio, place, ("Kari",))
    asyncio.run(until(lambda: seen.read() and seen.state == "failed", 20))
    judge = Path(seen.about["judge"])
    (judge / "run.json").write_text("{}")  # as its training would have left it
    assert [store.name for store in studio.ranking_stores()] == menus
    assert {run.folder.resolve() for run in all_runs(studio)} == {place.run.resolve(), seen.run.resolve()}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("It is weak. More rankings help; --force aligns anyway.", "It is weak. More rankings help."),
        ("This recipe needs text. Give --text FILES or --data FOLDER.", "This recipe needs text."),
        ("No. Try.", "No. Try."),
        ("It agrees on 61.5% of pairs - few.", "It agrees on 61.5% of pairs - few."),
    ],
)
def test_a_page_names_no_option_of_the_command_line(said: str, shown: str) -> None:
    assert without_options(said) == shown


@pytest.mark.slow
def test_learning_is_begun_once_and_says_why_it_failed(place: RankingStore, tmp_path: Path) -> None:
    told = json.dumps({"error": {"message": "No.", "hint": "Try."}})
    studio = Studio(
        [], tmp_path, [sys.executable, "-c", f"import time; time.sleep(1); print({told!r}); raise SystemExit(1)"]
    )
    desk = AnnotatorSession(place.open(), "Kari", "tab")
    for _ in range(2):
        turn = desk.next()
        assert turn is not None
        desk.record(turn.number, "order", first(desk))
    desk.close()
    seen = start_alignment(studio, place, ("Kari",))
    with pytest.raises(UsageError, match="already"):
        start_alignment(studio, place, ("Kari",))
    asyncio.run(until(lambda: seen.read() and seen.state == "failed", 20))
    again = newest_alignment(studio, place)
    assert again is not None
    again.read()
    assert again.why == "No. Try."
    assert seen.about["rankings"] == 2
    for i, damaged in enumerate(("", "{}", '{"kind": "align", "run": 1}')):
        (tmp_path / "work" / f"damaged-{i}").mkdir()
        (tmp_path / "work" / f"damaged-{i}" / "work.json").write_text(damaged)
    assert newest_alignment(studio, RankingStore("of another store", None)) is None


# the page without a browser


async def until(met: Any, seconds: float = 15) -> None:
    for _ in range(int(seconds / 0.02)):
        if met():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not happen")


def find(user: Any, kind: type) -> list[Any]:
    with user:
        return list(ElementFilter(kind=kind))


def send(user: Any, element: Any, event: str, args: Any = None) -> None:
    """What a browser would send."""
    with user:
        for listener in list(element._event_listeners.values()):
            if listener.type == event:
                handle_event(listener.handler, GenericEventArguments(sender=element, client=user.client, args=args))


def texts(user: Any) -> str:
    return "\n".join(str(element._text) for element in user.client.elements.values() if element._text)


@pytest.mark.slow
@pytest.mark.parametrize("lang", ["en", "nb"])
def test_a_visitor_ranks_undoes_and_is_told(tmp_path: Path, lang: str) -> None:
    run_with_questions(tmp_path, hostile=True)
    w = words(lang, "studio_ranking")
    with visiting(Studio([], tmp_path, ["false"])) as (run, user):
        user.http_client.headers["accept-language"] = lang
        run(user.open("/ranking"))
        (board,) = find(user, RankingBoard)

        async def go() -> None:
            send(user, board, "arrive", {"sitting": "tab<>", "who": "Kari", "name": "Kari"})
            await until(lambda: board._props["open"])
            shown = json.dumps(board._props["cards"])
            assert "\u202e" not in shown
            assert HOSTILE[0] in [text for _, text in board._props["cards"]]
            turn = board._props["turn"]
            for junk in ({}, {"do": "order"}, {"do": "order", "turn": turn, "groups": [[0]]}, {"do": 3}, None):
                send(user, board, "act", junk)
            ids = [number for number, _ in board._props["cards"]]
            send(user, board, "act", {"do": "order", "turn": turn, "groups": [ids[:2]]})
            send(user, board, "act", {"do": "order", "turn": turn, "groups": [ids[:1]]})
            await until(lambda: board._props["turn"] not in (0, turn))
            await until(lambda: w("mine", name="Kari", n="1") in texts(user))
            send(user, board, "act", {"do": "write", "turn": board._props["turn"], "text": "<b>better</b>"})
            await until(lambda: any(text == "<b>better</b>" for _, text in board._props["cards"]))
            send(user, board, "act", {"do": "undo"})
            await until(lambda: w("said_undone") in board._props["said"])

        run(go())
    with open_store(tmp_path / "runs" / "toy" / "rank") as store:
        assert store.entries() == []
    with closing(sqlite3.connect(tmp_path / "runs" / "toy" / "rank" / "rankings.db")) as kept:  # undone, and not gone
        assert kept.execute("SELECT count(*) FROM rankings WHERE kind = 'undo'").fetchone() == (1,)


@pytest.mark.slow
def test_rankings_go_out_and_come_in_by_slices_of_limited_size(tmp_path: Path) -> None:
    import base64

    run_with_questions(tmp_path)
    entries = [replace(e, annotator="Ola") for e in formats.read(_exported(tmp_path))]
    data = "".join(json.dumps(formats.ranked_row(e)) + "\n" for e in entries).encode()
    with visiting(Studio([], tmp_path, ["false"])) as (run, user):
        run(user.open("/ranking"))
        upload = find(user, Upload)[0]

        async def go() -> None:
            cut = len(data) // 2
            for at, piece in ((0, data[:cut]), (cut, data[cut:])):
                await upload.take({"number": 1, "at": at, "size": len(data), "name": "../../x.jsonl",
                                   "data": base64.b64encode(piece).decode()})  # fmt: skip
            for wrong in (
                {"number": 2, "at": 0, "size": 1 << 40, "name": "x.jsonl", "data": "eA=="},
                {"number": 2, "at": 0, "size": 9, "name": "x.exe", "data": "eA=="},
                {"number": 2, "at": 0, "size": 2, "name": "x.jsonl", "data": base64.b64encode(b"xyz").decode()},
                {"number": 2, "at": 0, "size": 9, "name": "x.jsonl", "data": "æ"},
                {"number": "2", "at": None},
                {},
            ):
                await upload.take(wrong)
                assert upload._now is None

        run(go())
    with open_store(tmp_path / "runs" / "toy" / "rank") as store:
        assert sorted(e.annotator for e in store.entries()) == ["Kari", "Ola"]
    assert not list((tmp_path / "uploads").iterdir())
    assert not (tmp_path / "x.jsonl").exists()


def _exported(home: Path) -> Path:
    desk = AnnotatorSession(open_store(home / "runs" / "toy" / "rank"), "Kari", "tab")
    turn = desk.next()
    assert turn is not None
    desk.record(turn.number, "order", first(desk))
    formats.export(home / "out.jsonl", desk.store.entries(), "ranked")
    desk.close()
    return home / "out.jsonl"


# with browsers


@contextmanager
def serving(home: Path, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.studio_work_toys", str(home), str(port)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "KLYPE_HOME": str(home)},
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait(20)


@contextmanager
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


def visitor(browser: Any, base: str, name: str, **options: Any) -> Any:
    """A page of a browser of its own, with all that it complains of and asks elsewhere for."""
    context = browser.new_context(**{"locale": "en-GB", **options})
    page = context.new_page()
    page.complaints = []
    page.on("console", lambda m: page.complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith((base, "data:", "blob:")) else page.complaints.append(r.url))
    page.goto(f"{base}/ranking")
    page.locator(".r-setup input[type=text]").fill(name)
    page.keyboard.press("Enter")
    page.wait_for_selector(".r-card")
    return page


def keep(page: Any, keys: str = "21") -> bool:
    """Ranks what lies there with the keyboard; False when nothing is left."""
    asked = page.locator(".r-asked p")
    if not asked.count():
        return False
    turn = page.locator(".r-board").get_attribute("data-turn")
    page.locator("h1").click()
    for key in keys:
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    page.wait_for_function("turn => document.querySelector('.r-board').dataset.turn !== turn", arg=turn)
    return True


alone = [*slow, pytest.mark.soak]  # two browsers and a server want the machine to themselves


class TestBrowsers:
    pytestmark = alone

    def test_two_at_once_and_a_killed_server_lose_and_double_nothing(self, tmp_path: Path) -> None:
        run_with_questions(tmp_path, questions=6, hostile=True)
        with chromium() as browser:
            with serving(tmp_path) as (process, base):
                port = int(base.rpartition(":")[2])
                kari, ola = (visitor(browser, base, name) for name in ("Kari", "Ola"))
                assert kari.evaluate("window.hacked") is None
                assert keep(kari, "2")
                assert keep(ola, "2")
                kari.locator("h1").click()
                kari.keyboard.press("2")
                kari.keyboard.press("=")
                kari.keyboard.press("1")
                half = kari.locator(".r-order").inner_text()
                acknowledged = {"Kari": 1, "Ola": 1}
                process.send_signal(signal.SIGKILL)
                process.wait()
            with serving(tmp_path, port):
                for page in (kari, ola):
                    page.reload()
                    page.wait_for_selector(".r-card")
                assert kari.locator(".r-order").inner_text() == half
                assert keep(kari, "")
                acknowledged["Kari"] += 1
                for name, page in (("Kari", kari), ("Ola", ola)):
                    while keep(page):
                        acknowledged[name] += 1
                for page in (kari, ola):
                    page.locator(".r-progress", has_text="7 of 7").wait_for(timeout=20_000)
                    assert not [c for c in page.complaints if "ERR_CONNECTION" not in c and "WebSocket" not in c]
                    assert page.evaluate("window.hacked") is None
        with open_store(tmp_path / "runs" / "toy" / "rank") as store:
            made = store.entries()
        for name in acknowledged:
            own = [e for e in made if e.annotator == name]
            assert len(own) == acknowledged[name]
            fresh = [e.asked.id for e in own if not e.again]
            assert len(fresh) == len(set(fresh)) == 7

    @pytest.mark.parametrize(("lang", "width"), [("nb", 390), ("en", 1440)])
    def test_dragging_ties_writing_and_widths(self, tmp_path: Path, lang: str, width: int) -> None:
        run_with_questions(tmp_path, questions=3)
        locale = {"nb": "nb-NO", "en": "en-GB"}[lang]
        w = words(lang, "studio_ranking")
        with chromium() as browser, serving(tmp_path) as (_, base):
            page = visitor(browser, base, "Kari", locale=locale, viewport={"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") == width
            names = [page.locator(".r-pool .r-text").nth(i).inner_text() for i in range(3)]

            def drag(name: str, onto: Any, up: bool = False) -> None:
                page.locator(".r-card", has_text=name).locator(".r-key").hover()
                page.mouse.down()
                box = onto.bounding_box()
                page.mouse.move(box["x"] + box["width"] / 2, box["y"] + (3 if up else box["height"] / 2), steps=6)
                page.mouse.up()

            drag(names[0], page.locator(".r-order"))
            drag(names[1], page.locator(".r-tier").first)
            drag(names[2], page.locator(".r-gap").first)
            assert [tier.split("\n")[0] for tier in page.locator(".r-tier").all_inner_texts()] == ["1", "2"]
            assert page.locator(".r-tier").first.inner_text().count(names[2]) == 1
            assert page.locator(".r-tier").nth(1).locator(".r-card").count() == 2
            page.get_by_role("button", name=w("board.write")).click()
            page.locator(".r-write textarea").fill("Bedre <i>svar</i>")
            page.get_by_role("button", name=w("board.add"), exact=True).click()
            page.locator(".r-card", has_text="Bedre <i>svar</i>").wait_for()
            page.locator(".r-save").click()
            page.get_by_text(w("said_order")).wait_for()
            assert not page.complaints
        with open_store(tmp_path / "runs" / "toy" / "rank") as store:
            (entry,) = store.entries()
        got = [[entry.asked.candidates[i].text for i in group] for group in entry.order]
        assert got[0] == [names[2]]
        assert sorted(got[1]) == sorted(names[:2])
        assert "Bedre <i>svar</i>" in got[2]
