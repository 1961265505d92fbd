"""Measures of a model of text: bits per byte (also of xz and n-grams), next words, memorised text, free writing.

All on one sample of the held-out documents, in the order of their hashes, so that every source is represented.
"""

import hashlib
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.utils.rnn import pad_sequence

from klype.data.documents import Split
from klype.data.ngram import ngram_bits_per_byte, xz_bits_per_byte
from klype.data.readers import TextDocument
from klype.data.seeds import draw_seed
from klype.engine.engine import Engine
from klype.examine.evidence import Evidence, JudgedAnswer
from klype.examine.intervals import mean_by_question, ratio_of_means
from klype.examine.measures import measure
from klype.examine.repetition import Index, find_copied
from klype.examine.run_facts import JsonObject, answer_tokens
from klype.model.transformer import Transformer
from klype.runs.dictionary import tokens_of, words_of
from klype.text.tokenizer import Tokenizer
from klype.values import Figure, Request, Sampling, Trace

BYTES = 400_000  # of held-out text in the sample
FEW_BYTES = 60_000  # the same, where there is little time
WRITTEN, BEGUN = 60, 8  # free writing: tokens (and words of held-out text to compare with), words of its beginning
HOT_PLACES = 30  # beginnings that are continued at each temperature
PLACES = 80  # beginnings that are continued to look for memorised text
FIGURES = ("repetition", "distinct", "same_text")  # of free writing at each temperature


@torch.inference_mode()
def token_bits(
    model: Callable[[torch.Tensor], torch.Tensor], ids: Sequence[int], window: int, rows: int = 1
) -> npt.NDArray[np.float64]:
    """Cross-entropy in bits of every token but the first, over windows that overlap by half, so that tokens have
    context. ``model``: tokens [B, T] → logits [B, T, V]; it gets ``rows`` windows at a time."""
    ids_N, half = torch.tensor(ids), window // 2
    nats_N = torch.zeros(len(ids), dtype=torch.float64)
    starts = range(0, max(1, len(ids) - 1 - half), window - half) if len(ids) > 1 else range(0)
    for at in range(0, len(starts), rows):
        pieces = [ids_N[start : start + window + 1] for start in starts[at : at + rows]]
        piece_BT = pad_sequence(pieces, batch_first=True)
        logp_BTV = model(piece_BT[:, :-1]).float().log_softmax(-1)
        logp_BT = logp_BTV.gather(-1, piece_BT[:, 1:, None].to(logp_BTV.device))[..., 0].cpu()
        for start, piece, logp_T in zip(starts[at : at + rows], pieces, logp_BT, strict=True):
            own = half if start else 0
            nats_N[start + own + 1 : start + len(piece)] = -logp_T[own : len(piece) - 1]
    bits_N: npt.NDArray[np.float64] = nats_N[1:].numpy() / math.log(2)
    return bits_N


