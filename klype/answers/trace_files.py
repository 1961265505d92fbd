"""Traces on disk: answers with their distributions, so that a model is never asked the same twice.

NAME.safetensors holds the numbers (a distribution that several steps share is stored once), NAME.json everything else.
The JSON file is written last and holds the hash of the other, so that a pair that does not belong together is noticed.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as read_arrays
from safetensors.numpy import save as write_arrays

from klype import durable
from klype.jsons import parse
from klype.values import Distribution, Sampling, Step, StepSource, Tokens, Trace

STEP_SOURCES: tuple[StepSource, ...] = get_args(StepSource)
FORMAT = 1
ROW = ("seed", "sample", "model", "ended", "passes", "seconds", "joules")  # fields of a trace that JSON holds as is


def save(folder: Path, name: str, traces: Sequence[Trace], about: dict[str, Any]) -> None:
    """Writes both files, atomically. ``about``: what the traces answer, as anything JSON can hold. Raises KlypeError
    when the folder cannot be written."""
    prompts, samplings = dict[Tokens, int](), dict[Sampling, int]()  # stored once: thousands of traces share a few
    known, listed = dict[tuple[bytes, bytes, float], int](), list[int]()
    kept: list[Distribution] = []
    steps = [step for trace in traces for step in trace.steps]
    for q in (step.distribution for step in steps):
        if q is not None and (key := (q.ids.tobytes(), q.logp.tobytes(), q.rest)) not in known:
            known[key] = len(kept)
            kept.append(q)
        listed.append(-1 if q is None else known[key])
    ids = np.concatenate([np.zeros(0, np.int64), *(q.ids for q in kept)])
    # four bytes per token where that is enough; servers that give texts instead of tokens have them numbered by hash
    narrow = np.int32 if ids.max(initial=0) < 2**31 else np.int64
    arrays: dict[str, npt.NDArray[Any]] = {
        "prompt": np.array([prompts.setdefault(trace.prompt, len(prompts)) for trace in traces], np.int64),
        "length": np.array([len(trace.steps) for trace in traces], np.int64),
        "token": np.array([step.token for step in steps], np.int64),
        "logp": np.array([step.logp for step in steps], np.float64),
        "drawn_logp": np.array([step.sampling_logprob for step in steps], np.float64),
        "how": np.array([STEP_SOURCES.index(step.source) for step in steps], np.uint8),
        "listed": np.array(listed, np.int64),
        "q_length": np.array([len(q.ids) for q in kept], np.int64),
        "q_rest": np.array([q.rest for q in kept], np.float64),
        "q_ids": ids.astype(narrow),
        "q_logp": np.concatenate([q.logp for q in kept]) if kept else np.zeros(0, np.float32),
    }
    data = write_arrays(arrays)
    rows = [
        {"sampling": samplings.setdefault(trace.sampling, len(samplings))} | {key: getattr(trace, key) for key in ROW}
        for trace in traces
    ]
    document = {"format": FORMAT, "sha256": hashlib.sha256(data).hexdigest(), "about": about, "prompts": list(prompts)}
    document |= {"samplings": [asdict(sampling) for sampling in samplings], "traces": rows}
    folder.mkdir(parents=True, exist_ok=True)
    durable.write_out(folder / f"{name}.safetensors", data)
    durable.write_out(folder / f"{name}.json", json.dumps(document, ensure_ascii=False, allow_nan=False).encode())


def load(folder: Path, name: str, about: dict[str, Any]) -> list[Trace] | None:
    """The traces of that name. None if there are none, they are damaged, or they are about something else."""
    try:
        document = parse((folder / f"{name}.json").read_bytes())
        data = (folder / f"{name}.safetensors").read_bytes()
        known = document["format"], document["sha256"], document["about"]
        if known != (FORMAT, hashlib.sha256(data).hexdigest(), json.loads(json.dumps(about))):
            return None
        arrays = read_arrays(data)
        bounds = np.concatenate([[0], np.cumsum(arrays["q_length"])]).tolist()
        q_ids, q_logp, rest = arrays["q_ids"].astype(np.int64), arrays["q_logp"], arrays["q_rest"].tolist()
        listed = [Distribution(q_ids[a:b], q_logp[a:b], r) for a, b, r in zip(bounds, bounds[1:], rest, strict=False)]
        columns = [arrays[key].tolist() for key in ("token", "logp", "drawn_logp", "how", "listed")]
        steps = [
            Step(v, p, d, STEP_SOURCES[h], listed[q] if q >= 0 else None)
            for v, p, d, h, q in zip(*columns, strict=True)
        ]
        samplings = [
            Sampling(**{**row, "logit_bias": tuple((int(i), float(x)) for i, x in row["logit_bias"])})
            for row in document["samplings"]
        ]
        prompts = [tuple(prompt) for prompt in document["prompts"]]
        ends = np.cumsum(arrays["length"]).tolist()
        rows = zip(document["traces"], arrays["prompt"].tolist(), arrays["length"].tolist(), ends, strict=True)
        return [
            Trace(prompts[at], tuple(steps[end - length : end]), **{**row, "sampling": samplings[row["sampling"]]})
            for row, at, length, end in rows
        ]
    except (OSError, ValueError, KeyError, TypeError, IndexError, SafetensorError):
        return None
