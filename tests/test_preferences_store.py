"""The store: the same laws on SQLite and on a real PostgreSQL; what was acknowledged is there whatever happens."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import postgres
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from klype.errors import KlypeError, UsageError
from klype.preferences import database
from klype.preferences.records import Candidate, Entry, RankingItem
from klype.preferences.schema import METADATA, Annotator
from klype.preferences.store import Store
from klype.values import Question, Sampling, Step, Trace

TRACE = Trace((1, 2), (Step(3, -0.5, -0.25, "drawn"),), Sampling(0.7, top_k=5), 4, 1, "finetune", "stop", 1, 0.5)
KARI, OLA = Annotator("kari", session="a"), Annotator("ola", session="b")
New = Callable[[], str]


def asked(number: int = 0, n: int = 3) -> RankingItem:
    extra = {"lang": "nb", "fixed": False}
    question = Question(f"q{number}", f"Hvor bor Per {number}?", "Per bor i Å.", ("Å", "i Å"), ("Å", "Bø"), extra)
    return RankingItem(question, tuple(Candidate(f"svar {i}", "finetune", 0.7, "", TRACE) for i in range(n)))


def said(one: RankingItem, name: str = "kari", order: tuple[tuple[int, ...], ...] = ((2,), (0, 1))) -> Entry:
    return Entry(one, order, name, when="2026-01-01", seconds=2.5)


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    with postgres.server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def new(request: pytest.FixtureRequest, tmp_path: Path) -> New:
    """Makes places for empty stores."""
    if request.param == "sqlite":
        return lambda: str(tmp_path / f"{uuid.uuid4().hex}.db")
    url = request.getfixturevalue("postgres_url")

    def make() -> str:
        import psycopg

        name = f"t{uuid.uuid4().hex}"
        with psycopg.connect(url.format("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return str(url.format(name))

    return make


def test_what_is_recorded_comes_back_whole(new: New) -> None:
    place = new()
    with Store.open(place) as store:
        store.add([asked(0), asked(1)])
        one = store.claim(KARI)
        assert one is not None
        entry = said(one)
        number = store.record(entry)
        skipped = replace(entry, kind="skip", order=())
        store.record(skipped)
    with Store.open(place) as store:
        assert store.entries() == [replace(entry, id=number), replace(skipped, id=number + 1)]
        assert [c.trace for c in store.entries()[0].asked.candidates] == [TRACE] * 3
        ranking = store.entries()[0].ranking()
        assert (ranking.order, ranking.question, ranking.annotator) == (entry.order, asked(0).question, "kari")


def test_nothing_is_doubled_and_several_models_answers_come_together(new: New) -> None:
    with Store.open(new()) as store:
        assert store.add([asked(), asked()]) == store.add([asked()]) * 2
        other = replace(asked(), candidates=(Candidate("svar 1"), Candidate("et annet", "align", 1.0)))
        store.add([other])
        (found,) = store.questions()
        assert [(c.text, c.model) for c in found.candidates][2:] == [("svar 2", "finetune"), ("et annet", "align")]
        entries = [said(asked()), said(other, "ola", ((1,), (0,)))]
        assert store.put(entries) == 2
        assert store.put(entries) == 0
        assert [e.ranking().candidates for e in store.entries()][1] == ("svar 1", "et annet")


def test_a_claim_keeps_others_away_until_its_lease_is_over(new: New) -> None:
    clock = [1000.0]
    with Store.open(new(), clock=lambda: clock[0]) as store:
        store.add([asked(0), asked(1)])
        first, second = store.claim(KARI), store.claim(OLA)
        assert first is not None
        assert second is not None
        assert first.id != second.id
        assert store.claim(Annotator("eva", session="c")) is None
        assert store.claim(KARI) == first  # one's own stays one's own
        assert store.claim(Annotator("eva", session="c"), each=2) is not None  # two opinions are wanted
        clock[0] += 10_000
        late = store.claim(Annotator("eva", session="c"))
        assert late is not None
        assert late.id == first.id


def rankings_in(place: str) -> list[str]:
    """The kind of every row."""
    engine = database.connect(place)
    with engine.connect() as connection:
        found = [str(kind) for (kind,) in connection.exec_driver_sql("SELECT kind FROM rankings ORDER BY id")]
    engine.dispose()
    return found


def test_what_is_ranked_is_not_asked_again_and_undo_brings_it_back(new: New) -> None:
    place = new()
    with Store.open(place) as store:
        store.add([asked(0), asked(1)])
        one = store.claim(KARI)
        assert one is not None
        store.record(said(one))
        two = store.claim(KARI)
        assert two is not None
        assert two.id != one.id
        assert store.claim(OLA) is None
        back = store.undo(KARI)
        assert back is not None
        assert back.asked.id == one.id
        assert (store.entries(), len(rankings_in(place))) == ([], 2)  # taken back, not lost
        assert store.undo(KARI) is None
        store.release(KARI)
        again = store.claim(KARI)
        assert again == one
        store.record(said(one))
        assert (len(store.entries()), rankings_in(place)) == (1, ["order", "undo", "order"])


def test_simulated_rankings_leave_the_question_to_people_and_priority_comes_first(new: New) -> None:
    with Store.open(new()) as store:
        ids = store.add([asked(i) for i in range(3)])
        store.put([replace(said(asked(i), "simulated: tidy"), by="simulated") for i in range(3)])
        store.prioritise({ids[2]: 5.0, ids[1]: 1.0})
        order = []
        while (one := store.claim(KARI)) is not None:
            order.append(one.id)
            store.record(said(one))
        assert order == [ids[2], ids[1], ids[0]]


def test_a_question_is_asked_again_later_and_once(new: New) -> None:
    with Store.open(new()) as store:
        store.add([asked(i) for i in range(5)])
        for _ in range(4):
            one = store.claim(KARI)
            assert one is not None
            store.record(said(one))
        again = store.claim_again(KARI)
        assert again is not None
        assert again.question.id == "q0"
        store.record(replace(said(again), again=True))
        assert store.claim_again(KARI).question.id == "q1"  # type: ignore[union-attr]


def test_annotators_at_once_share_the_work_and_lose_nothing(new: New) -> None:
    place = new()
    with Store.open(place) as store:
        store.add([asked(i) for i in range(24)])
    failed: list[BaseException] = []

    def work(name: str) -> None:
        try:
            with Store.open(place, busy_s=30) as own:
                while (one := own.claim(Annotator(name, session=name))) is not None:
                    own.record(said(one, name))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(f"n{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    with Store.open(place) as store:
        ranked = [e.asked.id for e in store.entries()]
    assert len(ranked) == len(set(ranked)) == 24


# Lone surrogates too, as JSON brings them; two that make a pair come as the letter that they are.
anything = st.text(st.characters(), max_size=8).map(lambda text: json.loads(json.dumps(text)))


Said = tuple[str, str, list[str], float | None]
everything = st.tuples(anything, anything, st.lists(anything, min_size=1, max_size=4), st.none() | st.floats(0, 9))
QUICK = settings(max_examples=10, phases=(Phase.explicit, Phase.generate))  # to shrink against a disk takes minutes
THOROUGH = settings(max_examples=300)


@given(everything)
@settings(QUICK, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_text_goes_in_and_out(new: New, said: Said) -> None:
    goes_in_and_out(new, said)


@pytest.mark.soak
@given(everything)
@settings(THOROUGH, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_three_hundred_texts_go_in_and_out(new: New, said: Said) -> None:
    goes_in_and_out(new, said)


def goes_in_and_out(new: New, said: Said) -> None:
    text, name, answers, hot = said
    place = getattr(new, "place", None) or new()
    new.place = place  # type: ignore[attr-defined]
    candidates = tuple(Candidate(a, text, hot, name) for a in answers)
    entry = Entry(
        RankingItem(Question(name, text, text, (text,), (), {text: name}), candidates),
        (tuple(range(len(answers))),),
        name,
    )
    with Store.open(place) as store:
        store.put([entry])
        texts = [e.ranking() for e in store.entries()]
    assert entry.ranking() in texts


# The tables of a store's first version, as they were made then.
FIRST = """
CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL,
 CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num));
