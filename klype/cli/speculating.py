"""``--speculate``: an answer written with guesses ahead, beside plain decoding of the same answer."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from klype.errors import KlypeError, UsageError
from klype.values import Request, Trace

if TYPE_CHECKING:
    from klype.engine.speculation import Draft
    from klype.sources.opening import Opened

DOCUMENTS = 2000
"""Of the demo world, drawn anew for the counts of an n-gram draft."""
WARM = 8
"""Tokens written before anything is timed: what is made at first use is not compared."""


def beside_plain(opened: Opened, request: Request, name: str, draft: Draft, gamma: int = 4) -> dict[str, Any]:
    """What guessing was worth: acceptance, tokens a pass, and the time beside plain decoding and the formula.

    Both ways are warm and read the prompt anew. ``name`` and ``draft``: see ``make_draft``.
    """
    from klype.engine.speculation import speculate

    engine, warming = opened.engine, replace(request, limit=min(WARM, request.limit))
    engine.run([warming])
    speculate(engine, warming, draft, gamma)
    engine.prefixes.clear()
    ((plain,),) = engine.run([request])
    engine.prefixes.clear()
    ((trace,), counts) = speculate(engine, request, draft, gamma)
    return {
        "draft": name,
        "gamma": gamma,
        "alpha": counts.alpha,
        "tokens_per_pass": counts.tokens_per_pass,
        "cost": counts.cost,
        "passes": trace.passes,
        "seconds": trace.seconds,
        "plain_passes": plain.passes,
        "plain_seconds": plain.seconds,
        "speedup": plain.seconds / trace.seconds if trace.seconds else None,
        "predicted_speedup": counts.predicted_speedup,
        "same_tokens": trace.tokens == plain.tokens,
    }


class Guessing:
    """Answers written with a draft's guesses, piece by piece, as plain decoding's are; counts over all of them."""

    def __init__(self, opened: Opened, draft_name: str, gamma: int = 4) -> None:
        from klype.engine.speculation import Speculation

        self.opened = opened
        self.name = draft_name
        self.draft = make_draft(opened, draft_name)
        self.gamma = gamma
        self.counts = Speculation(gamma)  # of the last answer

    def stream(self, request: Request) -> Iterator[tuple[str, Trace | None]]:
        """As ``klype.sources.opening.stream``."""
        from klype.engine.speculation import Speculation, passes
        from klype.sources.opening import Pieces

        pieces, self.counts = Pieces(), Speculation(self.gamma)
        for steps, trace in passes(self.opened.engine, request, self.draft, self.counts):
            data = b"".join(self.opened.spell(step.token) for step in steps)
            yield pieces.add(data, trace is not None), trace

    def document(self) -> dict[str, Any]:
        return {
            "draft": self.name,
            "gamma": self.gamma,
            "alpha": self.counts.alpha,
            "tokens_per_pass": self.counts.tokens_per_pass,
            "cost": self.counts.cost,
            "predicted_speedup": self.counts.predicted_speedup,
        }


def make_draft(opened: Opened, name: str) -> Draft:
    """``lookup``, ``ngram`` (of a demo-world run), ``ngram:FILE``, or a MODEL with the same tokenizer.

    Errors: a draft that cannot be had, or that has another vocabulary.
    """
    from klype.engine.speculation import LookupDraft, ModelDraft, NgramDraft

    own = opened.loaded  # of klype's own models only
    if name == "lookup":
        return LookupDraft()
    if name == "ngram" or name.startswith("ngram:"):
        return NgramDraft(_texts(opened, name.partition(":")[2]), own.config.vocab_size)
    from klype.sources.opening import open_model

    loaded = open_model(name, opened.how.precision, device=str(own.model.embed.weight.device)).loaded
    if loaded.config.vocab_size != own.config.vocab_size or not loaded.tokenizer.agrees(own.tokenizer):
        raise UsageError(
            f"The draft {name} and {opened.name} do not share a tokenizer: {loaded.config.vocab_size} tokens and"
            f" {own.config.vocab_size}, not all of them the same.",
            "Choose a draft that was trained with the same one.",
        )
    return ModelDraft(loaded.model)


def _texts(opened: Opened, file: str) -> list[list[int]]:
    tokenizer = opened.loaded.tokenizer
    if file:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except OSError as error:
            raise UsageError(f"The text {file} of the n-gram draft cannot be read: {error.strerror}.") from None
        except ValueError as error:
            raise UsageError(f"The text {file} of the n-gram draft is not UTF-8: {error}.") from None
        return tokenizer.encode_documents(text.split("\n\n"))
    from klype.runs.folder import read_run
    from klype.world.world import World

    settings = read_run(opened.found.run).get("settings", {}) if opened.found.run else {}
    if settings.get("kind") != "world":
        raise KlypeError(
            f"There is no text at hand to count for {opened.name}.", "Name one: --speculate ngram:FILE, or use lookup."
        )
    world, rng = World(settings.get("world", "full")), random.Random(0)
    return tokenizer.encode_documents([world.text(world.document(rng).words) for _ in range(DOCUMENTS)])
