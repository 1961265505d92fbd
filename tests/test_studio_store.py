"""``klype studio --store``: rankings in one store for all, a file or a real PostgreSQL, by the page's own code."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import postgres
import pytest

from klype.cli.main import call
from klype.errors import KlypeError, UsageError
from klype.preferences.store import Store
from klype.studio.ranking import RankingBoard
from klype.studio.studio import Studio
from tests.studio_toys import visiting
from tests.studio_work_toys import run_with_questions
from tests.test_studio_ranking import find, send, ten_people, texts, until


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres.server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty store."""
    if request.param == "sqlite":
        return str(tmp_path / "team.db")
    import psycopg

    found, name = request.getfixturevalue("server"), f"t{uuid.uuid4().hex}"
    with psycopg.connect(found.format("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return str(found.format(name))


def studio_of(tmp_path: Path, url: str, questions: int = 6) -> Studio:
    if not (tmp_path / "runs").is_dir():
        run_with_questions(tmp_path, questions)
    return Studio([], tmp_path / "home", ["false"], store=url, runs=tmp_path / "runs")


def test_an_empty_store_gets_the_run_s_questions_once_and_stands_first(tmp_path: Path, url: str) -> None:
    studio = studio_of(tmp_path, url)
    for _ in range(2):
        studio.fill_store()
    place = studio.ranking_stores()[0]
    assert (place.url, place.run) == (url, tmp_path / "runs" / "toy")
    assert place.run is not None
    with place.open() as store:
        assert [len(asked.candidates) for asked in store.questions()] == [4] * 6
    assert studio.runs_home == tmp_path / "runs"
    assert studio.run_folders() == [tmp_path / "runs" / "toy"]


@pytest.mark.slow
def test_ten_people_at_once_lose_and_double_nothing(tmp_path: Path, url: str) -> None:
    studio = studio_of(tmp_path, url, 4)
    studio.fill_store()
    place = studio.ranking_stores()[0]
    made = ten_people(place)
    assert len(made) == len(set(made)) == 10 * 4
    copied = place.snapshot(tmp_path / "copy", ("person 1", "person 2"))
    assert {entry.annotator for entry in copied} == {"person 1", "person 2"}


@pytest.mark.slow
def test_the_page_ranks_in_it_and_its_address_s_password_is_not_shown(tmp_path: Path, url: str) -> None:
    studio = studio_of(tmp_path, url)
    studio.fill_store()
    with visiting(studio) as (run, user):
        run(user.open("/ranking"))
        (board,) = find(user, RankingBoard)

        async def go() -> None:
            send(user, board, "arrive", {"sitting": "tab", "who": "Kari", "name": "Kari"})
            await until(lambda: board._props["open"])
            ids = [number for number, _ in board._props["cards"]]
            send(user, board, "act", {"do": "order", "turn": board._props["turn"], "groups": [ids[:1], ids[1:]]})
            await until(lambda: "Kari: 1" in texts(user))

        run(go())
        assert url not in texts(user)
    with Store.open(url) as store:
        assert [(entry.annotator, len(entry.order)) for entry in store.entries()] == [("Kari", 2)]
    with Store.open(tmp_path / "runs" / "toy" / "rank" / "rankings.db") as own:
        assert own.entries() == []


def test_a_store_that_cannot_be_used_is_refused_before_anything_is_shown(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no questions"):
        Studio([], tmp_path, ["false"], store=str(tmp_path / "new.db"), runs=tmp_path / "nowhere").fill_store()
    (tmp_path / "odd.db").write_text("no database at all, and long enough to be looked at as one" * 20)
    with pytest.raises(KlypeError, match=r"odd\.db"):
        Studio([], tmp_path, ["false"], store=str(tmp_path / "odd.db")).fill_store()
    unreachable = "postgresql://klype:secret@127.0.0.1:1/x"
    with pytest.raises(KlypeError) as refused:
        call(["studio", "--no-open", "--port", "0", "--store", unreachable, "--runs", str(tmp_path / "none")])
    assert "secret" not in str(refused.value)
