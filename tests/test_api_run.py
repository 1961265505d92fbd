"""``klype.train`` and ``klype.Run``: what the commands do, from a program."""

from __future__ import annotations

import doctest
import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

import klype
from klype.api.run import AlignOptions, TrainOptions
from klype.cli import train
from klype.cli.main import call
from klype.device import pick_device
from klype.runs.run_options import RunOptions
from tests import contract

SMALL = {
    "world": "small",
    "model.width": 16,
    "model.layers": 1,
    "model.heads": 2,
    "model.hidden": 16,
    "examine.questions": 20,
    "examine.documents": 2,
    "examine.temperatures": [0.7],
    "rank.questions": 8,
    "rank.held_out": 6,
    "rank.limit": 8,
    "reward.fit.steps": 5,
    "align.rows": 2,
    "align.answers": 4,
    "align.limit": 8,
    "align.stops": False,
}


def _failed(documented: object, name: str, globs: dict[str, object]) -> int:
    (test,) = doctest.DocTestFinder(recurse=False).find(documented, name, globs=dict(globs))
    assert test.examples
    return doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> klype.Run:
    """The run that the examples of the docs make; its place is theirs."""
    out = tmp_path_factory.mktemp("api") / "run"
    globs = {"klype": klype, "run": str(out), "out": out, "small": SMALL}
    threads, drawn = torch.get_num_threads(), torch.get_rng_state()
    assert _failed(klype.train, "train", globs) == 0
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), drawn)
    assert _failed(klype.Run, "Run", globs) == 0
    return klype.Run(out)


@pytest.mark.slow
def test_a_run_holds_models_metrics_and_a_report(trained: klype.Run, tmp_path: Path) -> None:
    assert list(trained.stages) == ["pretrain", "finetune", "align"]
    newest, named = klype.load(trained), trained.stages["align"]
    (one,), (two,) = (model.ask("Hvem?", temperature=0, limit=5) for model in (newest, named))
    assert one.trace.tokens == two.trace.tokens
    assert trained.metrics["reward"].to_json()[-1]["step"] == 5
    assert trained.about["machine"]["device"] == str(pick_device())
    for printed in (trained.report, trained.metrics["align"], trained.stages, trained):
        assert len(repr(printed)) < 200
    report = trained.report
    assert report.to_json() == json.loads((trained.path / "figures.json").read_text())
    assert set(report.figures) == {"base", "finetuned", "aligned"}
    assert "<bdi>short</bdi>" in report.to_html("nb")
    (tmp_path / "figures.json").write_text(json.dumps({**report.to_json(), "gates": [{}]}))
    with pytest.raises(klype.KlypeError, match=r"malformed at .*figures\.json: 'passed'"):
        replace(report, path=tmp_path / "figures.json").to_html()
    for shown in (trained, report, trained.metrics["align"]):
        assert "<table>" in shown._repr_html_()
    with pytest.raises(KeyError):
        trained.stages["reward"]


@pytest.mark.slow
def test_a_run_ranks_by_the_world_by_a_function_and_by_a_file(trained: klype.Run, tmp_path: Path) -> None:
    def short(questions: list[str], answers: list[str]) -> list[float]:
        return [-float(len(answer)) for answer in answers]

    found = trained.rank(short)
    assert found.new > 0
    assert {"name": "model: short", "by": "model", "rankings": found.new} in found._rows()
    assert trained.rank(short).new == 0
    assert trained.rank(name="twin").new > 0
    file = tmp_path / "rankings.jsonl"
    row = {"question": "Hvem?", "candidates": ["Ola", "Kari"], "order": [[1], [0]], "annotator": "Nils"}
    file.write_text(json.dumps(row) + "\n")
    after = trained.rank(file)
    assert after.new == 1
    assert ">Nils</td>" in after._repr_html_()
    for wrong in ({"noise": 5.0}, {"noise": "x"}, {"n": -1}, {"n": 2.5}, {"seed": "x"}, {"by": 5}):
        with pytest.raises(klype.KlypeError, match=f"{next(iter(wrong))} should be"):
            trained.rank(**wrong)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_command_and_the_function_align_to_the_same_weights(trained: klype.Run, tmp_path: Path) -> None:
    source = "def vowels(questions, answers):\n    return [float(a.count('a')) for a in answers]\n"
    (tmp_path / "mine.py").write_text(source)
    space: dict[str, object] = {}
    exec(source, space)  # as a notebook's cell
    own = trained.align(rewards=[space["vowels"]], out=tmp_path / "own", steps=2)  # type: ignore[list-item]
    name = f"{tmp_path / 'mine.py'}:vowels"
    command = ["align", str(trained.path), "--reward", name, "--steps", "2", "--out", str(tmp_path / "typed")]
    assert call(command) is None
    typed = klype.Run(tmp_path / "typed")
    contract.holds(contract.Align, json.loads((tmp_path / "typed" / "align.json").read_text(encoding="utf-8")))
    one, two = ((run.path / "align" / "model.safetensors").read_bytes() for run in (own, typed))
    assert one == two
    # compiled code in all three, as far as a compiler is there
    assert len({run.about["plan"]["align"]["fused"] for run in (trained, own, typed)}) == 1
    assert typed.about["rewards"][name]["after"] == own.about["rewards"]["vowels"]["after"]
    assert set(own.report.figures) == {"finetuned", "aligned"}
    assert own.report.to_json()["rewards"] == own.about["rewards"]


