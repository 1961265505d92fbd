"""Rotary positions (Su et al. 2021, arXiv:2104.09864), in the half-split order of Hugging Face's checkpoints."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from klype.model.config import ModelConfig, RopeScaling


def rope_table(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """cos_PH and sin_PH, P positions up to the window, H head_dim; the sign of ``rotate``'s first half is in sin."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / (config.rope_theta**half)
    if config.rope_scaling is not None:
        frequencies = _scaled(frequencies, config.rope_scaling)
    angles_PF = torch.outer(torch.arange(config.window, dtype=torch.float32), frequencies)
    cos, sin = angles_PF.cos(), angles_PF.sin()
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the last dimension by its position's angles; cos and sin broadcast against x."""
    half = x.shape[-1] // 2
    return torch.addcmul(x * cos, torch.cat((x[..., half:], x[..., :half]), -1), sin)


def _scaled(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    wavelengths = 2 * math.pi / frequencies
    low, high, old = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_window
    blend = ((old / wavelengths - low) / (high - low)).clamp(0, 1)
    return (1 - blend) * frequencies / scaling.factor + blend * frequencies
