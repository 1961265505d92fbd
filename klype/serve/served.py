"""A model as the server offers it: a name, an engine, the words it speaks, and which weights it has."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch

import klype
from klype.errors import UsageError
from klype.model.transformer import Transformer
from klype.sources.native import NativeSource
from klype.text.tokenizer import Tokenizer

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Served:
    """``name`` is what clients call it (never a path); ``created`` is in Unix seconds."""

    name: str
    source: NativeSource
    fingerprint: str
    spellings: tuple[bytes, ...]
    """What each of the model's tokens adds to a text: nothing for control tokens and for rows without a spelling."""
    longest: int
    """Bytes of the longest token."""
    created: int = 0

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise UsageError(
                f"'{self.name}' cannot be a model's name: use letters, digits, '.', '_' and '-'.",
                "Give it one: NAME=FOLDER.",
            )

    @staticmethod
    def of(name: str, source: NativeSource, created: int = 0) -> Served:
        """The source's engine is the server's from now on."""
        tokenizer, size = source.codec.tokenizer, source.engine.model.config.vocab_size
        spellings = tuple(tokenizer.token_bytes(i) if i < tokenizer.vocab_size else b"" for i in range(size))
        served = Served(name, source, fingerprint(source.engine.model), spellings, max(map(len, spellings)), created)
        source.engine.decode_bytes = served.token_bytes
        return served

    @property
    def tokenizer(self) -> Tokenizer:
        return self.source.codec.tokenizer

    @property
    def window(self) -> int:
        return self.source.engine.model.config.window

    @property
    def vocab_size(self) -> int:
        return self.source.engine.model.config.vocab_size

    def token_bytes(self, token: int) -> bytes:
        return self.spellings[token]

    def text(self, tokens: Iterable[int]) -> str:
        """What they spell; bytes that are no UTF-8 become U+FFFD. No call of Python a token: a client may send 2^18."""
        return b"".join(map(self.spellings.__getitem__, tokens)).decode(errors="replace")


@torch.no_grad()
def fingerprint(model: Transformer) -> str:
    """OpenAI's ``system_fingerprint``: the same answer can be expected from the same seed while it stays the same."""
    digest = hashlib.sha256(f"klype {klype.__version__} torch {torch.__version__}".encode())
    digest.update(model.config.model_dump_json().encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        plain = weight.to_dense() if weight.is_mkldnn else weight  # packed in oneDNN's blocks
        digest.update(plain.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return f"fp_{digest.hexdigest()[:12]}"
