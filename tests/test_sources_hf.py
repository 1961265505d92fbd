"""Models of transformers as sources: equal to native where klype computes the same, and others work all the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_cli_models import document

from klype.cli import exits
from klype.cli.main import call
from klype.errors import KlypeError, UsageError
from klype.model.checkpoint import load, save
from klype.sources.hf_open import open_hf, why_not_native
from klype.sources.hub import fetch
from klype.sources.source import NativeCodec, NativeSource, answers
from klype.text.chat import TEMPLATE, Chat
from klype.text.tokenizer import Tokenizer
from klype.values import Request, Sampling
from tests.toys import toy

transformers = pytest.importorskip("transformers")

TEXTS = ["jeg gikk en tur på fjellet", "hun gikk en tur i byen", "hvor gikk hun? hun gikk i byen"]
TOKENIZER = Tokenizer.train(TEXTS, 300, TEMPLATE)
V = TOKENIZER.vocab_size
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}),
    "gpt_neox": (
        "GPTNeoX",
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
         "max_position_embeddings": 64},
    ),
    "bloom": ("Bloom", {"hidden_size": 16, "n_layer": 2, "n_head": 2}),
    "mamba": ("Mamba", {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}),
    "gemma3_text": (
        "Gemma3Text",
        {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1,
         "intermediate_size": 24, "head_dim": 8, "sliding_window": 5, "max_position_embeddings": 256},
    ),
}  # fmt: skip


def folder_of(name: str, where: Path, **changes: Any) -> Path:
    kind, fields = OTHERS[name]
    torch.manual_seed(3)
    fields = {"vocab_size": V, **fields, **changes}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = getattr(transformers, f"{kind}Config")(initializer_range=0.4, **fields, **special)
    transformers.AutoModelForCausalLM.from_config(config).eval().save_pretrained(where)
    TOKENIZER.save(where)
    return where


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: folder_of(name, tmp_path_factory.mktemp(name)) for name in OTHERS}


def requests_of(codec: NativeCodec) -> list[Request]:
    hot, shaped = Sampling(temperature=1.3), Sampling(0.8, top_k=9, top_p=0.9, repetition_penalty=1.2)
    prompts = [tuple(codec.encode(text)) for text in ("jeg", *TEXTS)]
    return [
        Request(prompts[0], n=3, limit=9, sampling=hot, seed=4, stop=codec.stop, top=5),
        Request(prompts[1], n=2, limit=7, sampling=shaped, seed=5, stop=codec.stop),
        Request(prompts[2], limit=12, sampling=Sampling(temperature=0), stop=codec.stop, top=-1),
        Request(prompts[3], n=2, limit=80, seed=6, stop_texts=("e",), first_sample=3),
    ]


def test_equals_the_native_source(tmp_path: Path) -> None:
    model = toy("llama", vocab_size=V)
    save(tmp_path / "m", model, TOKENIZER, {})
    native = NativeSource.of(load(tmp_path / "m").model, TOKENIZER, Chat(TOKENIZER))
    asked = open_hf(tmp_path / "m")
    requests = requests_of(asked.codec)
    for own, theirs in zip(answers(native, requests), answers(asked, requests), strict=True):
        assert [t.tokens for t in own] == [t.tokens for t in theirs]
        assert [(t.ended, t.sample, t.seed, t.prompt) for t in own] == [
            (t.ended, t.sample, t.seed, t.prompt) for t in theirs
        ]
        for one, other in zip(own, theirs, strict=True):
            np.testing.assert_allclose([s.logp for s in one.steps], [s.logp for s in other.steps], atol=2e-4)
            np.testing.assert_allclose(
                [s.sampling_logprob for s in one.steps], [s.sampling_logprob for s in other.steps], atol=5e-4
            )
            for a, b in zip(one.steps, other.steps, strict=True):
                assert (a.distribution is None) == (b.distribution is None)
                if a.distribution is not None and b.distribution is not None:
                    np.testing.assert_allclose(a.distribution.logp, b.distribution.logp, atol=5e-4)
    texts = [asked.codec.encode(text) for text in TEXTS]
    for a, b in zip(native.next(texts, 7), asked.next(texts, 7), strict=True):
        assert a.ids.tolist() == b.ids.tolist()
        assert a.rest == pytest.approx(b.rest, abs=1e-4)
    said = [TOKENIZER.encode(" hun gikk"), [], TOKENIZER.encode(" byen")]
    for a, b in zip(native.score(texts, said, 3), asked.score(texts, said, 3), strict=True):
        assert a.tokens == b.tokens
        np.testing.assert_allclose([s.logp for s in a.steps], [s.logp for s in b.steps], atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_batched_is_alone_and_remembered_is_read_anew(name: str, folders: dict[str, Path]) -> None:
    asked = open_hf(folders[name])
    assert why_not_native(folders[name]).endswith("which klype cannot load.")
    requests = requests_of(asked.codec)
    together = answers(asked, requests)
    alone = [answers(open_hf(folders[name]), [request])[0] for request in requests]
    assert [[t.tokens for t in traces] for traces in together] == [[t.tokens for t in traces] for traces in alone]
    for traces in together:  # what was said beside the drawing is what a single pass over the whole text says
        forced = asked.score([t.prompt for t in traces], [t.tokens for t in traces])
        for drawn, scored in zip(traces, forced, strict=True):
            np.testing.assert_allclose([s.logp for s in drawn.steps], [s.logp for s in scored.steps], atol=5e-4)
    prompt = tuple(asked.codec.encode(" ".join(TEXTS)))
    grown = [(*prompt, *TOKENIZER.encode(text)) for text in (" hun", " hun gikk i", " byen")]
    asked.next([prompt])
    for remembered, fresh in zip(asked.next(grown), open_hf(folders[name]).next(grown), strict=True):
        np.testing.assert_allclose(np.sort(remembered.logp), np.sort(fresh.logp), atol=5e-4)


def test_what_texts_share_is_read_once(folders: dict[str, Path]) -> None:
    asked = open_hf(folders["gpt2"])
    prompt = tuple(asked.codec.encode(" ".join(TEXTS)))
    asked.next([prompt])
    sizes: list[int] = []
    asked.engine.runner.model.register_forward_pre_hook(
        lambda module, args, given: sizes.append(given["input_ids"].numel()), with_kwargs=True
    )
    asked.next([(*prompt, token) for token in (10, 11, 12)])
    assert sizes == [3]  # one more token for each


@pytest.mark.slow
def test_every_command_works_on_another_architecture(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    name = str(folders["gpt_neox"])
    found = document(capsys, "ask", name, "hvor gikk hun?", "--limit", "6", "--seed", "2")
    assert 0 < found["tokens"] <= 6
    assert found["flops"] > 0
    nexts = document(capsys, "next", name, "hun gikk", "--raw")
    assert sum(t["p"] for t in nexts["tokens"]) + nexts["rest"] == pytest.approx(1.0, abs=1e-5)
    grown = document(capsys, "tree", name, "hvor?", "--budget", "30", "--limit", "3")
    assert sum(a["low"] for a in grown["answers"]) + grown["unexplored"] == pytest.approx(1.0, abs=1e-4)
    assert document(capsys, "forks", name, "hvor?", "-n", "4", "--limit", "3", "--answer", "hun gikk")["positions"]
    questions = tmp_path / "q.jsonl"
    questions.write_text(json.dumps({"question": "hvor gikk hun?", "answers": ["i byen"]}), encoding="utf-8")
    argv = ("examine", name, "--questions", str(questions), "-n", "3", "--limit", "4", "--temperatures", "0,1")
    examined = document(capsys, *argv, "--budget", "300", "--out", str(tmp_path / "out"))
    assert set(examined["figures"]) == {"0", "1"}
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.slow
def test_hub_names_come_from_the_local_cache(folders: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    cache = tmp_path / "hub"
    snapshot = cache / "models--owner--name" / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(folders["gpt2"], target_is_directory=True)
    refs = cache / "models--owner--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    code = """if True:
        from klype.cli.main import call
        from klype.errors import KlypeError
        from klype.sources.hub import fetch

        print(fetch("owner/name"))
        try:
            fetch("owner/other")
        except KlypeError as error:
            print(error.message)
        call(["next", "hf:owner/name", "hun", "--raw", "--json"])
    """
    environ = os.environ | {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    asked = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    fetched, refused, told = asked.stdout.split("\n", 2)
    assert fetched == str(snapshot)
    assert refused.startswith("hf:owner/other is not on this machine, and the hub cannot be reached")
    assert json.loads(told)["tokens"]
    with pytest.raises(UsageError, match="is not the name of a model"):
        fetch("../secrets")


@pytest.mark.slow
def test_what_cannot_be_loaded_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "vocab_size": 3}))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    TOKENIZER.save(tmp_path)
    with pytest.raises(KlypeError, match=r"transformers cannot load .* 't5'"):
        open_hf(tmp_path)
    assert exits.exit_code(call, ["ask", str(tmp_path), "hei"]) == 1
    assert "Traceback" not in capsys.readouterr().err
    with pytest.raises(UsageError, match="precision"):
        open_hf(tmp_path, dtype="float4")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Bert", "Roberta", "Electra"])
def test_an_encoder_is_refused(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """transformers builds one as a language model, with a warning: its words would depend on what comes after them."""
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    sizes["initializer_range"] = 0.4
    config = getattr(transformers, f"{kind}Config")(vocab_size=V, max_position_embeddings=64, **sizes)
    transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    TOKENIZER.save(tmp_path)
    assert exits.exit_code(call, ["ask", str(tmp_path), "hei", "--raw"]) == 1
    assert "it is an encoder" in " ".join(capsys.readouterr().err.split())
    decoder = getattr(transformers, f"{kind}Config")(vocab_size=V, max_position_embeddings=64, is_decoder=True, **sizes)
    transformers.AutoModelForCausalLM.from_config(decoder).save_pretrained(tmp_path)
    assert open_hf(tmp_path).engine.runner.is_causal()


def test_impossible_requests_are_refused_before_anything_is_read(folders: dict[str, Path]) -> None:
    asked, passes = open_hf(folders["gpt2"]), []
    asked.engine.runner.model.register_forward_pre_hook(lambda *_: passes.append(1))
    for wrong in (Request(()), Request((1,) * 65), Request((V,)), Request((1,), n=0)):
        with pytest.raises(UsageError):
            asked.generate([wrong])
    assert not passes


@pytest.mark.parametrize(
    ("name", "asked", "said"),
    [
        ("gpt_neox", {"num_hidden_layers": 1_000_000}, "num_hidden_layers is 1,000,000"),
        ("gpt_neox", {"intermediate_size": 10**12}, "intermediate_size"),
        ("gpt2", {"n_layer": -1}, "n_layer"),
        ("mamba", {"num_hidden_layers": 3}, "lacks weights"),
    ],
)
def test_a_configuration_that_asks_for_more_than_the_files_hold_is_refused_unbuilt(
    name: str, asked: dict[str, int], said: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(folders[name], tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **asked}))
    with pytest.raises(KlypeError, match=said):
        open_hf(tmp_path / "m")


def test_damaged_weights_are_refused_before_transformers_sees_them(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["bloom"], tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(KlypeError, match="damaged"):
        open_hf(tmp_path / "m")