INSERT INTO alembic_version VALUES ('0001');
CREATE TABLE annotators (id {id} NOT NULL, name TEXT NOT NULL, "by" TEXT NOT NULL, since TEXT NOT NULL,
 PRIMARY KEY (id),
 UNIQUE (name));
CREATE TABLE questions (id {id} NOT NULL, digest TEXT NOT NULL, part TEXT NOT NULL, question TEXT NOT NULL,
 context TEXT NOT NULL, about TEXT NOT NULL, PRIMARY KEY (id), UNIQUE (digest));
CREATE TABLE candidates (id {id} NOT NULL, question_id INTEGER NOT NULL, text TEXT NOT NULL, model TEXT NOT NULL,
 temperature FLOAT, author TEXT NOT NULL, trace TEXT, PRIMARY KEY (id),
 FOREIGN KEY(question_id) REFERENCES questions (id));
CREATE INDEX ix_candidates_question_id ON candidates (question_id);
CREATE TABLE rankings (id {id} NOT NULL, question_id INTEGER NOT NULL, annotator_id INTEGER NOT NULL,
 kind TEXT NOT NULL,
 shown TEXT NOT NULL, ordering TEXT NOT NULL, at TEXT NOT NULL, seconds FLOAT, again BOOLEAN NOT NULL, undoes INTEGER,
 PRIMARY KEY (id), FOREIGN KEY(question_id) REFERENCES questions (id),
 FOREIGN KEY(annotator_id) REFERENCES annotators (id), UNIQUE (undoes), FOREIGN KEY(undoes) REFERENCES rankings (id));
