"""Models at work: answers written together are those written alone; long work beside them; who leaves, what fails."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from klype.engine.engine import Event
from klype.errors import KlypeError, UsageError
from klype.preferences.records import Entry
from klype.sources.model_files import ModelFiles
from klype.sources.source import answers
from klype.studio.alignment import start_alignment
from klype.studio.answer_paths_search import CancelledError, PathSearch, PathSource
from klype.studio.background_jobs import works
from klype.studio.divergence import ExamRequest, exam_document, exam_work, start_exam
from klype.studio.ranking_stores import RankingStore
from klype.studio.runs import RunRequest, start_run
from klype.studio.studio import Branches, Conversation, SharedModel, Turn
from klype.studio.targets import start_experiment
from klype.values import Request, Sampling, Trace
from tests.studio_server import run_folder
from tests.studio_toys import model, studio
from tests.studio_work_toys import run_with_questions


def request(toy: SharedModel, text: str = "hvor gikk hun?", **changes: object) -> Request:
    prompt = tuple(toy.opened.user_prompt(text))
    return replace(Request(prompt, limit=12, seed=5, stop=toy.opened.stop, top=-1), **changes)  # type: ignore[arg-type]


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.02)


async def collect(toy: SharedModel, asked: Request) -> Trace:
    events: list[Event] = []
    async for news in toy.events(asked):
        events += news
    trace = events[-1].trace
    assert trace is not None
    assert tuple(event.step.token for event in events) == trace.tokens
    return trace


@pytest.mark.parametrize("own", [True, False], ids=["engine", "source"])
def test_written_together_as_written_alone(own: bool) -> None:
    toy = model(own=own)
    asked = [request(toy, text) for text in ("hvor gikk hun?", "jeg gikk en tur", "🫐")]
    alone = [group[0].tokens for group in answers(model().source, asked)]

    async def all_of_them() -> list[Trace]:
        return await asyncio.gather(*(collect(toy, one) for one in asked))

    found = asyncio.run(all_of_them())
    toy.stop()
    assert [trace.tokens for trace in found] == alone
    assert all(step.distribution is not None and step.distribution.whole for trace in found for step in trace.steps)


@pytest.mark.parametrize("own", [True, False], ids=["engine", "source"])
def test_long_work_keeps_no_answer_waiting(own: bool) -> None:
    toy = model(own=own)
    going = threading.Event()

    async def both() -> Trace:
        work = asyncio.ensure_future(toy.beside(lambda source: (going.wait(20), source.next([(1,)]))))
        await asyncio.sleep(0.01)
        trace = await asyncio.wait_for(collect(toy, request(toy)), 10)
        assert not work.done()
        going.set()
        await work
        return trace

    assert asyncio.run(both()).steps
    toy.stop()


def test_who_leaves_ends_the_work() -> None:
    toy = model(window=512)

    async def leave() -> None:
        events = toy.events(request(toy, limit=400, stop=()))
        async for _ in events:
            break
        await events.aclose()  # type: ignore[attr-defined]
        for _ in range(200):
            if not toy.worker.engine.busy:  # type: ignore[union-attr]
                return
            await asyncio.sleep(0.01)
        raise AssertionError("the engine still writes")

    asyncio.run(leave())
    toy.stop()


def test_what_fails_in_the_thread_is_told() -> None:
    toy = model(own=False)
    with pytest.raises(KlypeError):
        asyncio.run(collect(toy, request(toy, limit=0)))
    toy.stop()


def test_a_source_that_remembers_is_the_source_until_nobody_wants_it() -> None:
    toy = model()
    prefixes = [(1, 2), (1, 2, 3), (1, 2)]
    plain, looks = toy.source.next(prefixes), list[int]()
    known: dict = {}
    for _ in range(2):
        source = PathSource(toy.source, lambda: looks.append(1), known)
        for q, same in zip(source.next(prefixes), plain, strict=True):
            assert (q.ids == same.ids).all()
            assert q.logp == pytest.approx(same.logp, abs=1e-5)
        mine = answers(source, [request(toy, n=3)])[0]
        assert [t.tokens for t in mine] == [t.tokens for t in answers(toy.source, [request(toy, n=3)])[0]]
    assert len(looks) > 2 * 3
    assert set(known) == {(1, 2), (1, 2, 3)}

    class Nothing:
        codec, name = toy.source.codec, ""

        def next(self, prefixes: list, top: int = -1) -> list:
            raise AssertionError("asked again")

    assert len(PathSource(Nothing(), lambda: None, known).next(prefixes)) == 3  # type: ignore[arg-type]

    def unwanted() -> None:
        raise CancelledError

    ended = PathSource(toy.source, unwanted, known)
    for ask in (
        lambda: ended.next(prefixes),
        lambda: ended.score([(1,)], [(2,)]),
        lambda: answers(ended, [request(toy)]),
    ):
        with pytest.raises(CancelledError):
            ask()
    toy.stop()


def written(toy: SharedModel, talk: Conversation, text: str, limit: int = 10) -> Branches:
    branches = Branches(toy.name)
    answer = branches.begin(toy.prompt_after(talk, text), Sampling(), seed=11)

    asyncio.run(toy.extend(answer, limit))
    return branches


def test_a_branch_with_the_same_noise_goes_on_as_it_was() -> None:
    """Forced to a token and back: from there on the answer is the one that was drawn at first."""
    toy = model()
    branches = written(toy, Conversation("k"), "hvor gikk hun?")
    first = branches.current
    assert len(first.steps) == 10
    other = next(int(t) for t in first.steps[4].distribution.ids if t != first.steps[4].token)  # type: ignore[union-attr]
    fork = branches.fork(4, other, Sampling())
    again = branches.fork(4, first.steps[4].token, Sampling())
    assert again.tokens == first.tokens[:5]

    async def go() -> None:
        for answer in (fork, again):
            await toy.extend(answer, 10)

    asyncio.run(go())
    toy.stop()
    assert fork.tokens[:5] == (*first.tokens[:4], other)
    assert again.tokens == first.tokens
    assert len(fork.steps) <= 10


def test_guessing_ahead_changes_no_word() -> None:
    toy = model()
    plain = written(toy, Conversation("k"), "hun gikk en tur").current
    branches = Branches(toy.name)
    answer = branches.begin(plain.prompt, Sampling(), seed=11)
    asyncio.run(toy.extend_ahead(answer, 10))
    toy.stop()
    assert answer.tokens == plain.tokens
    assert answer.accepted is not None
    assert answer.proposed is not None
    assert 0 <= answer.accepted <= answer.proposed
    assert all(step.distribution is not None for step in answer.steps)


def test_a_window_that_is_full_forgets_the_oldest_turns() -> None:
    toy = model(window=160)
    talk = Conversation("k")
    for i in range(12):
        branches = Branches(toy.name)
        answer = branches.begin([1], Sampling(), 0)
        talk.turns.append(Turn(f"jeg gikk en tur {i}", {toy.name: branches}))
        assert not answer.steps
        prompt = toy.prompt_after(talk, "hvor gikk hun?")
        assert len(prompt) + 40 <= 160
    with pytest.raises(UsageError, match="reads 160 at most"):
        toy.prompt_after(talk, "🙂" * 200)
    with pytest.raises(UsageError, match="no room"):
        toy.rest_of(Branches("x").begin([1] * 160, Sampling(), 0), 10)


def test_where_single_questions_were_taught_the_second_is_answered_as_if_it_came_first(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"settings": {"kind": "world"}}))
    taught, other = model(seed=1), model(seed=1)
    taught.opened = replace(taught.opened, found=ModelFiles(tmp_path / "align", tmp_path, "align"))
    for toy in (taught, other):
        talk, cold = Conversation("k"), Sampling(temperature=0)
        answers = []
        for text in ("jeg gikk en tur", "hvor gikk hun?", "hvor gikk hun?"):
            branches = Branches(toy.name)
            answers.append(branches.begin(toy.prompt_after(talk, text), cold, seed=11))
            asyncio.run(toy.extend(answers[-1], 10))
            talk.turns.append(Turn(text, {toy.name: branches}))
        alone = Branches(toy.name).begin(toy.prompt_after(Conversation("k"), "hvor gikk hun?"), cold, seed=11)
        asyncio.run(toy.extend(alone, 10))
        same = [(answer.prompt, answer.tokens) == (alone.prompt, alone.tokens) for answer in answers]
        assert same == ([False, True, True] if toy is taught else [False, False, False])
        toy.stop()


def test_shares_of_paths_are_those_of_the_answers() -> None:
    toy = model()
    search = PathSearch(toy, toy.context("hvor gikk hun?"), 0.8, n=40, limit=4, budget=60)
    found = search.paths(toy.source)
    assert sum(one.drawn for one in found.meant) == 40 == len(found.traces)
    assert 1 - sum(a.low for a in found.tree.answers) == pytest.approx(found.tree.unexplored, abs=1e-6)
    assert [found.place_of(one.meaning) for one in found.meant] == list(range(len(found.meant)))
    assert search.done > 0
    before = len(search.known)
    replace(search, temperature=0.3).paths(toy.source)
    assert len(search.known) < before + 60  # most had been read
    assert [t.tokens for t in search.paths(toy.source).traces] == [t.tokens for t in found.traces]


def test_paths_that_nobody_wants_end_at_once() -> None:
    toy = model()
    search = PathSearch(toy, toy.context("hvor gikk hun?"))
    search.cancelled.set()
    with pytest.raises(CancelledError):
        search.paths(toy.source)
    tight = model(window=20)
    asked = PathSearch(tight, tight.context("jeg gikk en tur på fjellet " * 3))
    with pytest.raises(UsageError, match="reads 20 at most"):
        asked.paths(tight.source)


SCRIPT = """
import json, sys, time
folder = sys.argv[sys.argv.index('--out') + 1]
print('answers 0: 3 steps', file=sys.stderr, flush=True)
if sys.argv[2] == 'slow': time.sleep(60)
if sys.argv[2] == 'bad':
    print(json.dumps({'error': {'message': 'It is broken.', 'hint': 'Mend it.'}})); sys.exit(2)
