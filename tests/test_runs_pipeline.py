"""Whole lives in miniature: the world, own text, resumed and refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from run_toys import Heard

from klype.cli.main import app
from klype.config import make
from klype.data.rows import read_questions
from klype.errors import KlypeError, UsageError
from klype.examine.run_facts import read as read_facts
from klype.model import checkpoint
from klype.model.transformer import Transformer
from klype.preferences.store import Store
from klype.runs import pipeline
from klype.runs.folder import read_run
from klype.runs.machine_probe import model_config
from klype.runs.pipeline import align_rounds
from klype.runs.recipe import read
from klype.runs.run_json import MEANING, recorded_options, resumed_options
from klype.runs.run_options import RunOptions, StageOptions
from klype.text.tokenizer import Tokenizer
from tests import contract

TINY = (
    "model.width=16",
    "model.heads=2",
    "model.hidden=32",
    "examine.questions=40",
    "examine.documents=120",  # a quarter of them in so short a time
    "rank.questions=30",
    "rank.held_out=20",
    "reward.fit.steps=60",
    "reward.gate=0.5",
)
WORLD = ("world=small", *TINY)
STORY = "Reven gikk over isen. Han så en fisk i vannet. «God dag,» sa reven. Fisken svarte ikke, for den var klok.\n\n"


def life(folder: Path, **options: object) -> dict[str, object]:
    folder.mkdir(parents=True, exist_ok=True)
    return pipeline.run(make(RunOptions, {"minutes": 0.12, "out": folder, **options}), Heard())


@pytest.fixture(scope="module")
def world_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    folder = tmp_path_factory.mktemp("runs") / "world"
    return folder, life(folder, overrides=WORLD)


def test_a_world_run_ends_with_three_models_a_reward_and_a_report(world_run: tuple[Path, dict[str, object]]) -> None:
    folder, document = world_run
    contract.holds(contract.Run, document)
    stages = document["stages"]
    assert isinstance(stages, dict)
    assert all(stages[name] is not None for name in ("base", "finetuned", "aligned"))
    for name in ("right", "right_fixed", "polite", "concise", "annotator", "s", "kl", "retrieval_hard"):
        figure = stages["aligned"][name]
        assert figure["low"] <= figure["value"] <= figure["high"]
    assert (folder / "report.html").is_file()
    for stage in ("pretrain", "finetune", "align", "reward"):
        assert checkpoint.load(folder / stage).tokenizer.vocab_size > 262
    assert {g["name"] for g in document["gates"]} >= {"retrieval_hard", "kl", "s", "seconds"}  # type: ignore[attr-defined]
    for gate in document["gates"]:  # type: ignore[attr-defined]
        assert {"name", "value", "low", "high", "n", "threshold", "status", "passed"} <= gate.keys()
        assert gate["passed"] == (gate["status"] == "passed")
        assert gate["name"] == "seconds" or gate["value"] is None or gate["n"] >= 30
    assert json.dumps(document)
    (calibrated,) = read_facts(folder / "figures.json").get("calibration", [{"stage": "finetuned"}])
    assert calibrated["stage"] == "finetuned"  # the aligned model has another style than the truth


def test_rankings_without_text_say_that_text_is_missing(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n', encoding="utf-8")
    with pytest.raises(UsageError, match=r"there is no text\. .*text=FILES"):
        life(tmp_path / "run", preferences=tmp_path / "p.jsonl")


def test_a_model_without_chat_template_is_told_how_to_get_one(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["a b c"], 300)
    tokenizer.template = None
    shape = model_config(read("world", WORLD).model, tokenizer.vocab_size)
    checkpoint.save(tmp_path / "model", Transformer(shape), tokenizer, {})
    options = StageOptions(stage="finetune", from_=str(tmp_path / "model"), out=tmp_path / "run", overrides=WORLD)
    with pytest.raises(KlypeError, match=r"has no chat template.*as chat_template\.jinja"):
        pipeline.train_stage(options, Heard())


def test_figures_in_the_report_are_those_in_run_json(world_run: tuple[Path, dict[str, object]]) -> None:
    folder, document = world_run
    facts = read_facts(folder / "figures.json")
    about = json.loads((folder / "run.json").read_text())
    assert facts["stages"] == about["figures"] == document["stages"]
    (clock,) = (gate["value"] for gate in facts["gates"] if gate["name"] == "seconds")
    assert facts["seconds"] == about["seconds"] == document["seconds"]
    assert clock == facts["seconds"]["total"]
    assert about["state"] == "done"
    assert {"right", "polite", "annotator"} <= facts["gains"].keys()
    taken = {row["stage"]: row["steps"] for row in facts["provenance"]["plan"]}
    assert taken == {stage: json.loads((folder / stage / "run.json").read_text())["steps"] for stage in taken}


def test_the_held_out_questions_are_a_question_file(world_run: tuple[Path, dict[str, object]]) -> None:
    folder, _ = world_run
    questions = read_questions([folder / "questions.jsonl"])
    assert len(questions) >= 40
    assert all(q.answers for q in questions)
    assert len({q.id for q in questions}) == len({q.prompt for q in questions}) == len(questions)
    fixed = [q.extra["fixed"] for q in questions]
    assert fixed == sorted(fixed)
    assert not any(fixed[:40])
    assert any(fixed)


@pytest.mark.slow
def test_a_finished_run_resumed_does_nothing_anew(world_run: tuple[Path, dict[str, object]]) -> None:
    folder, document = world_run
    before = (folder / "align" / "model.safetensors").read_bytes()
    again = life(folder, resume=True, overrides=WORLD)
    assert (folder / "align" / "model.safetensors").read_bytes() == before
    assert again["stages"] == document["stages"]


@pytest.mark.slow
def test_figures_of_an_earlier_klype_are_measured_again_before_a_report_says_what_they_mean_now(
    world_run: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    folder, document = world_run
    old = tmp_path / "old"
    shutil.copytree(folder, old)
    about = json.loads((old / "run.json").read_text(encoding="utf-8"))
    del about["meaning"]
    for stage in about["figures"].values():
        del stage["right_fixed"]
        stage["right"]["value"] = stage["right"]["low"] = stage["right"]["high"] = 0.123
    about["reward"]["ceiling"] = {"value": 0.123, "low": 0.1, "high": 0.2, "n": 9, "unit": "share of pairs"}
    (old / "run.json").write_text(json.dumps(about), encoding="utf-8")
    again = life(old, resume=True, overrides=WORLD)
    assert again["stages"] == document["stages"]
    assert again["reward"] == document["reward"]
    assert json.loads((old / "run.json").read_text(encoding="utf-8"))["meaning"] == MEANING


@pytest.mark.slow
def test_a_weak_reward_model_stops_alignment_and_says_why(tmp_path: Path) -> None:
    overrides = (*WORLD[:-1], "reward.gate=1.0")
    document = life(tmp_path / "weak", overrides=overrides)
    stages = document["stages"]
    assert isinstance(stages, dict)
    assert stages["aligned"] is None
    assert "reward model agrees with its annotator" in str(document["why"])
    assert not (tmp_path / "weak" / "align").exists()
    assert (tmp_path / "weak" / "report.html").is_file()
    forced = life(tmp_path / "weak", resume=True, force=True, overrides=overrides)
    assert forced["stages"]["aligned"] is not None  # type: ignore[index]


class StopAt(Heard):
    """Ctrl-C after a step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.at = step

    def step(self, metrics: object) -> None:
        super().step(metrics)  # type: ignore[arg-type]
        if len(self.steps) == self.at:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "finetune", "align"])
