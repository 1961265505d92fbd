"""A run's folder that is damaged: whatever reads it refuses it in a sentence, or reads what is whole."""

from __future__ import annotations

import contextlib
import io
import json
import random
from pathlib import Path

import pytest
from hostile import Target, attack, damaged_json, damaged_lines, damaged_text

from klype.cli.main import call
from klype.errors import KlypeError
from klype.jsons import read_saved, steps
from klype.runs.folder import read_run
from klype.runs.provenance import read_questions
from klype.runs.recipe import read
from klype.runs.run_json import Record, write_json
from klype.runs.run_options import RunOptions
from klype.runs.run_start import saved_start
from klype.studio.background_jobs import MetricsTail
from klype.studio.divergence import ExamRequest, exam_document
from klype.studio.runs_detail import RunInfo
from klype.studio.studio import Studio

FIGURE = {"value": 0.9, "low": 0.8, "high": 0.95, "n": 400, "unit": "share"}
ORDER = ExamRequest("model", "identity")
QUESTION = {"id": "a", "question": "Hvem?", "context": "", "answers": ["Per"], "choices": [], "extra": {"kind": "who"}}


def make(place: Path) -> None:
    (place / "pretrain").mkdir(parents=True)
    recipe = read("world").model_dump(mode="json")
    about = {"recipe": "world", "settings": recipe, "planned_s": 300.0, "inputs": {}}
    record = Record.start(place, RunOptions(minutes=5), about)
    record.content |= {
        "plan": {"pretrain": {"steps": 500, "planned_s": 161.1, "then": {"at": 100, "steps": 600}}},
        "done": {"pretrain": {}},
        "seconds": {"pretrain": 191.4, "total": 266.9},
        "figures": {"base": {"right": FIGURE, "s": {"value": None, "why": "no text"}}, "finetuned": {"kl": FIGURE}},
        "gates": [{"name": "kl", "value": 0.1, "threshold": 0.2, "passed": True}],
        "process": {"pid": 1, "created": 1.0},
    }
    record.save()
    rows = [{"step": i, "loss": 2.5, "rate": 0.01, "seconds": 0.5 * i} for i in range(1, 40)]
    (place / "pretrain" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "questions.jsonl").write_text("".join(json.dumps(QUESTION) + "\n" for _ in range(5)))
    write_json(place / "align.json", {"run": str(place), "before": {"right": FIGURE}, "seconds": {"total": 4.0}})
    (place / ORDER.key).mkdir()
    write_json(place / ORDER.key / "figures.json", {"model": "m", "figures": {"0.7": {"right": FIGURE}}})


def damage(place: Path, rng: random.Random) -> None:
    name = rng.choice(
        ("run.json", "run.json", "pretrain/metrics.jsonl", "questions.jsonl", "align.json", "figures.json")
    )
    file = place / ORDER.key / name if name == "figures.json" else place / name
    raw = file.read_bytes()
    if name.endswith(".jsonl"):
        file.write_bytes(damaged_lines(raw, rng))
    elif rng.random() < 0.7:
        file.write_text(json.dumps(damaged_json(json.loads(raw), rng)))
    else:
        file.write_bytes(damaged_text(raw, rng))


def look(place: Path) -> str:
    """Whatever reads a run's folder without its models. Lists name what they cannot read, and end well."""
    RunInfo(place, None)
    told = RunInfo(place, None)
    _ = told.gates, [told.figures(stage) for stage in ("pretrain", "finetune", "align")]
    tail = MetricsTail(place / "pretrain" / "metrics.jsonl")
    tail.read()
    _ = [tail.curve(name) for name in {name for row in tail.rows for name in row}], tail.last("loss")
    list(steps((place / "pretrain" / "metrics.jsonl").read_bytes().splitlines()))
    read_saved(place / "align.json")
    exam_document(Studio([], place, ["klype"]), ORDER)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        call(["runs", "list", "--folder", str(place.parent)])
        call(["runs", "list", "--folder", str(place.parent), "--json"])
    refused: KlypeError | None = None
    for read_it in (
        lambda: call(["runs", "compare", str(place), str(place)]),
        lambda: call(["runs", "compare", str(place), str(place), "--json"]),
        lambda: saved_start(RunOptions(out=place, resume=True)),
        lambda: read_questions(place / "questions.jsonl"),
        lambda: read_run(place),
    ):
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                read_it()
        except KlypeError as error:
            refused = error
    if refused is not None:
        raise refused
    return "right"


DAMAGED = Target("files of a run", make, damage, look)


@pytest.mark.slow
def test_a_damaged_run_is_refused_or_read_as_far_as_it_is_whole(tmp_path: Path) -> None:
    tally = attack(DAMAGED, tmp_path, range(40))
    assert not tally.faults, str(tally)


@pytest.mark.soak
def test_two_thousand_damaged_runs_are_refused_or_read_as_far_as_they_are_whole(tmp_path: Path) -> None:
    tally = attack(DAMAGED, tmp_path, range(2000))
    print(tally)
    assert not tally.faults, str(tally)