open(folder + '/figures.json', 'w').write(json.dumps({'figures': {'0': {}}}))
"""


@pytest.mark.parametrize(("address", "state"), [("good", "done"), ("bad", "failed"), ("slow", "cancelled")])
def test_an_examination_is_a_process_of_its_own(tmp_path: Path, address: str, state: str) -> None:
    script = tmp_path / "klype.py"
    script.write_text(SCRIPT)

    home = studio(tmp_path, command=(sys.executable, str(script)))
    request = ExamRequest(address, "weights")
    work = start_exam(home, request)
    assert start_exam(home, request) == work == exam_work(home, request)
    until(lambda: request.progress(work.last_lines())[0] == "answers 0")
    if state == "cancelled":
        work.cancel()
    until(lambda: work.state != "running")
    assert work.state == state
    assert (exam_document(home, request) is not None) is (state == "done")
    assert state != "failed" or work.why() == "It is broken. Mend it."
    if state == "done":
        shutil.rmtree(tmp_path / "examinations")
        again = start_exam(home, request)  # it is made anew
        until(lambda: again.state == "done")
        assert exam_document(home, request) is not None


def test_a_command_that_cannot_be_started_is_told(tmp_path: Path) -> None:
    home = studio(tmp_path, command=("/nowhere/klype",))
    work = start_exam(home, ExamRequest("x", "y"))
    until(lambda: work.state != "running")
    assert work.state == "failed"
    assert "No such file" in work.why()


def test_what_the_studio_starts_computes_on_its_device(tmp_path: Path) -> None:
    home = replace(studio(tmp_path), device="cpu")
    source = run_with_questions(tmp_path)
    store = RankingStore("toy", source)
    with store.open() as opened:
        opened.put([Entry(asked, ((0,), (1, 2, 3)), "Kari", when="2026-01-01") for asked in opened.questions()[:2]])
    begun = [
        start_exam(home, ExamRequest("x", "y")).plan,
        start_run(home, RunRequest("world", 1, "en")).plan,
        start_alignment(home, store, ("Kari",)).work.plan,
    ]
    until(lambda: all(work.state == "failed" for work in works(tmp_path)))
    begun.append(start_experiment(home, 1).work.plan)  # type: ignore[union-attr]
    for command in (step for plan in begun for step in plan.steps):
        assert command[command.index("--device") + 1] == "cpu"
    until(lambda: all(work.state == "failed" for work in works(tmp_path)))


def test_two_models_need_two_names(tmp_path: Path) -> None:
    home, engines = studio(tmp_path, model("a")), threading.active_count()
    folder = run_folder(tmp_path)
    with pytest.raises(UsageError, match="Two models"):
        home.open(f"a={folder}")
    assert len(home.models) == 1
    assert threading.active_count() <= engines  # the second one is not loaded
    with pytest.raises(UsageError, match="no model"):
        studio(tmp_path).model("<script>")
