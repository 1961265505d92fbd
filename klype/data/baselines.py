"""What a model of text must beat: xz of the held-out text alone, and a byte 5-gram learnt from the training text."""

from __future__ import annotations

import lzma

import numpy as np
import numpy.typing as npt

from klype.data.kneser_ney import KneserNey, three_discounts


def xz_bits_per_byte(text: bytes) -> float:
    """Bits per byte of ``text`` compressed alone by xz -6e (its window of 8 MiB holds a held-out text)."""
    return 8 * len(lzma.compress(text, preset=6 | lzma.PRESET_EXTREME)) / max(1, len(text))


def ngram_bits_per_byte(train: bytes, text: bytes, order: int = 5) -> float:
    """Cross-entropy in bits per byte of ``text`` under a byte n-gram of ``train``."""
    return float(ngram_bits(train, text, order).mean()) if text else 0.0


def ngram_bits(train: bytes, text: bytes, order: int = 5) -> npt.NDArray[np.float64]:
    """Bits of each byte of ``text`` under a byte n-gram of ``train``: interpolated, modified Kneser–Ney."""
    learnt, asked = (np.frombuffer(part, np.uint8).astype(np.uint64) for part in (train, text))
    bits_N: npt.NDArray[np.float64] = -np.log2(KneserNey([learnt], 256, order, three_discounts, first=0).of([asked]))
    return bits_N