def test_resumed_is_straight(stage: str, world_run: tuple[Path, dict[str, object]], tmp_path: Path) -> None:
    start = "" if stage == "pretrain" else str(world_run[0])
    overrides = (*WORLD, "align.stops=false")  # how good a model of seven seconds is depends on the machine
    common = {"stage": stage, "steps": 12, "overrides": overrides, "seed": 3, "from_": start}

    def go(folder: Path, say: Heard, resume: bool = False) -> bytes:
        folder.mkdir(exist_ok=True)
        pipeline.train_stage(make(StageOptions, {**common, "out": folder, "resume": resume}), say)
        return (folder / stage / "model.safetensors").read_bytes()

    straight = go(tmp_path / "straight", Heard())
    with pytest.raises(KlypeError, match="Stopped after step 5"):
        go(tmp_path / "stopped", StopAt(5))
    assert go(tmp_path / "stopped", Heard(), resume=True) == straight


def test_a_resumed_run_keeps_what_was_asked(tmp_path: Path) -> None:
    saved = recorded_options(RunOptions(minutes=2, seed=5, text=("a.txt",), data=Path("hf:a/b")))
    kept = resumed_options(RunOptions(resume=True, text=("a.txt",)), saved)
    assert (kept.minutes, kept.seed, kept.text, kept.data) == (2, 5, (str(Path("a.txt").absolute()),), Path("hf:a/b"))
    with pytest.raises(UsageError, match="with seed=5, not with seed=6"):
        resumed_options(RunOptions(resume=True, seed=6), saved)


OTHER = {int: 7, float: 0.25, str: "b", bool: True, tuple: ("a.rows=1", "a.width=2")}


