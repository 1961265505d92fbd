"""What is measured of a model of text: bits per byte (and those of xz and n-grams), next words, what it has by heart.

All of it on one sample of the held-out documents, in an order of their hashes, so that every source has its part.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
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
from klype.examine.run_figures import JsonObject
from klype.model.transformer import Transformer
from klype.runs.dictionary import tokens_of, words_of
from klype.text.tokenizer import Tokenizer
from klype.values import Figure, Request, Sampling, Trace

BYTES = 400_000  # of held-out text that are measured; with little time FEW_BYTES
FEW_BYTES = 60_000
WRITTEN, BEGUN = 60, 8  # words: free writing, and its beginning
HOT_PLACES = 30
PLACES = 80  # beginnings that are continued
FIGURES = ("repetition", "distinct", "same_text")  # of free writing at each temperature


@torch.inference_mode()
def token_bits(
    model: Callable[[torch.Tensor], torch.Tensor], ids: Sequence[int], window: int, rows: int = 1
) -> npt.NDArray[np.float64]:
    """Cross-entropy in bits of each token but the first, over windows that overlap by half, so that every token has
    some context. ``model``: tokens [B, T] to logits; it reads ``rows`` windows at a time."""
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
    """Measures of a text model on held-out documents. ``split``: what was trained on, and what was held out."""

    def __init__(self, split: Split, tokenizer: Tokenizer, window: int) -> None:
        self._train, self._tokenizer, self._window = split.train, tokenizer, window
        self._held_out = sorted(
            split.held_out, key=lambda d: hashlib.sha256(d.text.encode("utf-8", "replace")).digest()
        )
        self._measured = self._sample(BYTES)

    def _sample(self, budget: int) -> list[TextDocument]:
        documents, size = [], 0
        for document in self._held_out:
            documents.append(document)
            size += len(document.text.encode())
            if size > budget:
                break
        return documents

    def bits_per_byte(self, model: Transformer, few: bool) -> Figure:
        """Bits per byte of the sample; each document is read from its own beginning."""
        self._measured = self._sample(FEW_BYTES if few else BYTES)
        bits, sizes = [], []
        for document in self._measured:
            ids = self._tokenizer.encode_document(document.text)
            # where no token begins a document, it is read behind the end of another
            if not self._tokenizer.lead and self._tokenizer.end >= 0:
                ids = [self._tokenizer.end, *ids]
            bits_N = token_bits(lambda tokens_BT: model(tokens_BT.to(model.embed.weight.device)), ids, self._window)
            bits.append(float(bits_N.sum()))
            sizes.append(float(len(document.text.encode())))
        return ratio_of_means(bits, sizes, "bits per byte")

    def vocabulary(self) -> set[str]:
        """Every word of the training text."""
        return words_of(document.text for document in self._train)

    def yardsticks(self) -> JsonObject:
        """xz and a byte 5-gram on the very documents that the model was measured on."""
        held_out = "\n\n".join(d.text for d in self._measured).encode()
        train = "\n\n".join(d.text for d in self._train).encode()
        return {
            "held_out_bytes": len(held_out),
            "xz": xz_bits_per_byte(held_out),
            "ngram": ngram_bits_per_byte(train, held_out),
            "ngram_order": 5,
        }

    def beginning(self, words: int, place: int = 0) -> str:
        """The first words of a held-out text, as a document begins, white space as it stands."""
        text = self._held_out[place % len(self._held_out)].text
        return " " + " ".join(text.split(" ")[:words])

    def next_words(self, model: Transformer) -> list[JsonObject]:
        """After the first words of three held-out texts."""
        shown: list[JsonObject] = []
        for place in range(min(3, len(self._held_out))):
            start = self.beginning(BEGUN, place)
            prompt = self._prompt(start)
            q = Engine(model).next([prompt], top=8)[0]
            tokens: list[JsonObject] = [
                {"token": self._tokenizer.decode([int(i)]), "id": int(i), "p": float(math.exp(lp))}
                for i, lp in zip(q.ids[:8], q.logp[:8], strict=True)
            ]
            rest = max(0.0, 1 - sum(t["p"] for t in tokens))
            shown.append({"prompt": " ".join(start.split()), "tokens": tokens, "rest": rest})
        return shown

    def by_heart(self, model: Transformer, answers: Sequence[str], seed: int, temperature: float) -> dict[str, Any]:
        """What the model writes freely, its answers, and held-out text itself: how much stands in what was read."""
        index, sampling = Index(d.text for d in self._train), Sampling(temperature=temperature)
        places = range(min(PLACES, len(self._held_out)))
        requests = []
        for start in (self.beginning(BEGUN, place) for place in places):
            prompt, noise = self._prompt(start), draw_seed(seed, start, temperature)
            limit = max(1, min(2 * WRITTEN, self._window - len(prompt)))
            requests.append(Request(tuple(prompt), 1, limit, sampling, noise, stop=self._tokenizer.ends))
        traces = Engine(model, decode_bytes=self._tokenizer.token_bytes).run(requests)
        texts = {
            "free": [self._tokenizer.decode_answer(trace.tokens) for (trace,) in traces],
            "held_out": [" ".join(self._held_out[p].text.split(" ")[BEGUN : BEGUN + WRITTEN]) for p in places],
            "answers": answers,
        }
        # texts too short to tell are left out
        runs = {k: [(i, run) for i, t in enumerate(of) if (run := find_copied(t, index))] for k, of in texts.items()}
        shares = {
            name: mean_by_question([run.share for _, run in of], [str(i) for i, _ in of], "share of words")
            for name, of in runs.items()
        }
        facts: dict[str, Any] = {name: figure.json() for name, figure in shares.items() if figure.value is not None}
        if "free" not in facts or "held_out" not in facts:
            return {}
        longest = max((run for name in ("free", "answers") for _, run in runs[name]), key=lambda run: run.longest)
        out: dict[str, Any] = {"copied": {**facts, "longest": longest.longest, "temperature": temperature}}
        return {**out, "copied_example": longest.text} if longest.longest else out

    def temperatures(
        self, model: Transformer, temperatures: Sequence[float], is_word: Callable[[str], bool], seed: int
    ) -> list[JsonObject]:
        """Free writing after the same beginnings: how much it repeats, and how many of its words are words."""
        places = range(min(HOT_PLACES, len(self._held_out)))
        prompts = [self._prompt(self.beginning(BEGUN, place)) for place in places]
        engine = Engine(model, decode_bytes=self._tokenizer.token_bytes)
        rows: list[JsonObject] = []
        for temperature in temperatures:
            sampling, ends = Sampling(temperature=temperature), self._tokenizer.ends
            requests = [
                Request(tuple(p), 2, min(WRITTEN, self._window - len(p)), sampling, seed + i, stop=ends)
                for i, p in enumerate(prompts)
            ]
            groups = engine.run(requests)
            answered = [
                JudgedAnswer(str(i), tuple(self._tokenizer.decode_answer(t.tokens).split()), t.ended)
                for i, traces in enumerate(groups)
                for t in traces
            ]
            figures = measure(Evidence(answered))
            shown: dict[str, Any] = {k: figures[k].json() for k in figures if k in FIGURES}
            shown["real_words"] = real_words(answered, is_word).json()
            samples = [self._written(trace) for trace in groups[0]]
            rows.append({"temperature": temperature, "figures": shown, "samples": samples})
        return rows

    def _written(self, trace: Trace) -> JsonObject:
        decode, steps = self._tokenizer.decode, [s for s in trace.steps if s.token not in self._tokenizer.ends]
        return {
            "text": self._tokenizer.decode_answer(trace.tokens),
            "tokens": [{"text": decode([s.token]), "p": min(1.0, math.exp(s.logp))} for s in steps],
            "ended": trace.ended,
        }

    def _prompt(self, start: str) -> list[int]:
        tokens = [*self._tokenizer.lead, *self._tokenizer.encode(start)]
        return tokens[: max(1, self._window - 1)]


def real_words(answered: Sequence[JudgedAnswer], is_word: Callable[[str], bool]) -> Figure:
    """The share of words that are words, punctuation and the last (which may be cut) apart."""
    found: list[tuple[str, float]] = []
    for answer in answered:
        told = tokens_of(" ".join(answer.words[:-1] if answer.ended == "length" else answer.words))
        if told:
            found.append((answer.question, sum(map(is_word, told)) / len(told)))
    return mean_by_question([share for _, share in found], [name for name, _ in found], "share of words")