CREATE INDEX ix_rankings_annotator_id ON rankings (annotator_id);
CREATE INDEX ix_rankings_question_id ON rankings (question_id)
"""


def make_first(place: str) -> None:
    engine = database.connect(place)
    with database.write_transaction(engine) as connection:
        for statement in FIRST.format(id="SERIAL" if engine.dialect.name == "postgresql" else "INTEGER").split(";"):
            connection.exec_driver_sql(statement)
    engine.dispose()


@pytest.mark.parametrize("first", [False, True])
def test_a_new_store_and_one_from_before_have_the_same_tables(new: New, first: bool) -> None:
    place = new()
    if first:
        make_first(place)
    Store.open(place).close()
    engine = database.connect(place)
    made = sa.inspect(engine)
    assert set(made.get_table_names()) == {*METADATA.tables}
    for table in METADATA.tables.values():
        columns = {c["name"]: bool(c["nullable"]) for c in made.get_columns(table.name)}
        assert columns == {c.name: bool(c.nullable) for c in table.columns}
        assert {i["name"] for i in made.get_indexes(table.name) if not i["unique"]} == {i.name for i in table.indexes}
    engine.dispose()


@pytest.mark.parametrize("first", [False, True])
def test_many_open_a_new_store_or_an_older_one_at_once(new: New, first: bool) -> None:
    place = new()
    if first:
        make_first(place)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda i: opened_and_added(place, i), range(6)))
    with Store.open(place) as store:
        assert {one.id for one in store.questions()} == set(found)
    assert len(set(found)) == 6


def opened_and_added(place: str | Path, i: int) -> int:
    with Store.open(place) as store:
        return store.add([asked(i)])[0]


def test_an_older_store_is_migrated_and_keeps_what_it_held(new: New) -> None:
    place = new()
    make_first(place)
    engine = database.connect(place)
    with database.write_transaction(engine) as connection:
        connection.execute(
            sa.text(
                "INSERT INTO questions (id, digest, part, question, context, about) "
                "VALUES (1, 'd', 'train', :q, :c, :a)"
            ),
            {"q": '"Hvem?"', "c": '""', "a": '{"id": "q", "answers": [], "choices": [], "extra": {}}'},
        )
        connection.execute(
            sa.text("INSERT INTO candidates (id, question_id, text, model, author) VALUES (1, 1, :t, :m, :m)"),
            {"t": '"Per"', "m": '""'},
        )
    engine.dispose()
    with Store.open(place) as store:
        (one,) = store.questions()
        assert (one.question.question, one.candidates[0].text) == ("Hvem?", "Per")


def test_a_question_with_a_single_answer_waits_for_another(new: New) -> None:
    with Store.open(new()) as store:
        store.add([replace(asked(0), candidates=(Candidate("en"),))])
        (one,) = store.questions()
        assert store.claim(KARI) is None
        store.add_candidate(one.id, Candidate("to"))
        assert store.claim(KARI) is not None


def test_a_newer_store_is_refused_in_one_sentence(new: New) -> None:
    place = new()
    Store.open(place).close()
    engine = database.connect(place)
    with database.write_transaction(engine) as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    for read_only in (False, True):
        with pytest.raises(KlypeError, match="written by a newer version of klype"):
            Store.open(place, read_only=read_only)


# What goes wrong with a file


def filled(place: Path, n: int = 1) -> None:
    with Store.open(place) as store:
        store.put([said(asked(i)) for i in range(n)])


def test_a_locked_store_says_so_and_loses_nothing(tmp_path: Path) -> None:
    place = tmp_path / "rankings.db"
    filled(place)
    engine = database.connect(place)
    with database.write_transaction(engine), Store.open(place, busy_s=0.05) as store:
        assert len(store.entries()) == 1  # reading goes on
        with pytest.raises(KlypeError, match="is locked by another program"):
            store.put([said(asked(1))])
    with Store.open(place) as store:
        assert store.put([said(asked(1))]) == 1
    engine.dispose()


def test_a_full_disk_says_so_and_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    place = tmp_path / "rankings.db"
    filled(place)
    engine = database.connect(place)

    @sa.event.listens_for(engine, "connect")
    def small(connection: sqlite3.Connection, record: object) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")

    with Store(engine, str(place), lambda: 0.0) as store:
        with pytest.raises(KlypeError, match=r"disk of the store .* is full"):
            store.put([said(asked(i, 9)) for i in range(1, 60)])
        assert len(store.entries()) == 1
    with Store.open(place) as store:
        assert len(store.entries()) == 1


READING = """
import os, sys
from pathlib import Path
from klype.errors import KlypeError
from klype.preferences.store import Store
place = Path(sys.argv[1])
Store.open(Path(sys.argv[2])).close()  # all is imported before the user changes
if os.getuid() == 0: os.setuid(65534)
with Store.open(place, read_only=True) as store:
    print(len(store.entries()))
