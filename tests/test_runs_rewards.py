"""Rewards that are plain functions: one place to add one; by name on the command line, as functions in the API."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_toys import Heard

from klype.cli.main import call
from klype.config import make
from klype.errors import KlypeError, UsageError
from klype.model import checkpoint
from klype.model.transformer import Transformer
from klype.preferences.records import Candidate, RankingItem
from klype.runs import ranking
from klype.runs.folder import read_run
from klype.runs.machine_probe import model_config
from klype.runs.pipeline import align_rounds
from klype.runs.recipe import read
from klype.runs.reward import rank_by_reward
from klype.runs.run_options import StageOptions
from klype.runs.run_start import recipe_of, start_of
from klype.runs.world_task import WorldTask
from klype.train.rewards import (
    QuestionPrompt,
    WeightedRewards,
    by_name,
    by_text,
    digest,
    load_function,
    scores,
    typed_rewards,
)
from klype.values import Question
from tests.test_runs_rounds import TINY, _quick  # noqa: F401

FILE = '''
def vowels(questions, answers):
    """The share of letters that are an a, e or o."""
    return [sum(letter in "aeo" for letter in answer) / max(1, len(answer)) for answer in answers]


def nothing(questions, answers):
    return [0] * len(answers)
'''
LOUD = (
    *TINY,
    "align.training.optimizer.rate=0.1",
    "align.training.schedule.warmup=0",
    "align.rows=4",
    "align.answers=8",
    "align.how.policy.beta=0",
)
STEPS = 6


@pytest.fixture(scope="module")
def babbler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a fine-tuned model that babbles, and some of its answers that nobody has ranked."""
    folder = tmp_path_factory.mktemp("rewards") / "run"
    recipe = read("world", LOUD)
    task = WorldTask(recipe, 0)
    torch.manual_seed(0)
    model = Transformer(model_config(recipe.model, task.chat.tokenizer.vocab_size))
    checkpoint.save(folder / "finetune", model, task.chat.tokenizer, {"stage": "finetune"})
    (folder / "run.json").write_text(json.dumps({"settings": recipe.model_dump(mode="json")}))
    with ranking.open_store(folder / "rank") as store:
        answers = [[Candidate(text) for text in (f"aaa{i}", f"xyz{i}", f"kao{i}")] for i in range(6)]
        store.add([RankingItem(Question(str(i), f"Hvem {i}?"), tuple(a), "train") for i, a in enumerate(answers)])
    return folder


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("file") / "mine.py"
    file.write_text(FILE)
    return file


def aligned(run: Path, out: Path, *rewards: str, capsys: pytest.CaptureFixture[str], **options: str) -> dict[str, Any]:
    """What ``klype align`` says, of the command as it is typed."""
    given = [part for reward in rewards for part in ("--reward", reward)]
    given += [part for name, value in options.items() for part in (f"--{name}", value)]
    assert call(["align", str(run), "--steps", str(STEPS), "--out", str(out), "--json", *given]) is None
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


