"""Computed elsewhere = computed on the processor: engine, speculation and transformers' models.

Elsewhere is whatever accelerator there is, and always the pretended one (pretend_device.py), where a tensor that was
left on the processor is an error.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from klype.engine.engine import Engine
from klype.engine.speculation import Draft, LookupDraft, ModelDraft, speculate
from klype.model.transformer import Transformer
from klype.sources.hf_open import open_hf
from klype.sources.source import answers
from klype.text.chat import TEMPLATE
from klype.text.tokenizer import Tokenizer
from klype.values import Distribution, Request, Sampling, Step, Trace
from tests.pretend_device import DEVICE, accelerator, moved
from tests.toys import toy

pytestmark = pytest.mark.slow
PENALISED = Sampling(0.9, repetition_penalty=1.3, presence_penalty=0.2, frequency_penalty=0.1, logit_bias=((3, 1.5),))
SAMPLINGS = (Sampling(), Sampling(0.0), Sampling(1.4, top_k=7, top_p=0.9), Sampling(0.8, min_p=0.05, typical_p=0.9))
PROMPTS = ((1, 2, 3), (1, 2, 3, 4, 5, 6, 7), tuple(range(20)), (*range(20), 5, 6), (9,))


def letters(token: int) -> bytes:
    return bytes([97 + token % 26])


def near(device: torch.device) -> dict[str, float]:
    """Where the processor pretends, little but the order of sums differs, if anything."""
    return {"abs": 1e-6, "rel": 1e-6} if device == DEVICE else {"abs": 1e-4, "rel": 1e-3}


def the_same(device: torch.device, there: list[Trace], here: list[Trace]) -> None:
    """Tokens are equal, and numbers as near as may be."""
    within = near(device)
    assert [t.tokens for t in there] == [t.tokens for t in here]
    assert [t.ended for t in there] == [t.ended for t in here]
    for ours, theirs in zip(there, here, strict=True):
        for one, other in zip(ours.steps, theirs.steps, strict=True):
            assert (one.logp, one.sampling_logprob) == pytest.approx((other.logp, other.sampling_logprob), **within)
            assert (one.distribution is None) == (other.distribution is None)
            if one.distribution is not None and other.distribution is not None:
                alike(one.distribution, other.distribution, within)


def alike(one: Distribution, other: Distribution, within: dict[str, float]) -> None:
    assert one.ids.tolist() == other.ids.tolist()
    assert one.logp.tolist() == pytest.approx(other.logp.tolist(), **within)
    assert one.rest == pytest.approx(other.rest, **within)


def requests() -> list[Request]:
    each = zip(PROMPTS, itertools.cycle(SAMPLINGS), strict=False)
    plain = [Request(prompt, n=2, limit=4, sampling=sampling, seed=7, stop=(4,)) for prompt, sampling in each]
    penalised = Request((5, 5, 2), n=2, limit=4, sampling=PENALISED, seed=3, top=5)
    return [*plain, penalised, Request((8, 1), limit=5, seed=1, top=-1, stop_texts=("ab",))]


@pytest.mark.parametrize("shape", ["grouped", "qwen"])
def test_the_engine_answers_alike(shape: str, device: torch.device) -> None:
    """… to requests, what follows a text, and how probable given answers are."""
    here, there = (
        Engine(model, decode_bytes=letters, max_batch=7) for model in (toy(shape), moved(toy(shape), device))
    )
    for group, expected in zip(there.run(requests()), here.run(requests()), strict=True):
        the_same(device, group, expected)
    given = [(3, 1), (2,), (), (7, 8, 9, 10, 11), (1, 1, 1)]
    for top in (-1, 4):
        the_same(device, there.score(PROMPTS, given, top), here.score(PROMPTS, given, top))
        for one, other in zip(there.next(PROMPTS, top), here.next(PROMPTS, top), strict=True):
            alike(one, other, near(device))


def test_wide_vocabularies_and_half_precision(device: torch.device) -> None:
    """Tokens are looked for in blocks, and the nucleus among the first."""
    asked = [Request((1, 2), n=4, limit=5, sampling=s, seed=2) for s in (Sampling(), Sampling(0.7, top_p=0.8))]
    for dtype in (torch.float32, torch.bfloat16):
        here, there = (toy("grouped", vocab_size=3001).to(dtype) for _ in range(2))
        for group, expected in zip(Engine(moved(there, device)).run(asked), Engine(here).run(asked), strict=True):
            if dtype == torch.float32 or device == DEVICE:
                the_same(device, group, expected)


def test_what_comes_and_goes_is_alike(device: torch.device) -> None:
    """Rows join those that run, one is cancelled, and prompts that were read are gone on from."""

    def events(engine: Engine) -> list[tuple[int, int, Step]]:
        long, short = (
            Request(tuple(range(18)), n=2, limit=9, seed=1),
            Request((*range(18), 3, 4), n=3, limit=4, seed=5),
        )
        first, found = engine.add(long), []
        for step in range(16):
            if step in (2, 9):
                engine.add(short)
            if step == 5:
                engine.cancel(first)
            found += [(e.request, e.sample, e.step) for e in engine.step()]
        return found

    there, here = (events(Engine(model)) for model in (moved(toy("grouped"), device), toy("grouped")))
    assert [(r, s, step.token) for r, s, step in there] == [(r, s, step.token) for r, s, step in here]


@pytest.mark.parametrize("guesser", ["lookup", "model"])
def test_guessing_ahead_is_alike(guesser: str, device: torch.device) -> None:
    def written(model: Transformer, drafter: Transformer) -> list[Trace]:
        draft: Draft = LookupDraft() if guesser == "lookup" else ModelDraft(drafter)
        asked = Request((1, 2, 1, 2, 1), n=1, limit=8, sampling=Sampling(0.8, repetition_penalty=1.1), seed=4)
        return [*speculate(Engine(model), asked, draft)[0], *speculate(Engine(model), replace(asked, top=3), draft)[0]]

    there = written(moved(toy("conv"), device), moved(toy("conv", 1), device))
    the_same(device, there, written(toy("conv"), toy("conv", 1)))


def test_a_tensor_that_is_left_on_the_processor_is_an_error() -> None:
    """What these tests rest on."""
    with accelerator() as there:
        weight = torch.ones(3, device=there)
        with pytest.raises(RuntimeError, match="and on the processor"):
            weight + torch.ones(3)
        with pytest.raises(RuntimeError, match="numpy"):
            weight.numpy()
        with pytest.raises(TypeError, match="float64"):
            weight.double()
        assert (weight + 1).cpu().tolist() == [2.0, 2.0, 2.0]
        assert weight.device == there


@pytest.mark.parametrize("name", ["gpt2", "mamba"])
def test_other_makers_models_are_alike(name: str, device: torch.device, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = Tokenizer.train(["en tur på fjellet", "en tur i byen"], 280, TEMPLATE)
    kind, fields = {
        "gpt2": ("GPT2", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}),
        "mamba": ("Mamba", {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}),
    }[name]
    torch.manual_seed(3)
    config = getattr(transformers, f"{kind}Config")(vocab_size=tokenizer.vocab_size, initializer_range=0.4, **fields)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    here, there = open_hf(tmp_path), open_hf(tmp_path, device=device)
    asked = [
        Request(p, n=2, limit=4, sampling=s, seed=7, top=3)
        for p, s in zip(PROMPTS, (*SAMPLINGS, PENALISED), strict=True)
    ]
    for group, expected in zip(answers(there, asked), answers(here, asked), strict=True):
        the_same(device, group, expected)
    for one, other in zip(there.next(PROMPTS, 4), here.next(PROMPTS, 4), strict=True):
        alike(one, other, near(device))
    given = [(3, 1), (2,), (), (7, 8, 9), (1, 1)]
    the_same(device, there.score(PROMPTS, given, 2), here.score(PROMPTS, given, 2))
