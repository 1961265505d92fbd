"""``klype rank`` as a user meets it: by hand through a terminal, simulated, in and out, and what it refuses."""

from __future__ import annotations

import json
import random
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pexpect
import pytest
import torch

from klype.cli.exits import exit_code
from klype.cli.main import call
from klype.model import checkpoint
from klype.model.config import ModelConfig
from klype.model.transformer import Transformer
from klype.preferences.records import Candidate, RankingItem
from klype.preferences.store import Store
from klype.runs.annotator_session import MisreadError, parse_order
from klype.text.chat import TEMPLATE
from klype.text.tokenizer import Tokenizer
from klype.world import World
from tests import contract

Captured = pytest.CaptureFixture[str]
QUESTIONS = 40


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a model that babbles and a store of the world's questions with answers in all manners."""
    world, rng = World("small"), random.Random(0)
    folder = tmp_path / "run"
    tokenizer = Tokenizer.train(["Hvem? Per. Yes No yes no"], 300, TEMPLATE)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, width=16, layers=1, heads=2, hidden=16, window=256)
    torch.manual_seed(0)
    checkpoint.save(folder / "finetune", Transformer(config), tokenizer, {"stage": "finetune"})
    (folder / "run.json").write_text(json.dumps({"settings": {"kind": "world", "world": "small"}}))
    with Store.open(folder / "rank" / "rankings.db") as store:
        for _ in range(QUESTIONS):
            question = world.question(rng)
            said = {world.answer(question, manner, rng) for manner in ("bare", "polite", "boring", "wrong")}
            store.add([RankingItem(question, tuple(Candidate(text, "finetune") for text in sorted(said)))])
    return folder


def klype(*words: str | Path) -> int:
    return exit_code(call, [str(word) for word in words])


def document(captured: Captured, *words: str | Path) -> dict[str, object]:
    captured.readouterr()
    assert klype(*words, "--json") == 0
    found = json.loads(captured.readouterr().out)
    contract.holds(contract.Rank, found)
    return found  # type: ignore[no-any-return]


@pytest.mark.slow
def test_two_simulated_annotators_disagree_as_much_as_their_tastes(run: Path, capsys: Captured) -> None:
    same = document(
        capsys, "rank", run, "--simulate", "--taste", "right=2", "--taste", "right=2,word=.041", "--noise", "0"
    )
    other = document(capsys, "rank", run, "--simulate", "--taste", "right=0,polite=-1,word=-.3", "--noise", "0")
    first = {tuple(b["annotators"]): b["tau_b"]["value"] for b in same["between"]}  # type: ignore[attr-defined]
    all_pairs = [b["tau_b"]["value"] for b in other["between"]]  # type: ignore[attr-defined]
    assert min(first.values()) > 0.9
    assert min(all_pairs) < 0
    assert all(a["by"] == "simulated" and a["name"].startswith("simulated: ") for a in other["annotators"])  # type: ignore[attr-defined]
    assert all(a["with_oneself"]["value"] == 1 for a in same["annotators"])  # type: ignore[attr-defined]
    again = document(capsys, "rank", run, "--simulate", "--taste", "right=2", "--noise", "0")
    assert again["new"] == 0


def test_a_model_judges_and_is_named(run: Path, capsys: Captured) -> None:
    told = document(capsys, "rank", run, "--judge", run / "finetune", "--steps", "5")
    (judge,) = told["annotators"]  # type: ignore[misc]
    assert judge["by"] == "model"
    assert judge["name"].startswith("model: ")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["ranked", "trl", "sharegpt", "alpaca"])
def test_rankings_go_out_and_come_into_another_store(run: Path, capsys: Captured, tmp_path: Path, form: str) -> None:
    klype("rank", run, "--simulate")
    file = tmp_path / f"{form}.jsonl"
    out = document(capsys, "rank", run, "--export", file, "--format", form)
    rows = out["exported"]["rows"]  # type: ignore[index]
    into = document(capsys, "rank", run, "--store", tmp_path / "other.db", "--import", file)
    lines = file.read_text().splitlines()
    assert rows == len(lines)
    assert into["new"] == len(set(lines))  # a pair that a repeat says once more is an exact double