@pytest.mark.slow
def test_a_reward_file_is_climbed_and_a_watched_one_is_not(
    babbler: Path, mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{mine}:vowels"
    more = {"steps": "14", "set": "align.rows=8"}  # so that the gain is beyond its interval
    whole = aligned(babbler, tmp_path / "climbed", f"{name}=20", capsys=capsys, **more)
    climbed = whole["rounds"][0]["rewards"]
    watched = aligned(babbler, tmp_path / "null", f"{mine}:nothing", f"{name}=0", capsys=capsys)["rounds"][0]["rewards"]
    assert [(row, climbed[row]["weight"]) for row in climbed] == [(name, 20)]
    assert [(row, watched[row]["weight"]) for row in watched] == [(f"{mine}:nothing", 1), (name, 0)]
    assert climbed[name]["sha256"] == digest(load_function(name))
    assert climbed[name]["before"] == watched[name]["before"]  # the same model, the same questions
    assert climbed[name]["gain"]["low"] > max(0, watched[name]["gain"]["high"])
    seen = whole["rounds"][0]["watch"]["seen"]
    change = whole["rounds"][0]["watch"]["change"]  # of the annotator's score, by which a verdict says that it fell
    assert change["value"] == pytest.approx(seen[-1]["truth"] - seen[0]["truth"])
    assert change["n"] == 64
    assert seen[-1]["reward"] == pytest.approx(20 * seen[-1]["rewards"][name])
    kept = read_run(tmp_path / "climbed")
    assert kept["rewards"] == climbed
    assert kept["settings"]["align"]["rewards"] == {name: 20}


@pytest.mark.slow
def test_a_resumed_alignment_has_the_same_rewards_and_a_changed_file_is_told(
    babbler: Path, mine: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.py"
    own.write_text(FILE)
    asked = {"stage": "align", "from_": str(babbler), "steps": STEPS, "out": tmp_path / "out"}
    settings = (f'align.rewards={{"{own}:vowels" = 20}}',)

    class Stopped(Heard):
        def step(self, metrics: Any) -> None:
            super().step(metrics)
            if len(self.steps) == 2:
                raise KeyboardInterrupt

    with pytest.raises(KlypeError, match="Stopped after step"):
        align_rounds(make(StageOptions, {**asked, "overrides": settings}), 1, "", Stopped())
    own.write_text(FILE + "\n")
    say = Heard()
    found = align_rounds(make(StageOptions, {**asked, "resume": True}), 1, "", say)
    assert list(found["rounds"][0]["rewards"]) == [f"{own}:vowels"]
    assert f"The reward {own}:vowels has changed since this run began." in say.notes
    recipe = recipe_of(start_of(StageOptions(stage="align", from_=str(tmp_path / "out"))), StageOptions(stage="align"))
    assert recipe.align.rewards == {}  # code is run when it is named, not because a run's folder names it


@pytest.mark.slow
def test_preference_methods_learn_the_order_that_a_reward_gives(
    babbler: Path, mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = aligned(babbler, tmp_path / "out", f"{mine}:vowels", capsys=capsys, method="dpo")["rounds"][0]
    assert document["method"] == "dpo"
    assert list(document["rewards"]) == [f"{mine}:vowels"]
    assert document["reward"] is None


@pytest.mark.slow
def test_answers_are_ranked_by_their_rewards_and_equal_ones_are_tied(babbler: Path, mine: Path) -> None:
    task = WorldTask(read("world", LOUD), 0, checkpoint.read_tokenizer(babbler / "finetune"))
    found = ranking.tied_answers(task, babbler / "rank")
    assert [one.ranks for _, one in found] == [(0, 0, 0)] * 6
    vowels = WeightedRewards({"v": (by_text(load_function(f"{mine}:vowels"), task.chat.tokenizer.decode_answer), 1)})
    assert [one.ranks for one in rank_by_reward(vowels, found)] == [(0, 2, 1)] * 6  # aaa, kao, xyz
    tied = WeightedRewards({"n": (by_text(load_function(f"{mine}:nothing"), str), 1)})
    assert [one.ranks for one in rank_by_reward(tied, found)] == [(0, 0, 0)] * 6
    assert rank_by_reward(tied, []) == []


def test_rewards_are_added_by_their_weights() -> None:
    asked = [QuestionPrompt((1,), Question("a", "Hva?", extra={"before": [{"role": "user", "content": "Hei"}]}))] * 2
    heard: list[str] = []

    def listens(questions: Sequence[str], answers: Sequence[str]) -> list[float]:
        heard.extend(questions)
        return [float(len(answer)) for answer in answers]

    one, two = by_text(listens, str), by_text(lambda questions, answers: np.array([1.0, -1.0]), str)
    both = WeightedRewards({"one": (one, 0.5), "two": (two, -3.0)})
    answers = [(4,), (4, 5)]
    each = both.each(asked, answers)
    assert both(asked, answers).tolist() == (0.5 * each["one"] - 3 * each["two"]).tolist()
    assert "Hei" in heard[0]  # what was said before the question, too


def fails(questions: Sequence[str], answers: Sequence[str]) -> list[float]:
    return [1 / len(answer) for answer in answers]


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (lambda q, a: [1.0], r"test_runs_rewards.py, line \d+\) gave 1 numbers for 2 answers"),
        (lambda q, a: ["1", 2], r"line \d+\) gave '1' for the answer “ja”: 1 of 2 are not finite numbers"),
        (lambda q, a: [1.0, float("nan")], r"gave nan for the answer “”: 1 of 2"),
        (lambda q, a: [None, None], r"gave None .*: 2 of 2"),
        (lambda q, a: 3, r"failed .*TypeError"),
        (lambda q: [1.0], r"failed .*line \d+\): TypeError"),
        (fails, r"The reward fails failed \(.*test_runs_rewards.py, line \d+\): ZeroDivisionError: division by zero"),
    ],
)
def test_what_is_no_reward_is_one_sentence_with_its_place(reward: Callable[..., Any], said: str) -> None:
    with pytest.raises(KlypeError, match=said) as error:
        scores(reward, ["Hva?", "Hva?"], ["ja", ""])
    assert "\n" not in error.value.message


def test_the_line_of_a_failure_is_where_it_was_raised() -> None:
    line = fails.__code__.co_firstlineno + 1
    with pytest.raises(KlypeError, match=f"line {line}"):
        scores(fails, ["Hva?"], [""])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none.py:vowels", "There is no file .*none.py with a reward"),
        ("mine.py:vowel", "no function vowel"),
        ("mine.py:", "no function"),
        ("broken.py:f", r"broken.py cannot be run \(line 2\): ZeroDivisionError"),
        ("spelled.py:f", r"spelled.py cannot be run \(line 1\): SyntaxError"),
        ("ends.py:f", "ends.py cannot be run .line 1.: SystemExit: 3"),
        ("text.txt:f", "not a Python file"),
    ],
)
def test_a_file_or_function_that_is_not_there_is_one_sentence(name: str, said: str, mine: Path, tmp_path: Path) -> None:
    for file, text in {
        "mine.py": FILE,
        "broken.py": "x = 0\n1 / x\n",
        "spelled.py": "def f(:\n",
        "ends.py": "raise SystemExit(3)\n",
        "text.txt": "f",
    }.items():
        (tmp_path / file).write_text(text)
    with pytest.raises(KlypeError, match=said):
        load_function(str(tmp_path / name))


def test_a_reward_is_typed_with_or_without_its_weight() -> None:
    assert typed_rewards(["model=1", "a/b.py:f", "c=d.py:g=-0.5"]) == {"model": 1, "a/b.py:f": 1, "c=d.py:g": -0.5}
    for wrong, said in ((["f"], "names no function"), (["a.py:f=much"], "not a number"), (["model", "model"], "twice")):
        with pytest.raises(UsageError, match=said):
            typed_rewards(wrong)


def test_functions_are_named_by_what_they_are_called() -> None:
    assert by_name([fails]) == ({"fails": 1.0}, {"fails": fails})
    assert by_name({fails: 2, "model": 1, "a.py:f": 3})[0] == {"fails": 2, "model": 1, "a.py:f": 3}
    with pytest.raises(UsageError, match="Two rewards"):
        by_name([lambda q, a: [0.0], lambda q, a: [1.0]])


def test_the_command_refuses_before_anything_is_made(babbler: Path, elsewhere: Path) -> None:
    for command in (["align", str(babbler)], ["run", "--minutes", "0.1"]):
        with pytest.raises(KlypeError, match=r"There is no file .*none\.py"):
            call([*command, "--reward", "none.py:f"])
        assert list(elsewhere.iterdir()) == []
