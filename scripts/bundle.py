"""Makes the demo model that comes with klype (klype/bundled) of a finished run of the demo world.

Usage: .venv/bin/python scripts/bundle.py runs/world-DATE-1   (or: make bundle RUN=runs/world-DATE-1)

The weights are rounded to float16, and measured again: every figure must lie within the run's interval of it. What only
training needs (states to resume from, metrics, rankings) and the report are left out. run.json says so under "bundled".
Made on another machine, or of another run, it is another model: the hashes are those of the files that ship.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from klype.device import set_threads, thread_policy
from klype.durable import hash_file
from klype.examine.run_facts import MADE_BY
from klype.model import atomic_folder, checkpoint
from klype.runs.examine_stage import measure_stage
from klype.runs.folder import read_run
from klype.runs.listener import SilentListener
from klype.runs.run_options import RunOptions
from klype.runs.run_start import open_life_cycle
from klype.sources.model_files import DEMO, FILES, RUNS
from klype.train.reward_model import ABOUT, RewardModel

PLACE = Path(__file__).resolve().parent.parent / "klype" / "bundled"
MOST = 4_000_000  # bytes that the files may have in a wheel
KEPT = ("questions.jsonl", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
LEFT_OUT = ["*/resume", "*/metrics.jsonl", "rank", "report.html"]
ROUNDED = "The weights are float16: those of the run, which are float32, rounded to the nearest."
FIGURES = "All figures are the run's own. With the rounded weights each lies within its interval: see measured_again."


def rounded(source: Path, target: Path) -> None:
    """A checkpoint as it is, but for the weights and the type that the configuration tells."""

    def write(new: Path) -> None:
        for name in json.loads((source / atomic_folder.MANIFEST).read_bytes())["sha256"]:
            shutil.copyfile(source / name, new / name)
        weights = {name: w.half() for name, w in load_file(source / "model.safetensors").items()}
        save_file(weights, new / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((source / "config.json").read_bytes()) | {"torch_dtype": "float16"}
        (new / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    atomic_folder.write_folder(target, write)


def reward(source: Path, target: Path) -> None:
    """The heads as they are, on the rounded trunk."""
    heads = RewardModel.load(source, checkpoint.load(source).model)
    heads.trunk = checkpoint.load(target).model
    heads.save(target, json.loads((source / ABOUT).read_bytes())["about"])


def measured_again(run: Path) -> dict[str, dict[str, float]]:
    """What the rounded models score, by stage. Ends this where a figure lies beyond the interval that the run has."""
    again, beyond = {}, []
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / DEMO
        shutil.copytree(run, copy)
        opened = open_life_cycle(RunOptions(out=copy, resume=True), SilentListener())
        for name, had in read_run(run)["figures"].items():
            found: dict[str, Any] = measure_stage(opened, name)
            again[name] = {key: round(one["value"], 6) for key, one in found.items() if one["value"] is not None}
            for key, value in again[name].items():  # an older run may lack a measure, or have one more
                one = had.get(key) or {"value": None}
                if one["value"] is not None and not one["low"] <= value <= one["high"]:
                    beyond.append(f"{name}, {key}: {value}, and the run {one}")
    if beyond:
        sys.exit("\n".join(["Rounded to float16, the model is another one:", *beyond]))
    return again


def main(run: Path) -> None:
    thread_policy()
    set_threads()
    about = read_run(run)
    missed = [gate["name"] for gate in about.get("gates", []) if not gate["passed"]]
    if about.get("recipe") != "world" or about.get("state") != "done" or missed:
        sys.exit(f"{run} is no finished run of the demo world that passed every gate. {', '.join(missed)}")
    with tempfile.TemporaryDirectory() as place:
        demo = Path(place) / DEMO
        demo.mkdir()
        told = bundled(run, about, demo)
        shutil.rmtree(PLACE, ignore_errors=True)  # what was there stays where a figure or the size is refused
        shutil.copytree(place, PLACE)
    print(f"{told}, are in {PLACE.relative_to(Path.cwd())}.")


def bundled(run: Path, about: dict[str, Any], demo: Path) -> str:
    """Fills the folder, and lists its files beside it; how many, and of how many bytes."""
    for stage in (*MADE_BY.values(), "reward"):
        rounded(run / stage, demo / stage)
    reward(run / "reward", demo / "reward")
    for name in KEPT:
        shutil.copyfile(run / name, demo / name)
    facts = json.loads((run / "figures.json").read_bytes())
    facts |= {"run": DEMO, "address": DEMO, "program": "klype"}
    (demo / "figures.json").write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")
    about.pop("process", None)

    def tell(**more: Any) -> None:
        about["bundled"] = {"weights": ROUNDED, "left_out": LEFT_OUT, **more}
        (demo / "run.json").write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")

    tell()
    tell(figures=FIGURES, measured_again=measured_again(demo))
    files = {p.relative_to(demo).as_posix(): p for p in sorted(demo.rglob("*")) if p.is_file()}
    for file in files.values():
        file.chmod(0o644)  # weights are saved for their owner alone, and packages are for all
    if (size := sum(len(zlib.compress(file.read_bytes())) for file in files.values())) > MOST:
        sys.exit(f"The files have {size:,} bytes in a wheel, and {MOST:,} are the most.")
    listed = {"sha256": {name: hash_file(p) for name, p in files.items()}}
    (demo.parent / FILES).write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
    return f"{len(files)} files, {size:,} bytes in a wheel"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"One argument: a finished run, such as {RUNS}/world-DATE-1.")
    main(Path(sys.argv[1]))