@pytest.mark.parametrize(("options", "command"), [(RunOptions, "run"), (StageOptions, "train")])
def test_what_differs_from_the_start_is_named_by_its_option(
    options: type[RunOptions] | type[StageOptions], command: str
) -> None:
    commands = typer.main.get_command(app()).commands  # type: ignore[attr-defined]
    named = {"STAGE", *(name for parameter in commands[command].params for name in parameter.opts)}
    begun = {} if options is RunOptions else {"stage": "pretrain"}
    saved = recorded_options(make(options, begun))
    given = {"stage": "finetune", "lora": 3, "steps": 3, "size": "tiny", "minutes": 2.5}
    paths = {name: Path("b") for name in ("instructions", "preferences", "data")}
    for name in saved:
        default = options.__dataclass_fields__[name].default
        now = make(options, {**begun, name: {**given, **paths}.get(name, OTHER.get(type(default)))})
        with pytest.raises(UsageError, match="This run was started with") as error:
            resumed_options(now, saved)
        assert re.findall(r"--[\w-]+|STAGE", error.value.message)[-1] in named, error.value.message
    now = make(options, {**begun, "overrides": OTHER[tuple]})
    with pytest.raises(UsageError, match=r"without set, not with set a\.rows=1 set a\.width=2"):
        resumed_options(now, saved)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for i in range(30):
        animal = ("bjørnen", "ulven", "haren", "elgen", "gaupa")[i % 5]
        (folder / f"{i}.txt").write_text((STORY.replace("reven", animal) + f"Dette var fortelling {i}.\n\n") * 4)
    return folder


SMALL_TEXT = (
    *TINY,
    "tokenizer.size=320",
    "model.window=64",
    "rank.questions=40",
    "rank.held_out=8",
    "rank.limit=12",
    "align.limit=12",
)


@pytest.mark.slow
def test_own_text_goes_through_all_stages(texts: Path, tmp_path: Path) -> None:
    # How good a reward model seven seconds buy is the machine's affair; that alignment is left out has its own test.
    document = life(tmp_path / "text", text=(str(texts),), overrides=SMALL_TEXT, force=True)
    stages = document["stages"]
    assert isinstance(stages, dict)
    for name in ("base", "finetuned", "aligned"):
        assert stages[name]["bits_per_byte"]["value"] > 0
    assert document["yardsticks"]["xz"] > 0  # type: ignore[index]
    notes = read_facts(tmp_path / "text" / "figures.json")["notes"]
    assert any("No instructions were given" in str(note) for note in notes)
    # a stage that goes on from it, given nothing else, goes on with its text and recipe
    again = tmp_path / "again"
    stage = {"stage": "rank", "from_": str(tmp_path / "text"), "out": again, "overrides": ("rank.questions=20",)}
    pipeline.train_stage(make(StageOptions, stage), Heard())
    told = read_run(again)
    assert (told["settings"]["kind"], told["settings"]["tokenizer"]["size"]) == ("text", 320)
    assert told["settings"]["rank"]["questions"] == 20
    assert told["asked"]["text"] == [str(texts)]
    aligned = {"stage": "align", "from_": str(tmp_path / "text"), "out": tmp_path / "aligned", "steps": 1}
    found = align_rounds(make(StageOptions, {**aligned, "force": True}), 1, "", Heard())
    assert found["verdict"]["nb"]


def _changed(file: Path) -> None:
    file.write_text(file.read_text().replace("Reven", "Ulven").replace("Hva", "Hvem"))


