"""Decoders on toys whose answers can be enumerated: they find the known mode, keep to their budget, and with a budget
of one plain answer they are plain."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from klype.answers import decoders
from klype.answers.decoder_requests import DecodeQuestion, DecoderSettings, parse_budget
from klype.answers.decoders import DECODERS, DecoderResult, decide
from klype.errors import UsageError
from klype.sources.source import answers
from klype.values import Request, Sampling
from tests.toy_sources import enumerate_answers, random_table, table_source

START, LIMIT = 1, 5
# After the start "a": "b" alone is the likeliest way, but "c" and "d" mean the same and are likelier together.
SPLIT = np.array([[1, 0, 0, 0, 0], [0, 0, 0.4, 0.3, 0.3], *np.tile(np.eye(5)[0], (3, 1))])
# "b" is the likeliest first token, but what follows it is spread: "cc" is the most probable answer.
SPREAD = np.array([[1, 0, 0, 0], [0, 0, 0.55, 0.45], [0.3, 0.4, 0.3, 0], [0.95, 0.0, 0.0, 0.05]])
NAMES = [name for name in DECODERS if name != "backspace"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def likes_c(prompts: Any, tokens: Any) -> list[float]:
    return [50.0 * (3 in answer) for answer in tokens]


def question(meaning: Any = lambda text: text, **more: Any) -> DecodeQuestion:
    known = {
        "likelihood": decoders.likelihood_check,
        "statement": decoders.statement_check(lambda text: ((1,), (2, 0))),
        "yes": decoders.yes_no_check(lambda text: (1,), [2], [3]),
        "reward": decoders.reward_check(likes_c),
    }
    return DecodeQuestion((START,), meaning, LIMIT, (0,), checks=known, **more)


def one(table: np.ndarray, name: str, budget: float, asked: DecodeQuestion | None = None, **more: Any) -> DecoderResult:
    source, _ = table_source(table)
    return decide(source, [asked or question()], name, budget, **more)[0]


def merged(text: str) -> str:
    return {"c": "x", "d": "x"}.get(text, text)


def test_greedy_misses_what_many_wordings_say() -> None:
    assert one(SPLIT, "greedy", 1).choice.chosen.text == "b"


@pytest.mark.parametrize(("name", "budget"), [("consensus", 200), ("search", 8)])
def test_the_most_probable_meaning_is_found(name: str, budget: float) -> None:
    choice = one(SPLIT, name, budget, question(merged)).choice
    assert choice.chosen.meaning == "x"
    assert choice.shares[0].share == pytest.approx(0.6, abs=0.1 if name == "consensus" else 1e-6)
    assert math.fsum(share.share for share in choice.shares) == pytest.approx(1)


@pytest.mark.slow
def test_consensus_gives_the_mode_of_a_known_distribution() -> None:
    for seed in range(4):
        table = random_table(np.random.default_rng(seed), 5)
        exact = enumerate_answers(table, START, LIMIT)
        first, second = sorted(exact.values())[-2:][::-1]
        mode = max(exact, key=lambda tokens: exact[tokens])
        found = one(table, "consensus", 1000)
        if first - second > 0.1:  # two hundred samples or more tell them apart
            assert found.choice.chosen.tokens == (*mode, 0)


@pytest.mark.parametrize("seed", range(6))
def test_best_first_returns_the_enumerated_mode(seed: int) -> None:
    table = random_table(np.random.default_rng(seed), 5)
    exact = enumerate_answers(table, START, LIMIT)
    mode = max(exact, key=lambda tokens: exact[tokens])
    found = one(table, "search", 400).choice.chosen
    assert found.tokens == (*mode, 0)
    assert math.exp(found.logp) == pytest.approx(exact[mode], rel=1e-4)
    by_meaning: dict[int, float] = {}
    for tokens, mass in exact.items():
        by_meaning[len(tokens) % 2] = by_meaning.get(len(tokens) % 2, 0.0) + mass
    whole = one(table, "search", 300, question(lambda text: len(text) % 2)).choice
    if abs(by_meaning[0] - by_meaning[1]) > 0.2:
        assert whole.chosen.meaning == max(by_meaning, key=lambda m: by_meaning[m])


def test_search_finds_what_greedy_walks_past() -> None:
    assert one(SPREAD, "greedy", 1).choice.chosen.text[:1] == "b"
    assert one(SPREAD, "search", 4).choice.chosen.text == "c"
    assert one(SPREAD, "backtrack", 6).choice.chosen.text == "c"


@pytest.mark.parametrize("name", NAMES)
def test_a_budget_of_one_is_plain(name: str) -> None:
    for seed in range(5):
        table = random_table(np.random.default_rng(seed), 6)
        source, _ = table_source(table)
        asked = question(seed=seed)
        warm = Sampling(1.0 if name == "sample" else 0.0)
        (((plain,),),) = [answers(source, [Request((START,), 1, LIMIT, warm, seed, (0,))])]
        found = decide(source, [asked], name, 1.0)[0]
        assert found.choice.chosen.tokens == plain.tokens
        assert found.passes == found.plain_passes == len(plain.steps)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", [1, 2, 3.5, 12])
def test_budgets_are_kept_and_equal_seeds_decide_alike(name: str, budget: float) -> None:
    tables = [random_table(np.random.default_rng(seed), 6, 0.8) for seed in range(2)]
    for table in tables:
        asked = [question(merged, seed=seed) for seed in range(2)]
        first, again = (decide(table_source(table)[0], asked, name, budget) for _ in range(2))
        assert first == again
        assert all(d.passes <= budget * d.plain_passes for d in first)
        alone = [decide(table_source(table)[0], [q], name, budget)[0] for q in asked]
        assert [d.choice.chosen.text for d in alone] == [d.choice.chosen.text for d in first]


def test_a_check_overrules_the_model() -> None:
    choice = one(SPLIT, "verify-reward", 8).choice
    assert choice.chosen.text == "d" or choice.chosen.text == "c"
    with pytest.raises(UsageError, match="nothing to check with"):
        one(SPLIT, "verify-yes", 8, DecodeQuestion((START,), str, LIMIT, (0,)))


def back_table() -> np.ndarray:
    """After "a" comes "b"; after "b" the token e (4) that takes it back; after "c" the end."""
    return np.array([[1, 0, 0, 0, 0], [0, 0, 0.6, 0.4, 0], [0.1, 0, 0, 0, 0.9], [1, 0, 0, 0, 0], [0, 0, 1, 0, 0]])


def test_a_word_is_taken_back_and_another_comes() -> None:
    found = one(back_table(), "backspace", 6, tuning=DecoderSettings(back=4))
    assert found.choice.chosen.text == "c"
    with pytest.raises(UsageError, match="takes a word back"):
        one(back_table(), "backspace", 6)


@pytest.mark.parametrize("seed", range(8))
def test_backspace_never_escapes_the_prompt(seed: int) -> None:
    """Even a model that takes back all it can leaves the prompt, ends, and keeps to its budget."""
    table = random_table(np.random.default_rng(seed), 5)
    table[:, 4] += 2.0
    table /= table.sum(1, keepdims=True)
    found = one(table, "backspace", 9, tuning=DecoderSettings(back=4))
    assert 4 not in found.choice.chosen.tokens
    assert found.passes <= 9 * found.plain_passes


def test_budgets_as_they_are_written() -> None:
    assert [parse_budget(text) for text in ("8×", "8x", "8", "2,5x")] == [8, 8, 8, 2.5]
    for wrong in ("0", "x", "-3x", "many", "nan", "inf"):
        with pytest.raises(UsageError, match="budget"):
            parse_budget(wrong)
    with pytest.raises(UsageError, match="no decoder"):
        one(SPLIT, "guess", 2)
