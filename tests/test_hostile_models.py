"""Folders and files of models from strangers: damaged or made to harm, they are refused in a sentence or they work."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import Target, attack, damaged, damaged_text
from test_checkpoint_folder import TOKENIZER, foreign
from test_checkpoint_gguf import written
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from klype.errors import KlypeError
from klype.model.checkpoint import load, read_config, read_tokenizer

TEXT = "Hunden drakk vann. <|end|> æøå 😀\n  12 aaaaaaaaaaaaaaaa"


def used(folder: Path) -> str:
    """Opens a model in every way there is and asks it something."""
    read_config(folder)
    if folder.is_dir():
        read_tokenizer(folder)
    loaded = load(folder)
    vocabulary, ids = loaded.config.vocab_size, loaded.tokenizer.encode(TEXT)
    ids = ids + loaded.tokenizer.encode_document(TEXT)
    ids += loaded.tokenizer.encode_documents([TEXT, ""])[0] + loaded.tokenizer.encode_with_offsets(TEXT, False)[0]
    if loaded.tokenizer.template is not None:
        ids += loaded.chat.prompt([{"role": "user", "content": TEXT}])
    ids += [*loaded.tokenizer.ends, max(loaded.tokenizer.begin, 0), max(loaded.tokenizer.end, 0)]
    if not all(0 <= i < vocabulary for i in ids):
        return "an id beyond the vocabulary"
    loaded.tokenizer.decode(ids)
    for i in range(loaded.tokenizer.vocab_size):
        loaded.tokenizer.token_bytes(i)
    with torch.inference_mode():
        logits = loaded.model(torch.tensor([ids[:8] or [0]])[:, : loaded.config.window])
    return "right" if logits.isfinite().all() else "logits that are not finite"


def make_folder(place: Path) -> None:
    foreign(place.parent / "made").rename(place)


def make_gguf(place: Path) -> None:
    place.mkdir()
    written(place / "m.gguf")


def look_gguf(place: Path) -> str:
    return used(place / "m.gguf")


def damage_gguf(place: Path, rng: random.Random) -> None:
    file = place / "m.gguf"
    raw = file.read_bytes()
    end = raw.index(b"output_norm") if rng.random() < 0.9 else len(raw)  # metadata first: they are few
    file.write_bytes(damaged(raw[:end], rng) + raw[end:])


def damage_weights(place: Path, rng: random.Random) -> None:
    file = place / "model.safetensors"
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    if rng.random() < 0.6:
        header = damaged_text(raw[8 : 8 + length], rng)
        file.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + length :])
    else:
        file.write_bytes(damaged(raw, rng))


SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json")


def damage_config(place: Path, rng: random.Random) -> None:
    file = place / rng.choice((*SETTINGS, "config.json", "config.json"))
    raw = file.read_bytes()
    if rng.random() < 0.3:  # a known name with an absurd value
        known = ("rope_scaling", "chat_template", "eos_token_id", "head_dim", "klype_initial", "sliding_window", "conv")
        raw = json.dumps({**json.loads(raw), rng.choice(known): {"rope_type": "linear", "factor": 2}}).encode()
    file.write_bytes(damaged_text(raw, rng))


def definitions() -> list[dict[str, Any]]:
    """The kinds of tokenizer.json there are: klype's, with a regular expression, SentencePiece's two, WordPiece's."""
    own: dict[str, Any] = json.loads(json.dumps(TOKENIZER._definition))
    regex = json.loads(json.dumps(own))
    split = pre_tokenizers.Split(r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+", "isolated")
    one = Backend(models.BPE())
    one.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    one.normalizer = normalizers.NFC()
    one.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 1)])
    whole = json.loads(one.to_str())
    regex |= {name: whole[name] for name in ("pre_tokenizer", "normalizer", "post_processor")}
    found = [own, regex]
    for model, trainer in (
        (models.Unigram(), trainers.UnigramTrainer(vocab_size=60, unk_token="<unk>", special_tokens=["<unk>", "</s>"])),
        (models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer(vocab_size=60, special_tokens=["[UNK]"])),
    ):
        backend = Backend(model)
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        backend.decoder = decoders.Metaspace(prepend_scheme="first")
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.train_from_iterator(["Hunden drakk vann. Katten drakk melk, og de andre"], trainer)
        found.append(json.loads(backend.to_str()))
    found[2]["decoder"] = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
    return found


def make_tokenizers(place: Path) -> None:
    make_folder(place)
    (place / "kinds.json").write_text(json.dumps(definitions()))


def damage_tokenizer(place: Path, rng: random.Random) -> None:
    definition = rng.choice(json.loads((place / "kinds.json").read_text()))
    (place / "tokenizer.json").write_bytes(damaged_text(json.dumps(definition).encode(), rng))


def a_tokenizer(**parts: Any) -> bytes:
    return json.dumps({**TOKENIZER._definition, **parts}).encode()


def a_vocabulary(change: dict[str, int], **parts: Any) -> bytes:
    model = TOKENIZER._definition["model"]
    return a_tokenizer(model={**model, "vocab": {**model["vocab"], **change}, **parts})


def doubling(times: int) -> dict[str, Any]:
    """A normaliser that makes 2^times letters of one."""
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    return {"type": "Sequence", "normalizers": [double] * times}


def split_by(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


HARMFUL = {
    "a far id": (a_vocabulary({"far": 3 * 10**8}), "the id 300,000,000"),
    "panics": (a_vocabulary({}, continuing_subword_prefix="##" * 40), "tokenizer"),
    "grows without end": (a_tokenizer(normalizer=doubling(40)), "needs more than"),
    "looks back without end": (a_tokenizer(pre_tokenizer=split_by("(a+)+b")), "tokenizer"),
    "nested without end": (b"[" * 100_000, "tokenizer.json is damaged"),
    "a list": (b"[]", "tokenizer.json is damaged"),
    "tokens that are missing": (a_vocabulary({}, merges=[["q", "qq"]]), "tokenizer"),
    "half a character": (a_vocabulary({"\ud800": 300}), "tokenizer"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HARMFUL)
def test_tokenizers_made_to_harm_are_refused(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The library alone takes all the memory there is, never ends, or panics past every ``except Exception``."""
    folder = foreign(tmp_path)
    (folder / "tokenizer.json").write_bytes(HARMFUL[name][0])
    with pytest.raises(KlypeError, match=HARMFUL[name][1]):
        used(folder)
    assert "panicked" not in capfd.readouterr().err


TARGETS = {
    target.name: target
    for target in (
        Target("GGUF", make_gguf, damage_gguf, look_gguf),
        Target("safetensors", make_folder, damage_weights, used),
        Target("config.json", make_folder, damage_config, used),
        Target("tokenizer.json", make_tokenizers, damage_tokenizer, used),
    )
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_it_is_refused_or_works(tmp_path: Path, name: str) -> None:
    tally = attack(TARGETS[name], tmp_path, range(30 if name == "tokenizer.json" else 60))
    assert not tally.faults, str(tally)
    assert len(tally.verdicts) > 1, str(tally)


@pytest.mark.soak
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_two_thousand_times(tmp_path: Path, name: str) -> None:
    tally = attack(TARGETS[name], tmp_path, range(1000, 3000))
    print(tally)
    assert not tally.faults, str(tally)
