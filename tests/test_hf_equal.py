"""A model's prompts, scores and greedy answers are those of transformers: ten small architectures, and a real model.

Each on two hundred texts (in the shorter tests twenty) in English and Norwegian, plain and as questions; the scores are
of an answer given by hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import klype
from klype.sources.source import NativeCodec, answers
from klype.values import Request, Sampling
from tests.test_text_plain import ENGLISH, NORWEGIAN, written

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
GROUPED = {**SIZES, "num_key_value_heads": 1, "max_position_embeddings": 256}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Llama": GROUPED,
    "Mistral": {**GROUPED, "sliding_window": None},
    "Qwen2": GROUPED,
    "Qwen3": {**GROUPED, "head_dim": 8},
    "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256},
    "GPTNeoX": {**SIZES, "max_position_embeddings": 256},
    "Bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "Phi3": {**GROUPED, "pad_token_id": 0},
    "Olmo2": GROUPED,
    "Gemma3Text": {**GROUPED, "head_dim": 8, "sliding_window": 5},
}
NAMES = ("Oslo", "Kari", "Bergen", "Ola")
TEXTS = [f"{text.strip()} {name}" for name in NAMES for text in (*ENGLISH, *NORWEGIAN)] + [
    f"Hva er {number} + {number}?" for number in range(200 - len(NAMES) * len((*ENGLISH, *NORWEGIAN)))
]


def equal(model: klype.Model, theirs: Any, tokenizer: Any, texts: list[str], raw: bool, limit: int) -> None:
    """Ids of the prompts, greedy answers of up to ``limit`` tokens, and how probable an answer is."""
    opened = model.opened
    codec = opened.source.codec
    assert isinstance(codec, NativeCodec)
    prompts, answer = [opened.user_prompt(text, raw) for text in texts], "Det er Oslo."
    for text, prompt in zip(texts, prompts, strict=True):
        talk = [{"role": "user", "content": text}]
        said = text if raw else tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
        assert prompt == tokenizer(said, add_special_tokens=raw)["input_ids"], text
    requests = [Request(tuple(prompt), limit=limit, sampling=Sampling(0.0)) for prompt in prompts]
    spelled = [
        opened.encode_answer(answer) if raw else codec.answer([{"role": "user", "content": t}], answer) for t in texts
    ]
    scored = opened.source.score(prompts, spelled)
    for prompt, given, trace, (drawn,) in zip(prompts, spelled, scored, answers(opened.source, requests), strict=True):
        with torch.inference_mode():
            logp_TV = theirs(torch.tensor([[*prompt, *given]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            went_TV = theirs(torch.tensor([[*prompt, *drawn.tokens]])).logits[0, len(prompt) - 1 : -1]
        expected = logp_TV[torch.arange(len(given)), torch.tensor(given)].numpy()
        np.testing.assert_allclose([step.logp for step in trace.steps], expected, atol=5e-4)
        # greedy: each token was the most probable behind those before it, or as probable as rounding tells apart
        chosen_T = went_TV[torch.arange(limit), torch.tensor(drawn.tokens)]
        assert bool((went_TV.max(-1).values - chosen_T <= 2e-4).all())


@pytest.mark.parametrize(
    ("name", "texts"),
    [pytest.param(name, TEXTS[::10], marks=pytest.mark.slow, id=f"{name}-20") for name in ("Llama", "GPT2", "Qwen2")]
    + [pytest.param(name, TEXTS, marks=pytest.mark.soak, id=f"{name}-200") for name in ARCHITECTURES],
)
def test_a_small_architecture_is_what_transformers_computes(tmp_path: Path, name: str, texts: list[str]) -> None:
    assert len(set(TEXTS)) == 200
    folder = written(tmp_path / "m", "qwen")
    torch.manual_seed(3)
    special = {"bos_token_id": 0, "eos_token_id": 2, **ARCHITECTURES[name]}
    config = getattr(transformers, f"{name}Config")(vocab_size=500, initializer_range=0.4, **special)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    # as the file says: an AutoTokenizer would put the pre-tokenizer of Qwen2's own models in its place
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    model = klype.load(folder)
    equal(model, theirs, tokenizer, texts[::2], True, 8)
    equal(model, theirs, tokenizer, texts[1::2], False, 8)


@pytest.mark.soak
@pytest.mark.parametrize("raw", [True, False], ids=["plain", "chat"])
def test_a_real_model_is_what_transformers_computes(smollm: Path, raw: bool) -> None:
    pytest.importorskip("accelerate")
    place, name = smollm.parent, smollm.name
    theirs = transformers.AutoModelForCausalLM.from_pretrained(place, gguf_file=name, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(place, gguf_file=name)
    equal(klype.load(smollm), theirs, tokenizer, TEXTS, raw, 16)