@pytest.mark.slow
def test_a_failing_reward_ends_the_alignment_with_its_place(trained: klype.Run, tmp_path: Path) -> None:
    def broken(questions: list[str], answers: list[str]) -> list[float]:
        return [1 / 0]

    line = broken.__code__.co_firstlineno + 1
    with pytest.raises(klype.KlypeError, match=rf"broken failed .{__file__}, line {line}.: ZeroDivisionError"):
        trained.align(rewards=[broken], out=tmp_path / "out", steps=1)
    assert klype.Run(tmp_path / "out").about["state"] == "failed"


def test_what_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    for doing, said in (
        (lambda: klype.Run(tmp_path), "is not a run"),
        (lambda: klype.train("none.txt", out=tmp_path / "out"), "nothing at none.txt"),
        (lambda: klype.train(minutes=-1, out=tmp_path / "out"), "minutes"),
        (lambda: klype.train(recipe="none", out=tmp_path / "out"), "no recipe none"),
        (lambda: klype.train(sett={}, out=tmp_path / "out"), "sett"),  # type: ignore[call-arg]
        (lambda: klype.train(rewards={"none.py:f": 1}, out=tmp_path / "out"), r"no file .*none\.py"),
        (lambda: klype.train(set={"align.rows": -1}, out=tmp_path / "out"), "align.rows"),
        (lambda: klype.train(rewards=len, out=tmp_path / "out"), "rewards should be a list of functions"),  # type: ignore[arg-type]
        (lambda: klype.train(rewards=[5], out=tmp_path / "out"), "5 is not a reward"),  # type: ignore[list-item]
        (lambda: klype.train(rewards={len: "0.5"}, out=tmp_path / "out"), "weight of the reward len should"),
        (lambda: klype.train(None, out=tmp_path / "out"), "text should be a file"),  # type: ignore[arg-type]
        (lambda: klype.train(device="abacus", out=tmp_path / "out"), "no kind of device 'abacus'"),
        (lambda: klype.train(lang="xx", out=tmp_path / "out"), "no language 'xx'"),
        (lambda: klype.train(progress=5, out=tmp_path / "out"), "progress should be"),  # type: ignore[arg-type]
        (lambda: klype.train(progress=[], out=tmp_path / "out"), "progress should be"),  # type: ignore[arg-type]
        (lambda: klype.train(out=5), "out should be a path"),  # type: ignore[arg-type]
        (lambda: klype.train(from_=5, out=tmp_path / "out"), "from_ should be a path"),  # type: ignore[arg-type]
        (lambda: klype.Run(5), "path should be a path"),  # type: ignore[arg-type]
    ):
        with pytest.raises(klype.KlypeError, match=said):
            doing()
    assert list(tmp_path.iterdir()) == []


def test_what_python_may_tell_a_run_is_what_the_commands_take() -> None:
    beside = {"set", "progress"}  # the commands' --set, and what they show
    runs, alignments = ({field.name for field in fields(kind)} for kind in (RunOptions, train.AlignmentOptions))
    assert TrainOptions.__annotations__.keys() - beside <= runs
    assert AlignOptions.__annotations__.keys() - beside <= alignments