try:
    with Store.open(place) as store:
        store.add([])
        store.prioritise({1: 1.0})
    print("written")
except KlypeError as error:
    print(error.message)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not all(folder.stat().st_mode & 0o001 for folder in Path(__file__).resolve().parents),
    reason="another user cannot come to this checkout",
)
def test_a_file_that_may_only_be_read_is_read_and_not_written(tmp_path: Path) -> None:
    place = tmp_path / "rank" / "rankings.db"
    filled(place)
    place.chmod(0o444)
    place.parent.chmod(0o555)
    for folder in (tmp_path, *tmp_path.parents):  # another user must come this far
        if Path(tempfile.gettempdir()) in folder.parents:
            folder.chmod(folder.stat().st_mode | 0o055)
    try:
        done = subprocess.run(
            [sys.executable, "-c", READING, str(place), str(tmp_path / "other.db")],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[1],
        )
    finally:
        place.parent.chmod(0o755)
    assert done.stdout.splitlines()[0] == "1", done.stderr
    assert "may not be written" in done.stdout or "cannot be opened" in done.stdout, done.stdout


def test_what_is_no_store_is_named(tmp_path: Path) -> None:
    place = tmp_path / "rankings.db"
    place.write_text("dette er ikke en database, men en tekst " * 50)
    with pytest.raises(KlypeError, match="is not a store of rankings"):
        Store.open(place)
    with pytest.raises(KlypeError, match="There is no store"):
        Store.open(tmp_path / "none.db", read_only=True)
    with pytest.raises(UsageError, match="cannot be kept in mysql"):
        Store.open("mysql://me:secret@host/x")


KILLED = """
from klype.preferences.records import Candidate, Entry, RankingItem
from klype.preferences.schema import Annotator
from klype.preferences.store import Store
from klype.values import Question
answers = tuple(Candidate(f"svar {{i}}") for i in range(3))
with Store.open({place!r}) as store:
    questions = [Question(f"q{{i}}", f"Hvor bor Per {{i}}?") for i in range({start}, {start} + 100)]
    store.add([RankingItem(question, answers) for question in questions])
    while (one := store.claim(Annotator("kari", session="a"))) is not None:
        print(store.record(Entry(one, ((2,), (0, 1)), "kari")), flush=True)
"""


def kill_while_it_ranks(place: str, start: int, after: int) -> list[int]:
    """The ids that a ranking process acknowledged before it was killed without warning."""
    code = KILLED.format(place=place, start=start)
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    told = []
    for line in process.stdout:
        told.append(int(line))
        if len(told) >= after:
            break
    os.kill(process.pid, 9)
    told += [int(line) for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    process.wait()
    return told


def kills(new: New, times: int) -> None:
    place, told = new(), list[int]()
    for i in range(times):
        told += (now := kill_while_it_ranks(place, 1000 * i, 3 + i % 7))
        assert now
        with Store.open(place) as store:
            there = [e.id for e in store.entries()]
        assert set(told) <= set(there)
        assert len(there) - len(told) <= i + 1  # at most one a kill was written and not yet acknowledged


@pytest.mark.slow
def test_kills_lose_nothing_that_was_acknowledged(new: New) -> None:
    kills(new, 2)


@pytest.mark.soak
def test_a_hundred_kills_lose_nothing_that_was_acknowledged(new: New) -> None:
    kills(new, 100)
