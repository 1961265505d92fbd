"""The roofline of a machine: weight bytes over measured bandwidth, FLOPs over measured matrix speed."""

from __future__ import annotations

import platform
from typing import Any

import psutil

from benchmarks.task import PROMPT
from klype.device import bandwidth_gbs, gemm_gflops, memory_gib, processor, set_threads
from klype.model.config import ModelConfig

# bytes per weight, by the last word of an engine's name (OpenVINO reads the given file: Q4_1)
BYTES = {
    **{"float32": 4.0, "bfloat16": 2.0, "BF16": 2.0, "int8": 1.0},
    **{"Q8_0": 8.5 / 8, "Q4_1": 5.0 / 8, "Q4_0": 4.5 / 8, "GenAI": 5.0 / 8},
}


def machine(threads: int) -> dict[str, Any]:
    """The processor, its threads and its measured limits."""
    set_threads(threads)
    return {
        "processor": processor(),
        "system": platform.platform(),
        "threads": threads,
        "memory_gib": round(memory_gib()[0], 1),
        "load": [round(x, 2) for x in psutil.getloadavg()],
        "bandwidth_gbs": bandwidth_gbs(),
        "gflops": {dtype: gemm_gflops(dtype, 2048) for dtype in ("float32", "bfloat16")},
    }


def roofline(config: ModelConfig, engine: str, limits: dict[str, Any]) -> dict[str, Any]:
    """The roofline in tokens per second: a single stream is bound by reading every weight once per token, many streams
    by arithmetic."""
    kind = engine.split()[-1]
    size = config.parameters * BYTES[kind]
    dtype = "float32" if kind == "float32" else "bfloat16"
    return {
        "single": limits["bandwidth_gbs"] * 1e9 / size,
        "many": limits["gflops"][dtype] * 1e9 / config.flops_at(PROMPT),
        "many_in": dtype,
    }