@pytest.mark.slow
def test_by_hand_in_a_terminal_with_undo_ties_a_better_answer_and_going_on_later(run: Path) -> None:
    def start() -> pexpect.spawn[str]:
        words = ["-m", "klype", "rank", str(run), "--annotator", "kari", "--lang", "en", "--repeats", "0"]
        return pexpect.spawn(
            sys.executable,
            words,
            cwd=str(Path(__file__).parents[1]),
            encoding="utf-8",
            timeout=60,
            dimensions=(40, 160),
        )

    session = start()
    for typed, answer in (
        ("99", "There is no answer 9"),
        ("1x", "is no order"),
        ("?", "Type the numbers"),
        ("11", "named twice"),
        ("21", "2: "),
        ("u", "taken back"),
        ("1=2", "2: "),
        ("n", "3: "),
        ("s", "4: "),
        ("w", "your answer: "),
        ("Det vet jeg ikke.", "Det vet jeg ikke"),
    ):
        session.expect_exact("order: " if typed[0] != "D" else "", timeout=60)
        session.sendline(typed)
        session.expect_exact(answer)
    session.expect_exact("order: ")
    session.sendline("q")
    session.expect_exact("every one of them is saved")
    session.expect(pexpect.EOF)
    session.close()
    assert session.exitstatus == 0
    with Store.open(run / "rank" / "rankings.db") as store:
        kinds = [(e.kind, len(e.order)) for e in store.entries(annotators=["kari"])]
        assert [kind for kind, _ in kinds] == ["order", "none", "skip"]
        assert any(c.author == "kari" for asked in store.questions() for c in asked.candidates)
        assert all(e.seconds is not None and e.by == "person" for e in store.entries(annotators=["kari"]))
    with closing(sqlite3.connect(run / "rank" / "rankings.db")) as kept:  # undone, and not gone
        assert kept.execute("SELECT count(*) FROM rankings WHERE kind = 'undo'").fetchone() == (1,)
    later = start()
    later.expect_exact("4: ")
    later.sendcontrol("d")
    later.expect_exact("3 in all")
    later.close()
    broken_off = start()
    broken_off.expect_exact("4: ")
    broken_off.expect_exact("order: ")
    broken_off.sendintr()
    broken_off.expect_exact("3 in all")
    broken_off.expect_exact("The same command goes on from there.")  # it has no --resume
    broken_off.expect(pexpect.EOF)
    broken_off.close()
    assert broken_off.exitstatus == 130


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "xml"], "there is no format xml"),
        (["--noise", ".9"], "noise should be"),
        (["--taste", "kind=3", "--simulate"], "is not a taste"),
        (["--simulate", "--judge", "x"], "not both"),
        (["--import", "nowhere.jsonl"], "--import: there is no file nowhere.jsonl."),
        (["--store", "mysql://host/x"], "cannot be kept in mysql"),
        (["--steps", "-1"], "should be 0 or more"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(run: Path, capsys: Captured, words: list[str], message: str) -> None:
    assert klype("rank", run, *words) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told


def test_an_empty_store_says_how_to_fill_it(run: Path, capsys: Captured, tmp_path: Path) -> None:
    assert klype("rank", run, "--simulate", "--store", tmp_path / "empty.db") == 1
    assert "no question with two answers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "order"),
    [
        ("312", ((2,), (0,), (1,))),
        ("3=1 2", ((2, 0), (1,))),
        ("3 > 1, 2", ((2,), (0,), (1,))),
        ("2", ((1,), (0, 2))),
        ("1=2=3", ((0, 1, 2),)),
    ],
)
def test_what_is_typed_is_an_order(typed: str, order: tuple[tuple[int, ...], ...]) -> None:
    assert parse_order(typed, 3) == order


@pytest.mark.parametrize(
    ("typed", "key"),
    [("", "help"), ("?", "help"), ("4", "no_such"), ("0", "no_such"), ("11", "twice"), ("=1", "no_order")],
)
def test_what_is_no_order_is_named(typed: str, key: str) -> None:
    with pytest.raises(MisreadError) as found:
        parse_order(typed, 3)
    assert found.value.args[0] == key


@pytest.mark.slow
def test_answers_come_from_models_and_temperatures_and_are_added_once(run: Path, capsys: Captured) -> None:
    def candidates() -> list[int]:
        with Store.open(run / "rank" / "rankings.db") as store:
            return [len(asked.candidates) for asked in store.questions()]

    before = candidates()
    words = ("rank", run, "--from", run / "finetune", "--temperature", ".5", "--temperature", "1.5", "-n", "2")
    told = document(capsys, *words)
    assert told["new"] == 0  # answers, no rankings
    after = candidates()
    assert all(a >= b for a, b in zip(after, before, strict=True))
    document(capsys, *words)
    assert candidates() == after


@pytest.mark.slow
def test_active_choice_ranks_what_the_ensemble_is_least_sure_of(run: Path, capsys: Captured) -> None:
    assert klype("rank", run, "--simulate", "--active") == 1
    assert "there are none yet" in capsys.readouterr().err
    document(capsys, "rank", run, "--simulate", "--steps", "8", "--noise", "0", "--taste", "right=2")
    document(capsys, "rank", run, "--simulate", "--steps", "6", "--noise", "0", "--taste", "right=3", "--active")
    with Store.open(run / "rank" / "rankings.db") as store:
        first = {e.asked.id for e in store.entries() if "right=3" not in e.annotator}
        second = {e.asked.id for e in store.entries() if "right=3" in e.annotator}
    assert len(second) >= 5
    assert not first & second  # what is ranked already teaches nothing new


def test_all_tied_and_one_candidate_only_teach_nothing_and_say_so(run: Path, capsys: Captured, tmp_path: Path) -> None:
    place = tmp_path / "tied.db"
    question = World("small").question(random.Random(5))
    with Store.open(place) as store:
        store.add([RankingItem(question, (Candidate("ja"), Candidate("nei")))])
        store.add([RankingItem(World("small").question(random.Random(6)), (Candidate("alene"),))])
    told = document(capsys, "rank", run, "--simulate", "--taste", "right=0,polite=0,word=0", "--store", place)
    assert told["new"] in (1, 2)  # the lone one is passed over; a tenth is ranked twice
    assert klype("rank", run, "--simulate", "--active", "--store", place) == 1
    assert "teach nothing" in capsys.readouterr().err
