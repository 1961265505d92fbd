"""What chance decides in a run: noise of draws, splits, wrong answers. Each is a function of what it is for."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from klype.data.documents import split
from klype.data.readers import BadRows, TextDocument
from klype.data.seeds import draw_seed
from klype.engine.engine import Engine
from klype.examine.caching_source import Energy
from klype.model.config import ModelConfig
from klype.model.transformer import Transformer
from klype.preferences.records import Candidate, RankingItem
from klype.preferences.store import Store
from klype.runs import ranking
from klype.runs.ranking import DrawSettings, draw_for_task, draw_into
from klype.runs.recipe import read
from klype.runs.run_options import RunOptions
from klype.runs.task import draw_answers
from klype.runs.text_task import TextTask
from klype.runs.world_task import WorldTask
from klype.sources.source import NativeCodec, NativeSource

RECIPE = read("world", ("world=small", "model.width=16", "model.heads=2", "model.hidden=32", "model.layers=1"))


def babbler(task: WorldTask) -> Transformer:
    """A model that may say anything: its answers differ wherever the noise does."""
    torch.manual_seed(0)
    size = task.chat.tokenizer.vocab_size
    return Transformer(ModelConfig(vocab_size=size, width=16, layers=1, heads=2, hidden=16, window=128))


def test_no_two_draws_of_a_run_share_their_noise() -> None:
    seen: dict[tuple[int, int], tuple[int, int, float]] = {}
    for run_seed in (0, 1):
        task = WorldTask(RECIPE, run_seed)
        questions = list({q.prompt: q for q in task.held_out}.values())[:6]
        for temperature in (1.0, 1.25):
            groups = draw_answers(task, babbler(task), questions, temperature, 2)
            for at, traces in enumerate(groups):
                for trace in traces:
                    key = (trace.seed, trace.sample)
                    assert key not in seen, f"{(run_seed, at, temperature)} is drawn as {seen[key]} was"
                    seen[key] = (run_seed, at, temperature)
    assert len(seen) == 2 * 6 * 2 * 2


def test_candidates_drawn_in_two_portions_are_those_of_one() -> None:
    task = WorldTask(RECIPE, 0)
    model, questions = babbler(task), task.held_out[:6]
    parts = draw_for_task(model, task, questions[:2], 3) + draw_for_task(model, task, questions[2:], 3, first=2)
    whole = draw_for_task(model, task, questions, 3)
    assert [[c.text for c in group] for group in parts] == [[c.text for c in group] for group in whole]


@pytest.mark.slow
def test_rankings_are_as_many_as_there_is_time_for_and_a_hundred_at_least(tmp_path: Path) -> None:
    sizes = {"questions": 130, "held_out": 4, "drawn": 1, "hot": 0, "limit": 6}
    task = WorldTask(read("world", ("world=small", *(f"rank.{k}={v}" for k, v in sizes.items()))), 0)
    model, found = babbler(task), {}
    for seconds in (0.0, math.inf):
        with ranking.open_store(tmp_path / str(seconds)) as store:
            ranking.draw_and_rank(store, model, task, 0, seconds)
            found[seconds] = {e.asked.question.prompt: (e.order, e.asked.part) for e in store.entries()}
    assert found[0.0].items() < found[math.inf].items()
    assert 90 < sum(part == "train" for _, part in found[0.0].values()) <= 100 < len(found[math.inf]) - 4


def test_answers_drawn_into_a_store_at_two_temperatures_are_no_twins(tmp_path: Path) -> None:
    task = WorldTask(RECIPE, 0)
    tokenizer = task.chat.tokenizer
    engine = Engine(babbler(task), decode_bytes=tokenizer.token_bytes)
    source = NativeSource(engine, NativeCodec(tokenizer, task.chat))
    with Store.open(tmp_path / "rankings.db") as store:
        store.add([RankingItem(question, (Candidate("Hm.", "made"),)) for question in task.held_out[:5]])
        settings = DrawSettings((1.0, 1.25), n=16, limit=60)  # one in ten or so ends by then, and is kept
        draw_into(store, "it", source, settings)
        seeds = {
            (c.trace.seed, c.temperature)
            for asked in store.questions()
            for c in asked.candidates
            if c.trace is not None
        }
    assert len({temperature for _, temperature in seeds}) == 2
    assert len({seed for seed, _ in seeds}) == len(seeds)


@given(st.integers(0, 2**40), st.text(max_size=20), st.floats(0, 2))
def test_the_seed_of_a_draw_depends_on_run_question_and_temperature(seed: int, question: str, heat: float) -> None:
    own = draw_seed(seed, question, heat)
    assert 0 <= own < 2**31
    assert own == draw_seed(seed, question, heat)
    others = {draw_seed(seed + 1, question, heat), draw_seed(seed, question + "?", heat)}
    others |= {draw_seed(seed, question, heat + 0.25)}
    assert own not in others


@pytest.mark.slow
def test_which_rankings_are_held_out_does_not_depend_on_pythons_hashes() -> None:
    code = """
from klype.runs.ranking import _parts
from klype.values import Question
print(_parts([Question(str(i), "x" * 64 + f" {i % 50:02d}") for i in range(60)]))
"""
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
        ).stdout
        for seed in range(4)
    }
    assert len(said) == 1


def test_wrong_answers_are_not_right(tmp_path: Path) -> None:
    text, questions = tmp_path / "text.txt", tmp_path / "questions.jsonl"
    text.write_text(
        "".join(f"Reven gikk over isen for {i}. gang. Han så {i + 2} fisker i vannet.\n\n" for i in range(99))
    )
    rows = [{"question": f"Er {i} et partall?", "answers": ["ja" if i % 2 == 0 else "nei"]} for i in range(60)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = read("text", ("tokenizer.size=300",))
    options = RunOptions(text=(str(text),), instructions=questions, out=tmp_path / "run")
    task = TextTask(recipe, 0, options, BadRows())
    for seed, question in enumerate(task.held_out[:4]):
        wrong = task.wrong_answers(question, 5, seed)
        assert len(wrong) == 5
        assert not any(task.judge(question, answer, True).right for answer in wrong)


SENTENCES = st.lists(st.integers(4, 14), min_size=40, max_size=700)


@given(SENTENCES)
def test_of_a_short_text_no_more_than_a_sixth_is_held_out(lengths: list[int]) -> None:
    text = " ".join("ord" * n + "." for n in lengths)
    made = split([TextDocument(text, "f", 1)])
    held = sum(len(d.text) for d in made.held_out)
    assert held > 0
    if len(text) >= 2000:
        assert held <= len(text) / 6 + 120


def test_estimated_energy_goes_by_the_work_that_was_done() -> None:
    energy = Energy()
    before = energy.joules()
    time.sleep(0.05)  # a process that waits uses nothing
    waited = energy.joules() - before
    for _ in range(3):
        sum(i * i for i in range(100_000))
    worked = energy.joules() - before - waited
    assert 0 <= waited < worked
