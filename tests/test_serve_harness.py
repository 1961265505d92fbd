"""lm-evaluation-harness' ``local-completions``, as it is, against the server over a real socket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from klype.model import checkpoint
from klype.serve.app import app
from tests.serve_toys import running, served

WHY = "lm-evaluation-harness is not whole: pip install 'klype[bench]' brings it"
lm_eval = pytest.importorskip("lm_eval", reason=WHY)
pytest.importorskip("tenacity", reason=WHY)

CHOICES = ["i byen", "på fjellet", "en tur"]
QUESTIONS = [
    {"question": "hun gikk", "choices": CHOICES, "answer": 0},
    {"question": "jeg gikk en tur", "choices": CHOICES, "answer": 1},
    {"question": "blåbær og øl", "choices": CHOICES, "answer": 2},
    {"question": "hvor gikk", "choices": CHOICES, "answer": 0},
]


@pytest.mark.slow
def test_the_harness_measures_what_the_engine_says(tmp_path: Path) -> None:
    from lm_eval.tasks import TaskManager

    one, reference = served(window=256), served(window=256).source
    folder = tmp_path / "toy"
    checkpoint.save(folder, one.source.engine.model, one.tokenizer, {})
    with running(app([one])) as url:
        options = (
            f"model=toy,base_url={url}/v1/completions,tokenizer={folder},tokenizer_backend=huggingface,max_length=256"
        )
        found = lm_eval.simple_evaluate(
            model="local-completions",
            model_args=f"{options},num_concurrent=2",
            tasks=[str(_task(tmp_path, "choose")), str(_task(tmp_path, "write"))],
            task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
            log_samples=True,
            bootstrap_iters=0,
        )
    chosen = found["samples"]["choose"]
    assert len(chosen) == len(QUESTIONS)
    for sample in chosen:
        for (context, continuation), (logp, greedy) in zip(_asked(sample), _answered(sample), strict=True):
            whole = one.tokenizer.encode(context + continuation)
            start = len(one.tokenizer.encode(context))
            trace = reference.engine.score([whole[:start]], [whole[start:]], 1)[0]
            assert logp == pytest.approx(trace.logp, abs=1e-3)
            best = all(int(step.distribution.ids[0]) == step.token for step in trace.steps if step.distribution)
            assert greedy is best
    right = [max(range(3), key=lambda i: _answered(s)[i][0]) == s["doc"]["answer"] for s in chosen]
    assert found["results"]["choose"]["acc,none"] == pytest.approx(sum(right) / len(right))
    for sample in found["samples"]["write"]:
        assert isinstance(sample["resps"][0][0], str)
        assert "e" not in sample["resps"][0][0]


def _asked(sample: dict[str, Any]) -> list[tuple[str, str]]:
    arguments = sample["arguments"]
    rows = arguments.values() if isinstance(arguments, dict) else arguments
    return [(row["arg_0"], row["arg_1"]) if isinstance(row, dict) else (row[0], row[1]) for row in rows]


def _answered(sample: dict[str, Any]) -> list[tuple[float, bool]]:
    return [(float(response[0][0]), str(response[0][1]) == "True") for response in sample["resps"]]


def _task(folder: Path, name: str) -> Path:
    """A task of the harness' own kind, in a file: nothing is downloaded."""
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS), encoding="utf-8")
    task: dict[str, Any] = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "doc_to_text": "{{question}}",
    }
    if name == "choose":
        task |= {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "answer"}
        task |= {"metric_list": [{"metric": "acc"}]}
    else:
        task |= {"output_type": "generate_until", "doc_to_target": "{{choices[answer]}}"}
        task |= {"generation_kwargs": {"until": ["e"], "max_gen_toks": 8, "do_sample": False}}
        task |= {"metric_list": [{"metric": "exact_match"}]}
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(task), encoding="utf-8")  # JSON is YAML
    return file
