"""Logits are equal to transformers', both ways; a saved folder is a Hugging Face directory."""

from pathlib import Path
from typing import Any

import pytest
import torch
import toys

from klype.engine.engine import Engine
from klype.model.checkpoint import load, save
from klype.text.chat import TEMPLATE
from klype.text.tokenizer import Tokenizer
from klype.values import Request, Sampling

transformers = pytest.importorskip("transformers")

TOKENIZER = Tokenizer.train(["Hunden drakk vann."], 300, TEMPLATE)
TOKENS = torch.arange(60).reshape(2, 30) * 7 % TOKENIZER.vocab_size
COMMON = {
    "vocab_size": TOKENIZER.vocab_size,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"rms_norm_eps": 1e-5}),
    "smollm": ("Llama", {"tie_word_embeddings": True}),
    "tied": ("Llama", {"tie_word_embeddings": True, "head_dim": 8}),
    "llama3": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500_000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    "linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
}


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["20KB", "1GB"])
@pytest.mark.parametrize("name", THEIRS)
def test_a_model_of_transformers_loads_with_equal_logits_and_answers(tmp_path: Path, name: str, shard: str) -> None:
    kind, fields = THEIRS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**COMMON, **fields)
    theirs = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in theirs.named_parameters():
            if "bias" in parameter_name or "norm" in parameter_name:
                parameter.uniform_(0.5, 1.5)
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").is_file() == (shard == "20KB")
    TOKENIZER.save(tmp_path)
    ours = load(tmp_path).model
    with torch.no_grad():
        torch.testing.assert_close(ours(TOKENS), theirs(TOKENS).logits, atol=1e-4, rtol=0)
    greedy = theirs.generate(TOKENS[:1, 1:21], max_new_tokens=30, do_sample=False, eos_token_id=None, pad_token_id=0)
    request = Request(prompt=tuple(TOKENS[0, 1:21].tolist()), limit=30, sampling=Sampling(temperature=0))
    ((answer,),) = Engine(ours).run([request])
    assert list(answer.tokens) == greedy[0, 20:].tolist()


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_our_folder_loads_in_transformers_with_equal_logits(tmp_path: Path, shape: str) -> None:
    import klype.hf  # registers the shapes that transformers does not know

    ours = toys.toy(shape, vocab_size=TOKENIZER.vocab_size)
    save(tmp_path / "m", ours, TOKENIZER, {})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32).eval()
    own = shape in ("conv", "grouped", "qwen")
    assert isinstance(theirs, klype.hf.KlypeForCausalLM) == own
    with torch.no_grad():
        torch.testing.assert_close(theirs(TOKENS).logits, ours(TOKENS), atol=1e-4, rtol=0)
    greedy = theirs.generate(TOKENS[:1, 1:5], max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
    text = TOKENS[:1, 1:5]
    for _ in range(6):
        text = torch.cat([text, ours(text)[:, -1:].argmax(-1)], 1)
    assert greedy.tolist() == text.tolist()


def test_padding_changes_nothing_and_saving_again_is_the_same(tmp_path: Path) -> None:
    import klype.hf  # noqa: F401

    ours = toys.toy("conv", vocab_size=TOKENIZER.vocab_size)
    save(tmp_path / "m", ours, TOKENIZER, {})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), TOKENS[:, :9]], 1)
    mask = torch.cat([torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 9, dtype=torch.long)], 1)
    with torch.no_grad():
        logits = theirs(padded, attention_mask=mask).logits[:, 3:]
        torch.testing.assert_close(logits, ours(TOKENS[:, :9]), atol=1e-5, rtol=0)
    theirs.save_pretrained(tmp_path / "again")
    TOKENIZER.save(tmp_path / "again")
    assert torch.equal(load(tmp_path / "again").model(TOKENS), ours(TOKENS))


def test_transformers_tokenizer_is_ours(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in (" Hunden drakk vann. æøå 😀\n", "x  y"):
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ids == TOKENIZER.encode(text)
        assert theirs.decode(ids) == text
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 0)