def _added(file: Path) -> None:
    (file.parent / "new.txt").write_text(STORY * 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "name", "happens", "said"),
    [
        ("text", "d/0.txt", _changed, "0.txt has changed since this run began"),
        ("text", "d/0.txt", Path.unlink, "0.txt is missing, which this run began with"),
        ("text", "d/0.txt", _added, "new.txt is new since this run began"),
        ("data", "d/0.txt", _changed, "0.txt has changed since this run began"),
        ("instructions", "i.jsonl", _changed, "i.jsonl has changed since this run began"),
        ("preferences", "p.jsonl", _changed, "p.jsonl has changed since this run began"),
    ],
)
def test_a_run_does_not_go_on_with_other_files(
    option: str, name: str, happens: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    d, i, p, out = tmp_path / "d", tmp_path / "i.jsonl", tmp_path / "p.jsonl", tmp_path / "run"
    d.mkdir()
    for n in range(4):
        (d / f"{n}.txt").write_text(f"Fortelling {n}. {STORY}" * 4)
    i.write_text("".join(f'{{"question": "Hva sa dyr {n}?", "answer": "God dag {n}."}}\n' for n in range(30)))
    p.write_text("".join(f'{{"prompt": "Hva sa dyr {n}?", "chosen": "Hei.", "rejected": "Nei."}}\n' for n in range(9)))
    read = {"data": d} if option == "data" else {"text": (str(d),), "instructions": i, "preferences": p}
    asked = {"stage": "pretrain", "out": out, "steps": 9, "overrides": SMALL_TEXT, **read}
    out.mkdir()
    with pytest.raises(KlypeError, match="Stopped after step 2"):
        pipeline.train_stage(make(StageOptions, asked), StopAt(2))
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    kept = (tmp_path / name).read_bytes()
    happens(tmp_path / name)
    with pytest.raises(UsageError, match=said) as error:
        pipeline.train_stage(StageOptions(stage="pretrain", out=out, resume=True), Heard())
    assert "start another run with another --out" in error.value.hint
    assert before == {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    (tmp_path / name).write_bytes(kept)
    (d / "new.txt").unlink(missing_ok=True)
    with pytest.raises(KlypeError, match="Stopped after step 4"):
        pipeline.train_stage(StageOptions(stage="pretrain", out=out, resume=True), StopAt(2))


@pytest.mark.slow
def test_a_run_in_the_folder_of_its_text_is_gone_on_with_from_another_folder(tmp_path: Path, elsewhere: Path) -> None:
    texts = elsewhere
    for n in range(4):
        (texts / f"{n}.txt").write_text(f"Fortelling {n}. {STORY}" * 4)
    asked = {"stage": "pretrain", "text": (".",), "out": Path("run"), "steps": 6, "overrides": SMALL_TEXT}
    Path("run").mkdir()
    with pytest.raises(KlypeError, match="Stopped after step 2"):
        pipeline.train_stage(make(StageOptions, asked), StopAt(2))
    (texts / "run" / "notes.txt").write_text("What is written beside a run's files is none of its text.")
    goes_on = [sys.executable, "-m", "klype", "train", "pretrain", "--out", str(texts / "run"), "--resume"]
    subprocess.run(goes_on, cwd=tmp_path, check=True)
    assert sorted(read_run(texts / "run")["inputs"]) == [str(texts / f"{n}.txt") for n in range(4)]


@pytest.mark.slow
def test_where_all_answers_are_liked_alike_nothing_is_imitated_and_the_run_ends(texts: Path, tmp_path: Path) -> None:
    one_each = ("rank.drawn=1", "rank.hot=0", "rank.wrong=0")
    document = life(tmp_path / "tied", text=(str(texts),), overrides=(*SMALL_TEXT, *one_each), force=True)
    stages = document["stages"]
    assert isinstance(stages, dict)
    assert stages["finetuned"] is not None
    assert stages["aligned"] is None
    assert document["reward"] is None
    assert "No question has two different answers" in str(document["why"])
    assert "Ikke noe spørsmål har to ulike svar" in (tmp_path / "tied" / "report.html").read_text()


@pytest.mark.slow
def test_own_instructions_and_preferences_are_used(texts: Path, tmp_path: Path) -> None:
    rows = [{"question": f"Hva sa dyr nummer {i}?", "answer": f"God dag nummer {i}."} for i in range(60)]
    (tmp_path / "i.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    ranked = [
        {"prompt": r["question"], "chosen": r["answer"], "rejected": "Nei nei nei nei nei nei."} for r in rows[:30]
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ranked))
    document = life(
        tmp_path / "own",
        text=(str(texts),),
        instructions=tmp_path / "i.jsonl",
        preferences=tmp_path / "p.jsonl",
        overrides=(*SMALL_TEXT, "pretrain.passes=2"),
    )
    assert document["reward"]["pair_accuracy"]["value"] is not None  # type: ignore[index]
    assert document["reward"]["ceiling"]["value"] is None  # type: ignore[index]
    plan = json.loads((tmp_path / "own" / "run.json").read_text())["plan"]["finetune"]
    assert plan.get("then", plan)["steps"] <= 8 * len(rows) / 16  # lest few rows are learnt by heart
    assert document["planned_s"] < 0.12 * 60  # nor is the text read more than twice, and the time is not taken
    with Store.open(tmp_path / "own" / "rank" / "rankings.db", read_only=True) as store:
        parts = [entry.asked.part for entry in store.entries()]
        assert 1 <= parts.count("held-out") < len(parts) <= 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "nothing"}, "There is no recipe nothing"),
        ({"recipe": "text"}, "needs text"),
        ({"recipe": "world", "text": ("x.txt",)}, "takes no text of your own"),
        ({"overrides": ("pretrain.stepz=1",)}, "stepz"),
        ({"overrides": ("model.width=-1",)}, "width"),
    ],
)
def test_bad_questions_are_answered_in_one_sentence(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        life(tmp_path / "bad", **options)


def test_a_text_shorter_than_a_window_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("".join(f"Dette er setning nummer {i}.\n\n" for i in range(12)))
    with pytest.raises(KlypeError, match="too short to learn from"):
        life(tmp_path / "short", text=(str(tmp_path / "short.txt"),))


@pytest.mark.parametrize("stage", ["finetune", "rank", "reward", "align"])
def test_a_later_stage_needs_a_model(stage: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a model to start from"):
        pipeline.train_stage(make(StageOptions, {"stage": stage, "out": tmp_path}), Heard())
