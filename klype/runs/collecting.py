"""Fill a store of rankings: more answers to its questions from any model, and which questions to rank next."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from klype.data.seeds import draw_seed
from klype.errors import KlypeError
from klype.judge.meaning import text_meaning
from klype.model import checkpoint
from klype.model.transformer import Transformer
from klype.preferences.candidates import merge_near_duplicates, most_informative
from klype.preferences.records import Candidate, Entry, RankingItem
from klype.preferences.store import Store
from klype.runs.ranking import tokens
from klype.sources.source import Source, answers
from klype.text.chat import Chat
from klype.train.preference import RankedAnswers
from klype.train.reward_model import RewardSettings, fit_reward
from klype.values import Ranking, Request, Sampling, Trace

BATCH = 64  # questions a transaction


@dataclass(frozen=True, slots=True)
class DrawSettings:
    """``n`` answers at each of ``temperatures``, of ``limit`` tokens at most, for ``most`` questions (0: all)."""

    temperatures: tuple[float, ...] = (1.0,)
    n: int = 4
    limit: int = 48
    most: int = 0
    seed: int = 0


def draw_into(store: Store, name: str, source: Source, settings: DrawSettings) -> int:
    """Adds ``source``'s finished answers under ``name``; how many were new. What was drawn stays when it is stopped."""
    asked = store.questions()
    asked = asked[: settings.most] if settings.most else asked
    added = 0
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        groups: list[list[Candidate]] = [[] for _ in part]
        for temperature in settings.temperatures:
            for group, traces in zip(
                groups, answers(source, _requests(source, part, temperature, settings)), strict=True
            ):
                group += [_candidate(source, name, trace, temperature) for trace in traces if trace.ended == "stop"]
        new = [replace(one, candidates=_new(one, group)) for one, group in zip(part, groups, strict=True)]
        store.add([one for one in new if one.candidates])
        added += sum(len(one.candidates) for one in new)
    return added


def _requests(source: Source, part: Sequence[RankingItem], temperature: float, settings: DrawSettings) -> list[Request]:
    return [
        Request(
            tuple(source.codec.prompt(one.question.messages())),
            n=settings.n,
            limit=settings.limit,
            sampling=Sampling(temperature=temperature),
            seed=draw_seed(settings.seed, one.question.prompt, temperature),
            stop=tuple(source.codec.stop),
        )
        for one in part
    ]


def _candidate(source: Source, name: str, trace: Trace, temperature: float) -> Candidate:
    bare = replace(trace, steps=tuple(replace(step, distribution=None) for step in trace.steps), model=name)
    return Candidate(source.codec.decode(trace.tokens).strip(), name, temperature, trace=bare)


def _new(asked: RankingItem, drawn: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Those that say something and are no near-duplicate of what is there or was drawn before them."""
    every = [*asked.candidates, *(c for c in drawn if c.text)]
    merged = merge_near_duplicates([c.text for c in every], meaning=text_meaning(asked.question))
    return tuple(every[first] for first, *_ in merged if first >= len(asked.candidates))


HEADS, STEPS = 8, 300


@dataclass(frozen=True, slots=True)
class TrunkReader:
    """A run's fine-tuned model, as the trunk of a reward model."""

    trunk: Transformer
    chat: Chat

    @staticmethod
    def of(run: Path, device: torch.device | None = None) -> TrunkReader:
        loaded = checkpoint.load(run / "finetune", device=device)
        if loaded.chat is None:
            raise KlypeError(f"The model in {run / 'finetune'} has no chat template.")
        return TrunkReader(loaded.model, loaded.chat)

    def ranked(self, rankings: Sequence[Ranking]) -> list[RankedAnswers]:
        """Those of two answers or more that all fit the model's window."""
        found = [tokens(self.chat, ranking) for ranking in rankings if len(ranking.candidates) > 1]
        return [r for r in found if len(r.prompt) + max(map(len, r.answers)) <= self.trunk.config.window]


def prioritise(store: Store, run: Path, seed: int, device: torch.device | None = None) -> list[int]:
    """Puts the questions that nobody has ranked in the order in which they would teach the most; their ids in it.

    Raises KlypeError when there are no rankings yet that an ensemble could be fitted to.
    """
    reader = TrunkReader.of(run, device)
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


def _all_tied(asked: RankingItem) -> Ranking:
    texts = tuple(c.text for c in asked.candidates)
    return Ranking(asked.question, texts, (tuple(range(len(texts))),), "")