class TextMeasures:
    """Measures of text models on held-out documents. ``split``: the training and the held-out documents."""

    def __init__(self, split: Split, tokenizer: Tokenizer, window: int) -> None:
        self._train, self._tokenizer, self._window = split.train, tokenizer, window
        self._held_out = sorted(
            split.held_out, key=lambda d: hashlib.sha256(d.text.encode("utf-8", "replace")).digest()
        )
        self._few = False

    def _sample(self) -> list[TextDocument]:
        """The held-out documents that the last model was measured on."""
        ends = list(accumulate(len(document.text.encode()) for document in self._held_out))
        return self._held_out[: 1 + bisect_right(ends, FEW_BYTES if self._few else BYTES)]

    def bits_per_byte(self, model: Transformer, few: bool) -> Figure:
        """Bits per byte of the sample, each document on its own. ``few``: on a smaller sample."""
        self._few, bits, sizes = few, list[float](), list[float]()
        for document in self._sample():
            ids = self._tokenizer.encode_document(document.text)
            # without a token for the beginning, the first token is predicted from the end of another document
            if not self._tokenizer.lead and self._tokenizer.end >= 0:
                ids = [self._tokenizer.end, *ids]
            bits_N = token_bits(lambda tokens_BT: model(tokens_BT.to(model.embed.weight.device)), ids, self._window)
            bits.append(float(bits_N.sum()))
            sizes.append(float(len(document.text.encode())))
        return ratio_of_means(bits, sizes, "bits per byte")

    def vocabulary(self) -> set[str]:
        """The words of the training text."""
        return words_of(document.text for document in self._train)

    def yardsticks(self) -> JsonObject:
        """Bits per byte of xz and of a byte 5-gram on the documents that the last model was measured on."""
        held_out = "\n\n".join(d.text for d in self._sample()).encode()
        train = "\n\n".join(d.text for d in self._train).encode()
        return {
            "held_out_bytes": len(held_out),
            "xz": xz_bits_per_byte(held_out),
            "ngram": ngram_bits_per_byte(train, held_out),
            "ngram_order": 5,
        }

    def first_words(self, words: int, place: int = 0) -> str:
        """The first words of a held-out text, with its own white space, to continue from."""
        text = self._held_out[place % len(self._held_out)].text
        return " " + " ".join(text.split(" ")[:words])

    def next_words(self, model: Transformer) -> list[JsonObject]:
        """The model's next-token probabilities after the first words of three held-out texts."""
        shown: list[JsonObject] = []
        for place in range(min(3, len(self._held_out))):
            start = self.first_words(BEGUN, place)
            prompt = self._prompt(start)
            (q,) = Engine(model).next([prompt], top=8)
            likely = zip(q.ids[:8].tolist(), q.logp[:8].tolist(), strict=True)
            tokens = [{"token": self._tokenizer.decode([i]), "id": i, "p": math.exp(logp)} for i, logp in likely]
            rest = max(0.0, 1 - sum(t["p"] for t in tokens))
            shown.append({"prompt": " ".join(start.split()), "tokens": tokens, "rest": rest})
        return shown

    def by_heart(self, model: Transformer, answers: Sequence[str], seed: int, temperature: float) -> dict[str, Any]:
        """How much of the model's free writing, of its answers, and of held-out text itself is copied verbatim from the
        training text, and the longest copy."""
        index, places = Index(d.text for d in self._train), range(min(PLACES, len(self._held_out)))
        seeds = [draw_seed(seed, self.first_words(BEGUN, place), temperature) for place in places]
        engine = Engine(model, decode_bytes=self._tokenizer.token_bytes)
        traces = self._write(engine, temperature, seeds, 1, 2 * WRITTEN)
        texts = {
            "free": [self._tokenizer.decode_answer(trace.tokens) for (trace,) in traces],
            "held_out": [" ".join(self._held_out[p].text.split(" ")[BEGUN : BEGUN + WRITTEN]) for p in places],
            "answers": answers,
        }
        # texts that are too short are left out
        runs = {k: [(i, run) for i, t in enumerate(of) if (run := find_copied(t, index))] for k, of in texts.items()}
        facts: dict[str, Any] = {}
        for name, of in runs.items():
            share = mean_by_question([run.share for _, run in of], [str(i) for i, _ in of], "share of words")
            facts |= {} if share.value is None else {name: share.json()}
        if "free" not in facts or "held_out" not in facts:
            return {}
        longest = max((run for name in ("free", "answers") for _, run in runs[name]), key=lambda run: run.longest)
        out: dict[str, Any] = {"copied": {**facts, "longest": longest.longest, "temperature": temperature}}
        return {**out, "copied_example": longest.text} if longest.longest else out

    def temperatures(
        self, model: Transformer, temperatures: Sequence[float], is_word: Callable[[str], bool], seed: int
    ) -> list[JsonObject]:
        """Free writing from the same beginnings at each temperature: repetition, the share of real words, samples."""
        seeds = range(seed, seed + min(HOT_PLACES, len(self._held_out)))
        engine, rows = Engine(model, decode_bytes=self._tokenizer.token_bytes), list[JsonObject]()
        answer, ends, raw = self._tokenizer.decode_answer, self._tokenizer.ends, self._tokenizer.token_bytes
        for temperature in temperatures:
            groups = self._write(engine, temperature, seeds, 2, WRITTEN)
            drawn = [(i, trace) for i, traces in enumerate(groups) for trace in traces]
            answered = [JudgedAnswer(str(i), tuple(answer(t.tokens).split()), t.ended) for i, t in drawn]
            shown: dict[str, Any] = {k: f.json() for k, f in measure(Evidence(answered), FIGURES).items()}
            shown["real_words"] = real_words(answered, is_word).json()
            samples = [
                {"text": answer(t.tokens), "tokens": answer_tokens(t, ends, raw), "ended": t.ended} for t in groups[0]
            ]
            rows.append({"temperature": temperature, "figures": shown, "samples": samples})
        return rows

    def _write(self, engine: Engine, temperature: float, seeds: Sequence[int], n: int, most: int) -> list[list[Trace]]:
        """``n`` continuations, of at most ``most`` tokens, of one beginning per seed."""
        sampling, ends, requests = Sampling(temperature=temperature), self._tokenizer.ends, list[Request]()
        for place, seed in enumerate(seeds):
            prompt = self._prompt(self.first_words(BEGUN, place))
            limit = max(1, min(most, self._window - len(prompt)))
            requests.append(Request(tuple(prompt), n, limit, sampling, seed, stop=ends))
        return engine.run(requests)

    def _prompt(self, start: str) -> list[int]:
        tokens = [*self._tokenizer.lead, *self._tokenizer.encode(start)]
        return tokens[: max(1, self._window - 1)]


def real_words(answered: Sequence[JudgedAnswer], is_word: Callable[[str], bool]) -> Figure:
    """The share of real words in the answers, without punctuation and a last word that may be cut off."""
    found: list[tuple[str, float]] = []
    for answer in answered:
        told = tokens_of(" ".join(answer.words[:-1] if answer.ended == "length" else answer.words))
        if told:
            found.append((answer.question, sum(map(is_word, told)) / len(told)))
    return mean_by_question([share for _, share in found], [name for name, _ in found], "share of words")
