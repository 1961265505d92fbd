"""Which questions to rank next: those on whose answers an ensemble fitted to the rankings so far disagrees."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from klype.errors import KlypeError
from klype.model import checkpoint
from klype.model.transformer import Transformer
from klype.preferences.candidates import most_informative
from klype.preferences.records import Asked, Entry
from klype.preferences.store import Store
from klype.runs.ranking import tokens
from klype.text.chat import Chat
from klype.train.rewards import Ranked, RewardSettings, fit_reward
from klype.values import Ranking

HEADS, STEPS = 8, 300


@dataclass(frozen=True, slots=True)
class Reader:
    """A run's fine-tuned model, as the trunk of a reward model."""

    trunk: Transformer
    chat: Chat

    @staticmethod
    def of(run: Path) -> Reader:
        loaded = checkpoint.load(run / "finetune")
        if loaded.chat is None:
            raise KlypeError(f"The model in {run / 'finetune'} has no chat template.")
        return Reader(loaded.model, loaded.chat)

    def ranked(self, rankings: Sequence[Ranking]) -> list[Ranked]:
        """Those of two answers or more that all fit the model's window."""
        found = [tokens(self.chat, ranking) for ranking in rankings if len(ranking.candidates) > 1]
        return [r for r in found if len(r.prompt) + max(map(len, r.answers)) <= self.trunk.config.window]


def prioritise(store: Store, run: Path, seed: int) -> list[int]:
    """Puts the questions that nobody has ranked in the order in which they would teach the most; their ids in it.

    Raises KlypeError when there are no rankings yet that an ensemble could be fitted to.
    """
    reader = Reader.of(run)
    entries = [e for e in store.entries() if e.kind != "skip"]
    known = by_people(entries)
    settings = RewardSettings(heads=HEADS, steps=STEPS, seed=seed)
    ranked = reader.ranked([e.ranking() for e in known if e.asked.part == "train"])
    if not ranked:
        raise KlypeError("--active learns from rankings, and there are none yet.", "Rank some questions without it.")
    with tempfile.TemporaryDirectory() as folder:
        model = fit_reward(reader.trunk, ranked, settings, Path(folder))
    done = {e.asked.id for e in known}
    open_ = [asked for asked in store.questions("train") if asked.id not in done]
    read = [(asked.id, found[0]) for asked in open_ if (found := reader.ranked([_all_tied(asked)]))]
    groups = [model.scores([r.prompt] * len(r.answers), r.answers) for _, r in read]
    order = [read[i][0] for i in most_informative(groups)]
    store.prioritise({question: float(len(order) - place) for place, question in enumerate(order)})
    return order


def by_people(entries: Sequence[Entry]) -> list[Entry]:
    """Simulated rankings count only while there are no others, as for the reward model itself."""
    others = [e for e in entries if e.by != "simulated"]
    return others or list(entries)


def _all_tied(asked: Asked) -> Ranking:
    texts = tuple(c.text for c in asked.candidates)
    return Ranking(asked.question, texts, (tuple(range(len(texts))),), "")
