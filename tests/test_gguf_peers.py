"""What klype reads of a GGUF file is what transformers and llama.cpp read: words, positions, blocks of weights."""

from __future__ import annotations

import ctypes
import sysconfig
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from klype.model.checkpoint import load, save
from tests import toys
from tests.test_checkpoint_gguf import MERGES, model, written
from tests.test_text_plain import INST, LEADING, NUMERALS, TEXTS, alike, codec_of, sentence_piece

gguf = pytest.importorskip("gguf")
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
LLAMA3 = {"kind": "llama3", "factor": 8.0, "original_window": 64}


def pieces() -> list[tuple[str, float, int]]:
    """SentencePiece's vocabulary, as llama.cpp's converter writes it: the sooner merged, the higher the score."""
    ids = sentence_piece("llama2").get_vocab()
    kinds = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL} | {f"<0x{b:02X}>": BYTE for b in range(256)}
    return [(token, float(-ids[token]), kinds.get(token, NORMAL)) for token in sorted(ids, key=ids.__getitem__)]


@pytest.fixture(scope="module")
def sentencepiece_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pieces") / "m.gguf"
    return written(file, ours=model("llama", vocab_size=500, window=256), pieces=pieces(), template=INST)


@pytest.mark.slow
def test_ids_of_sentencepiece_are_those_of_transformers(sentencepiece_file: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder, name = sentencepiece_file.parent, sentencepiece_file.name
    theirs = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    tokenizer = load(sentencepiece_file).tokenizer
    alike(codec_of(tokenizer), theirs, (*TEXTS[::2], *LEADING, NUMERALS))
    assert (tokenizer.begin, tokenizer.ends, tokenizer.lead) == (1, (2,), [1])
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_no_text_spells_a_control_token_of_sentencepiece(sentencepiece_file: Path) -> None:
    """Every piece of "</s>" and "<0x41>" has a token, too: none is merged to more than plain text."""
    tokenizer = load(sentencepiece_file).tokenizer
    for text in ("</s>", "<s>", "<unk>", "<0x41>", "a</s><s>b"):
        ids = tokenizer.encode(text)
        assert not {0, 1, 2} & set(ids)
        assert tokenizer.decode(ids) == text


def test_a_file_says_whether_a_space_leads(tmp_path: Path) -> None:
    bare = load(written(tmp_path / "m.gguf", ours=model("llama", vocab_size=500), pieces=pieces(), spaced=False))
    ids = bare.tokenizer.encode("Ja.")
    assert b"".join(map(bare.tokenizer.token_bytes, ids)) == b"Ja."
    assert bare.tokenizer.decode(ids) == "Ja."
    assert bare.tokenizer.decode(bare.tokenizer.encode(" Ja.")) == " Ja."


WRITTEN: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama3": {"rope_scaling": LLAMA3},
    "linear": {"rope_scaling": {"kind": "linear", "factor": 4.0}},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True, "head_dim": 32, "tie": True},
}


@pytest.mark.parametrize("shape", WRITTEN.values(), ids=WRITTEN)
def test_llama_cpp_goes_on_as_klype_does(tmp_path: Path, shape: dict[str, Any]) -> None:
    """A text longer than the first window: exported, read again by klype, and gone on with by llama.cpp."""
    xllamacpp = pytest.importorskip("xllamacpp")
    size = {"vocab_size": MERGES.vocab_size, "width": 64, "hidden": 64, "window": 128}
    ours = toys.toy("llama", **size, **shape)
    save(tmp_path / "m", ours, MERGES, {})
    load(tmp_path / "m").to_gguf(tmp_path / "m.gguf")
    read = load(tmp_path / "m.gguf").config
    assert {field: getattr(read, field) for field in shape} == {field: getattr(ours.config, field) for field in shape}
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(tmp_path / "m.gguf")
    parameters.n_ctx, parameters.warmup, parameters.cpuparams.n_threads = 128, False, 1
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    prompt = [1, *(7 + place * place % 200 for place in range(100))]
    body = {"prompt": prompt, "max_tokens": 12, "temperature": 0, "logprobs": 1, "ignore_eos": True}
    told = xllamacpp.Server(parameters).handle_completions(body)["choices"][0]["logprobs"]["content"]
    text = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(12):
            logits = ours(text)[:, -1]
            logits[:, list(MERGES.ends)] = -torch.inf
            text = torch.cat([text, logits.argmax(-1, keepdim=True)], 1)
    said = b"".join(bytes(entry["bytes"]) for entry in told)
    assert said == b"".join(map(MERGES.token_bytes, text[0, len(prompt) :].tolist()))


def packed_by_llama_cpp(kind: str, weight: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], Any]:
    """llama.cpp's own quantiser, which xllamacpp's library exports."""
    xllamacpp = pytest.importorskip("xllamacpp")
    library = next(Path(xllamacpp.__file__).parent.glob(f"*{sysconfig.get_config_var('SHLIB_SUFFIX') or '.so'}"))
    quantise = ctypes.CDLL(str(library)).ggml_quantize_chunk
    quantise.restype = ctypes.c_size_t
    packed_as = gguf.GGMLQuantizationType[kind]
    numbers, taken = gguf.GGML_QUANT_SIZES[packed_as]
    rows, columns = weight.shape
    given, out = np.ascontiguousarray(weight), np.zeros((rows, columns // numbers * taken), np.uint8)
    sizes = (ctypes.c_int64(0), ctypes.c_int64(rows), ctypes.c_int64(columns))
    places = ctypes.c_void_p(given.ctypes.data), ctypes.c_void_p(out.ctypes.data)
    assert quantise(int(packed_as), *places, *sizes, None) == out.nbytes
    return out, packed_as


KINDS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_packed_weights_are_those_that_transformers_reads(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    ours = model("llama", width=256, hidden=256)
    file = written(tmp_path / "m.gguf", ours=ours, pack=partial(packed_by_llama_cpp, kind))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)
    tokens = torch.arange(24).reshape(2, 12) * 7 % MERGES.vocab_size
    with torch.no_grad():
        found = load(file).model(tokens)
        torch.testing.assert_close(found, theirs(tokens).logits, atol=1e-4, rtol=1e-4)
        assert (found - ours(tokens)).abs().max() > 0
