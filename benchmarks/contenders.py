"""The engines with a common interface. A module is imported when its engine is made, never before."""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.task import Contender, Files
from klype.device import Precision

if TYPE_CHECKING:
    from torch import Tensor


class Klype:
    """klype's own engine, in one precision, or with the quantised matrices of a GGUF file."""

    def __init__(self, precision: Precision, kind: str = "") -> None:
        self.precision: Precision = precision
        self.kind = kind

    def load(self, files: Files) -> None:
        from klype.api.model import load
        from klype.device import memory_policy, set_threads

        memory_policy()
        self.engine = load(files.ggufs.get(self.kind, files.folder), self.precision, device="cpu").opened.engine
        set_threads(files.threads)
        gc.collect()

    def run(self, prompt: list[int], n: int, limit: int) -> list[int]:
        from klype.values import Request, Sampling

        self.engine.runner.forget()  # others read the prompt anew, too
        sampling = Sampling(temperature=0.0 if n == 1 else 1.0)
        ((first, *_),) = self.engine.run([Request(prompt=tuple(prompt), n=n, limit=limit, sampling=sampling)])
        return list(first.tokens)

    def extra(self, what: str, prompt: list[int]) -> dict[str, Any]:
        import numpy as np
        import torch

        from klype.engine.sampling import noise, sample
        from klype.values import Sampling

        with torch.inference_mode():
            if what == "sampler":
                logits_BV = torch.randn(64, self.engine.model.config.vocab_size)
                u_B = noise(0, np.arange(64), 1)
                took = []
                for _ in range(9):
                    start = time.perf_counter()
                    sample(logits_BV, Sampling(), u_B)
                    took.append(time.perf_counter() - start)
                return {"seconds": sorted(took)[len(took) // 2]}
            if what == "logp_compiled" and self.engine.model.decoder is None:
                return {}
            logits_TV = (
                self._in_steps(prompt) if what == "logp_compiled" else self.engine.model(torch.tensor([prompt]))[0]
            )
            logp_TV = logits_TV.float().log_softmax(-1)
            handle, file = tempfile.mkstemp(suffix=".npy")
            with os.fdopen(handle, "wb") as stream:
                np.save(stream, logp_TV.numpy())
            return {"file": file}

    def _in_steps(self, text: list[int]) -> Tensor:
        """Logits [T, V] of a text that is read a few tokens per pass, as in generation, by the compiled decoder."""
        import torch

        from klype.model.prepacked import FEW

        model, found = self.engine.model, []
        cache = model.new_cache(1)
        for at in range(0, len(text), FEW):
            found.append(model(torch.tensor([text[at : at + FEW]]), cache)[0])
        return torch.cat(found)


class Transformers:
    """Hugging Face transformers' ``generate``."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype

    def load(self, files: Files) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(files.threads)
        self.model: Any = AutoModelForCausalLM.from_pretrained(files.folder, dtype=getattr(torch, self.dtype))

    def run(self, prompt: list[int], n: int, limit: int) -> list[int]:
        import torch
        import transformers

        kind: Any = transformers.GenerationConfig
        config = kind(
            max_new_tokens=limit,
            min_new_tokens=limit,
            do_sample=n > 1,
            num_return_sequences=n,
            eos_token_id=None,
            pad_token_id=0,
            **({"temperature": 1.0, "top_k": 0, "top_p": 1.0} if n > 1 else {}),
        )
        self.model.generation_config = config
        tokens_1T = torch.tensor([prompt])
        with torch.inference_mode():
            out = self.model.generate(tokens_1T, attention_mask=torch.ones_like(tokens_1T), generation_config=config)
        answer: list[int] = out[0, len(prompt) :].tolist()
        assert len(answer) == limit, "transformers wrote another number of tokens than it was asked for"
        return answer

    def extra(self, what: str, prompt: list[int]) -> dict[str, Any]:
        return {}


class LlamaCpp:
    """llama.cpp's server within the process (the prebuilt wheel xllamacpp); samples share the cache of their prompt."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def load(self, files: Files) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = files.ggufs[self.kind]
        params.n_parallel = 256
        params.n_ctx = 256 * 128
        params.kv_unified = True
        params.n_batch = params.n_ubatch = 512
        params.verbosity = 0
        params.port = 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = files.threads
        self.server = xllamacpp.Server(params)

    def run(self, prompt: list[int], n: int, limit: int) -> list[int]:
        answer = self.server.handle_completions(
            {
                "prompt": prompt,
                "n": n,
                "n_predict": limit,
                "ignore_eos": True,
                "temperature": 1.0 if n > 1 else 0.0,
                "samplers": ["temperature"],
                "cache_prompt": False,
            }
        )
        if "choices" not in answer or len(answer["choices"]) != n:
            raise RuntimeError(f"llama.cpp answered {str(answer)[:200]}")
        return []

    def extra(self, what: str, prompt: list[int]) -> dict[str, Any]:
        return {}


class OpenVino:
    """OpenVINO GenAI, from the same GGUF file."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def load(self, files: Files) -> None:
        import openvino_genai

        self.api = openvino_genai
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False  # others read the prompt anew, too
        options = {"INFERENCE_NUM_THREADS": files.threads, "scheduler_config": scheduler}
        self.pipeline = openvino_genai.LLMPipeline(files.ggufs[self.kind], "CPU", **options)

    def run(self, prompt: list[int], n: int, limit: int) -> list[int]:
        import numpy as np
        import openvino

        config = self.api.GenerationConfig()
        config.max_new_tokens = limit
        config.ignore_eos = True
        config.apply_chat_template = False
        config.do_sample = n > 1
        if n > 1:
            config.temperature, config.top_k, config.top_p, config.num_return_sequences = 1.0, 2**31, 1.0, n
        ids = np.array([prompt], np.int64)
        inputs = self.api.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        out = self.pipeline.generate(inputs, config)
        if len(out.tokens) != n or any(len(answer) != limit for answer in out.tokens):
            raise RuntimeError(f"OpenVINO wrote {len(out.tokens)} answers where {n} were asked for")
        return list(out.tokens[0])

    def extra(self, what: str, prompt: list[int]) -> dict[str, Any]:
        return {}


class CTranslate2:
    """CTranslate2, converted from the Hugging Face folder."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def load(self, files: Files) -> None:
        import ctranslate2

        with tempfile.TemporaryDirectory() as folder:
            to = str(Path(folder) / "model")
            ctranslate2.converters.TransformersConverter(files.folder).convert(to, quantization=self.kind)
            self.generator = ctranslate2.Generator(to, device="cpu", inter_threads=1, intra_threads=files.threads)
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(files.folder)

    def run(self, prompt: list[int], n: int, limit: int) -> list[int]:
        words = self.tokenizer.convert_ids_to_tokens(prompt)
        drawn = {"sampling_topk": 0, "sampling_temperature": 1.0} if n > 1 else {"sampling_topk": 1}
        (result,) = self.generator.generate_batch(
            [words],
            max_length=limit,
            min_length=limit,
            num_hypotheses=n,
            include_prompt_in_result=False,
            **drawn,
        )
        if len(result.sequences_ids) != n or any(len(answer) != limit for answer in result.sequences_ids):
            raise RuntimeError(f"CTranslate2 wrote {len(result.sequences_ids)} answers where {n} were asked for")
        return list(result.sequences_ids[0])

    def extra(self, what: str, prompt: list[int]) -> dict[str, Any]:
        return {}


# name: how it is made, its package, and the GGUF file that it reads
CONTENDERS: dict[str, tuple[Callable[[], Contender], str, str]] = {
    "klype float32": (lambda: Klype("float32"), "klype", ""),
    "klype bfloat16": (lambda: Klype("bfloat16"), "klype", ""),
    "klype int8": (lambda: Klype("int8"), "klype", ""),
    "klype Q4_0": (lambda: Klype("float32", "Q4_0"), "klype", "Q4_0"),
    "klype Q4_1": (lambda: Klype("float32", "Q4_1"), "klype", "Q4_1"),
    "klype Q8_0": (lambda: Klype("float32", "Q8_0"), "klype", "Q8_0"),
    "transformers float32": (lambda: Transformers("float32"), "transformers", ""),
    "transformers bfloat16": (lambda: Transformers("bfloat16"), "transformers", ""),
    "llama.cpp Q4_0": (lambda: LlamaCpp("Q4_0"), "xllamacpp", "Q4_0"),
    "llama.cpp Q4_1": (lambda: LlamaCpp("Q4_1"), "xllamacpp", "Q4_1"),
    "llama.cpp Q8_0": (lambda: LlamaCpp("Q8_0"), "xllamacpp", "Q8_0"),
    "llama.cpp BF16": (lambda: LlamaCpp("BF16"), "xllamacpp", "BF16"),
    "OpenVINO GenAI": (lambda: OpenVino("given"), "openvino-genai", "given"),
    "CTranslate2 int8": (lambda: CTranslate2("int8"), "ctranslate2", ""),
}


def package_version(package: str) -> str | None:
    """The installed version of a package, None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
