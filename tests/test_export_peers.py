"""What klype writes is read by others: trained on by TRL, gone on with by CTranslate2 and OpenVINO GenAI as by klype.

Where a package is missing its tests are skipped: make test fetches TRL and CTranslate2, make soak OpenVINO GenAI too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from klype.engine.engine import Engine
from klype.model.checkpoint import load, save
from klype.text.chat import TEMPLATE
from klype.text.tokenizer import Tokenizer
from klype.values import Request, Sampling
from tests.toys import toy

transformers = pytest.importorskip("transformers")

TOKENIZER = Tokenizer.train(["jeg gikk en tur på fjellet", "hun gikk en tur i byen"], 300, TEMPLATE)
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {}, "tied": {"tie": True}, "grouped": {"kv_heads": 2}, "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True}, "llama3": {"rope_scaling": {"kind": "llama3", "factor": 4.0}},
}  # fmt: skip


def saved(folder: Path, name: str = "llama") -> Path:
    model = toy(
        "conv" if name == "conv" else "llama",
        **{"vocab_size": TOKENIZER.vocab_size, "width": 64, "hidden": 64, "window": 128, **SHAPES.get(name, {})},
    )
    save(folder, model, TOKENIZER, {"name": name})
    return folder


def greedy(folder: Path, prompt: list[int], limit: int = 24, dtype: str = "float32") -> list[int]:
    """What klype goes on with, ends among it, of the weights in this precision."""
    model = load(folder, dtype=dtype).model.float()
    request = Request(tuple(prompt), limit=limit, sampling=Sampling(temperature=0))
    return list(Engine(model).run([request])[0][0].tokens)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sft", "dpo"])
@pytest.mark.parametrize("name", ["llama", "conv"])
def test_trl_trains_a_checkpoint_that_klype_reads_again(tmp_path: Path, name: str, kind: str) -> None:
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    import klype.hf  # of the convolution transformers knows nothing

    assert klype.hf.KlypeConfig.model_type == "klype"
    folder = saved(tmp_path / "m", name)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    before = {weight: values.clone() for weight, values in model.named_parameters()}
    say = lambda text: [{"role": "assistant", "content": text}]
    asked = {"prompt": [{"role": "user", "content": "hvor gikk hun?"}]}
    answers = {"completion": say("i byen")} if kind == "sft" else {"chosen": say("i byen"), "rejected": say("på fjell")}
    config, trainer = (trl.SFTConfig, trl.SFTTrainer) if kind == "sft" else (trl.DPOConfig, trl.DPOTrainer)
    settings = config(
        output_dir=str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True,
        save_strategy="no", bf16=False, learning_rate=1e-2, disable_tqdm=True,
    )  # fmt: skip
    rows = datasets.Dataset.from_list([{**asked, **answers}] * 4)
    running = trainer(model=model, args=settings, train_dataset=rows, processing_class=tokenizer)
    running.train()
    assert any(not torch.equal(before[weight], values) for weight, values in model.named_parameters())
    running.save_model(str(tmp_path / "taught"))
    files = [json.loads(file.read_text()) for file in (tmp_path / "taught").glob("*.json")]
    assert not any(file.get("auto_map") for file in files)  # nothing names code
    tokens = torch.tensor([TOKENIZER.encode_beginning("hun gikk")])
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "taught").model(tokens), model(tokens).logits, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_ctranslate2_goes_on_as_klype_does(tmp_path: Path, name: str) -> None:
    """Of Llama 3's scaling CTranslate2 4.8 takes the window that was first trained to be 8,192."""
    ctranslate2 = pytest.importorskip("ctranslate2")
    folder = saved(tmp_path / "m", name)
    ctranslate2.converters.TransformersConverter(str(folder)).convert(str(tmp_path / "theirs"))
    generator = ctranslate2.Generator(str(tmp_path / "theirs"), inter_threads=1, intra_threads=1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for text in ("jeg gikk en tur", "hun gikk " * 8):
        prompt = TOKENIZER.encode_beginning(text)
        found = generator.generate_batch(
            [tokenizer.convert_ids_to_tokens(prompt)], max_length=24, include_prompt_in_result=False, end_token=[]
        )
        assert found[0].sequences_ids[0] == greedy(folder, prompt)


@pytest.mark.soak
@pytest.mark.parametrize("name", [name for name in SHAPES if name != "llama3"])
def test_openvino_goes_on_as_klype_does_in_float16(tmp_path: Path, name: str) -> None:
    """OpenVINO GenAI 2026.4 builds no model of float32 matrices, and knows nothing of rope_freqs.weight."""
    openvino, genai = pytest.importorskip("openvino"), pytest.importorskip("openvino_genai")
    folder = saved(tmp_path / "m", name)
    load(folder, dtype="float16").to_gguf(tmp_path / "m.gguf")
    pipeline = genai.LLMPipeline(str(tmp_path / "m.gguf"), "CPU", INFERENCE_PRECISION_HINT="f32")
    settings = genai.GenerationConfig()
    settings.max_new_tokens, settings.do_sample, settings.ignore_eos = 24, False, True
    prompt = TOKENIZER.encode_beginning("jeg gikk en tur")
    given = [openvino.Tensor(np.array([values])) for values in (prompt, [1] * len(prompt))]
    said = list(pipeline.generate(genai.TokenizedInputs(*given), settings).tokens[0])
    assert said == greedy(folder, prompt, dtype="float16")
