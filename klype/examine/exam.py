"""Runs an examination: answers, experiments, trees and forks. All are kept as traces, so that it can be resumed."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from klype.answers.forks import Forks, ForkSettings, forks
from klype.answers.tree import Tree, TreeSettings, grow
from klype.data.seeds import draw_seed
from klype.examine import evidence, interventions
from klype.examine.caching_source import Joules, Recorder
from klype.examine.error_feedback import InterventionOutcome, Right, WordSwap, outcomes, word_swaps
from klype.examine.evidence import DistributionCache, Evidence
from klype.examine.examined_model import PER_PAIR, EvalTarget, ExamSpeed, fork_tokens
from klype.examine.interventions import FeedbackSettings, Intervention, MatchedPairs, Query
from klype.examine.settings import ExamSettings
from klype.examine.truth import PrefixTruth, Reader
from klype.sources.source import Source, answers
from klype.values import Question, Request, Sampling, Tokens, Trace

AT_ONCE = 100  # new questions per round of the search for matched pairs
PROBED = 8  # questions that are answered to estimate the time
Progress = Callable[[str, int, int], None]  # (part, done, total); done is 0 when the part starts
Found = TypeVar("Found")


@dataclass
class ExamResult:
    """The results of an examination, by temperature where they depend on it. ``true``: answers drawn from the truth,
    scored by the model. ``model_s``: seconds spent in the model, of all ``seconds``."""

    target: EvalTarget
    settings: ExamSettings
    evidence: dict[float, Evidence] = field(default_factory=dict)
    traces: dict[float, list[list[Trace]]] = field(default_factory=dict)
    true: list[Trace] = field(default_factory=list)
    passes: int = 0
    tokens: int = 0
    model_s: float = 0.0
    seconds: float = 0.0

    @property
    def interventions(self) -> dict[float, list[Intervention]]:
        """The interventions of the feedback experiment that the rule gave (not those of the matched search)."""
        forced = {t: [one.intervention for one in found.outcomes] for t, found in self.evidence.items()}
        return {t: [one for one in found if one.by_rule] for t, found in forced.items()}


def examine(
    target: EvalTarget,
    settings: ExamSettings,
    folder: Path | None = None,
    progress: Progress = lambda part, done, of: None,
    given: Mapping[float, list[Intervention]] | None = None,
    joules: Joules = lambda: None,
) -> ExamResult:
    """Examines a model as the settings say. Traces are written to ``folder/traces``, if a folder is given; traces of
    the same weights that are already there are not computed again.

    ``given``: another model's interventions by temperature, which are used instead of the model's own, so that two
    models are compared after the same prefixes and words.
    """
    began = time.perf_counter()
    source = Recorder(target.source, target.identity, None if folder is None else folder / "traces", joules)
    context = EvalContext(target, settings, source, progress)
    found = ExamResult(target, settings, true=context.true)
    for t in settings.temperatures:
        found.traces[t] = context.answers(t)
        evidence = context.evidence(t, found.traces[t])
        if t > 0 and settings.interventions:
            if target.reader is None:
                # where it is unknown which words can follow, whole answers are judged instead
                evidence = replace(evidence, replaced=context.word_swaps(t, found.traces[t], evidence))
            elif target.whole:
                after = context.feedback(t, (given or {}).get(t))
                evidence = replace(evidence, outcomes=after, dropped=context.matched_pairs.dropped)
        found.evidence[t] = evidence
    trees, main = context.trees(), settings.main
    found.evidence[main] = replace(found.evidence[main], trees=trees, forks=context.forks(found.traces[main]))
    source.finish()
    found.passes, found.tokens, found.model_s = source.passes, source.tokens, source.model_s
    found.seconds = time.perf_counter() - began
    return found


def probe(target: EvalTarget, settings: ExamSettings, clock: Callable[[], float] = time.perf_counter) -> ExamSpeed:
    """Measures the model's speed by answering a few questions and, where klype runs the model itself, by growing the
    first trees part of the way."""
    context = EvalContext(target, settings, target.source)
    requests = [context.request(i, settings.main) for i in range(min(PROBED, len(target.prompts)))]
    answers(target.source, requests[:1])  # warm-up: the first call is slower
    began = clock()
    traces = [trace for group in answers(target.source, requests) for trace in group]
    # a clock may be too coarse for a tiny model
    speed = sum(len(trace.steps) for trace in traces) / max(1e-6, clock() - began)
    tokens, tree_speed = float(np.mean([len(trace.steps) for trace in traces])), speed
    if settings.trees and target.shape is not None:
        places = range(min(target.trees_together(settings.limit), settings.trees, len(target.prompts)))
        began = clock()
        # in batches as later, to a quarter of the budget: a prefix costs much the same throughout
        grown = context.grow(places, settings.tree_budget // 4 or 1)
        tree_speed = sum(tree.expansions for tree in grown) / max(1e-6, clock() - began)
    return ExamSpeed(tokens, speed, tree_speed, fork_tokens(traces))


def draw(target: EvalTarget, settings: ExamSettings, temperature: float) -> list[list[Trace]]:
    """The answers to each question at a temperature, not judged."""
    return EvalContext(target, settings, target.source).answers(temperature)


@dataclass(frozen=True)
class EvalContext:
    """The parts of an examination. What does not depend on the temperature is computed once."""

    target: EvalTarget
    settings: ExamSettings
    source: Source
    progress: Progress = lambda part, done, of: None

    @cached_property
    def readers(self) -> list[Reader | None]:
        """The truth of each question; None where it is unknown, or distributions are not kept."""
        reader = None if self.settings.keeps == "answers" else self.target.reader
        return [None if reader is None else reader(question) for question in self.target.questions]

    @cached_property
    def true(self) -> list[Trace]:
        """One answer to each question drawn from the truth, scored by the model; none where the truth is unknown."""
        target, settings, said = self.target, self.settings, list[Tokens]()
        readers = [reader for reader in self.readers if reader is not None]
        if not readers or not target.whole or settings.keeps != "truth":
            return []
        self.progress("truth", 0, len(readers))
        for place, reader in enumerate(readers):
            rng = np.random.default_rng([settings.seed, place, 17])
            tokens: Tokens = ()
            while len(tokens) < settings.limit and not set(tokens[-1:]) & set(target.source.codec.stop):
                p = reader.next(tokens)
                weights = np.array(list(p.values()))
                tokens = (*tokens, int(rng.choice(list(p), p=weights / weights.sum())))
            said.append(tokens)
        traces = self.source.score(target.prompts, said, -1)
        self.progress("truth", len(said), len(said))
        return traces

    @cached_property
    def crossings(self) -> list[tuple[float, ...]]:
        """``evidence.crossings`` of each answer in ``true``."""
        rows = zip(self.true, self.readers, strict=False)
        return [evidence.crossings(trace, reader) for trace, reader in rows if reader is not None]

    def request(self, place: int, temperature: float) -> Request:
        """The request for all answers to question number ``place`` at a temperature."""
        target, settings = self.target, self.settings
        # with a large vocabulary, distributions take megabytes per answer: they are kept only on explicit request
        listed = settings.keeps == "distributions" or (settings.keeps == "truth" and (target.whole or target.partial))
        return Request(
            target.prompts[place],
            n=settings.samples_at(temperature),
            limit=settings.limit,
            sampling=Sampling(temperature=temperature),
            seed=draw_seed(settings.seed, target.questions[place].prompt, temperature),
            stop=tuple(target.source.codec.stop),
            top=-1 if listed else 0,
        )

    def in_parts(self, part: str, total: int, size: int, make: Callable[[range], list[Found]]) -> list[Found]:
        """``make`` for ``size`` questions at a time, with progress: each part's traces survive an interruption."""
        out: list[Found] = []
        if total:
            self.progress(part, 0, total)
        for first in range(0, total, size):
            places = range(first, min(total, first + size))
            out += make(places)
            self.progress(part, places.stop, total)
        return out

    def answers(self, temperature: float) -> list[list[Trace]]:
        """The answers to each question at a temperature."""

        def drawn(places: range) -> list[list[Trace]]:
            return answers(self.source, [self.request(place, temperature) for place in places])

        return self.in_parts(f"answers {temperature:g}", len(self.target.prompts), self.settings.chunk, drawn)

    def evidence(self, temperature: float, groups: Sequence[Sequence[Trace]]) -> Evidence:
        """The evidence of each question's answers (``groups``), without experiments, trees and forks."""
        target, true = self.target, self.true
        judged, told, sums = list[evidence.JudgedAnswer](), list[evidence.Forecast](), list[evidence.ByQuestion]()
        documents: list[list[PrefixTruth]] = []
        for place, (question, traces, reader) in enumerate(zip(target.questions, groups, self.readers, strict=True)):
            cache = DistributionCache(reader, temperature)
            judged += evidence.judged_answers(target, question, traces, cache)
            told += evidence.forecasts(question.id, traces, cache)
            if reader is not None and true and temperature > 0:
                sums.append(evidence.sums(traces[:4], true[place], cache, self.crossings[place]))
                documents.append(evidence.truth_points(true[place], reader, temperature))
        return Evidence(
            judged,
            documents,
            judge=target.judge_name,
            errors=target.errors,
            told=told,
            sums=sums,
            language={q.id: evidence.pieces(target, t) for q, t in zip(target.questions, true, strict=False)} or None,
            other_manners=target.other_manners,
            points=None if target.scores is None else target.scores(self.settings.limit),
        )

    @cached_property
    def queries(self) -> list[Query]:
        """The questions of the feedback experiment, with their truth."""
        rows = zip(self.target.questions, self.target.prompts, self.readers, strict=True)
        return [self._query(*row) for row in islice(rows, self.settings.interventions)]

    def _query(self, question: Question, prompt: Tokens, reader: Reader | None = None) -> Query:
        target = self.target
        assert target.reader is not None
        edits = target.edits(question) if target.edits is not None else None
        return Query(question.id, prompt, reader or target.reader(question), edits)

    @cached_property
    def matched_pairs(self) -> MatchedPairs:
        """Matched pairs, searched for in answers to new questions, or in new answers to the same questions where no
        others can be made."""
        settings, another = self.settings, self.target.another
        per_round = len(self.queries) if another is None else AT_ONCE
        number = max(1, settings.pairs * PER_PAIR // per_round) if settings.pairs else 0
        rounds = (
            [self._query(*another(i)) for i in range(first, first + AT_ONCE)] if another is not None else self.queries
            for first in range(0, number * AT_ONCE, AT_ONCE)
        )
        search = self.feedback_settings(settings.main or 1.0)
        return interventions.find_matched(self.source, rounds, search, self.target.is_word)

    def feedback_settings(self, temperature: float) -> FeedbackSettings:
        """The examination's settings, as those of the feedback experiment at a temperature."""
        settings = self.settings
        shared = {name: getattr(settings, name) for name in ("distances", "seed", "pairs", "limit")}
        return FeedbackSettings(temperature, samples=settings.intervention_samples, **shared)

    def feedback(self, temperature: float, given: list[Intervention] | None) -> list[InterventionOutcome]:
        """What follows the interventions by rule (those ``given``, where there are some), then the matched ones."""
        settings, total, part = self.feedback_settings(temperature), len(self.queries), f"feedback {temperature:g}"
        self.progress(part, 0, total)
        if given:
            known = {one.question for one in self.queries}
            forced = [one for one in given if one.question in known]
        else:
            forced = interventions.interventions(self.source, self.queries, settings, self.target.is_word)
        after = outcomes(self.source, self.queries, forced, settings)
        after += outcomes(self.source, self.matched_pairs.asked, self.matched_pairs.found, settings)
        self.progress(part, total, total)
        return after

    def word_swaps(self, temperature: float, groups: Sequence[Sequence[Trace]], evidence: Evidence) -> list[WordSwap]:
        """Word swaps in the first correct answer to each question."""
        target, judged = self.target, iter(evidence.answers)
        rows: list[tuple[str, Trace, Right]] = []
        for question, traces in zip(target.questions, groups, strict=True):
            rights = [trace for trace, answer in [(t, next(judged)) for t in traces] if answer.right]
            if rights and len(rows) < self.settings.interventions:
                rows.append((question.id, rights[0], partial(_right, target, question)))
        settings, n = self.feedback_settings(temperature), len(rows)
        return self.in_parts(f"feedback {temperature:g}", n, n or 1, lambda _: word_swaps(self.source, rows, settings))

    def trees(self) -> list[Tree]:
        """The trees of the first ``settings.trees`` questions."""
        settings, together = self.settings, self.target.trees_together(self.settings.limit)
        asked = min(settings.trees, len(self.target.prompts))
        return self.in_parts("trees", asked, together, lambda places: self.grow(places, settings.tree_budget))

    def grow(self, places: range, budget: int) -> list[Tree]:
        """The trees of some questions, grown together, each with ``budget`` prefixes."""
        target, limit, sampling = self.target, self.settings.limit, Sampling(temperature=self.settings.main)
        grown = TreeSettings(sampling, limit, budget, vocabulary=target.vocabulary, batch=target.tree_batch)
        prompts = [target.prompts[place] for place in places]
        meanings = [target.meaning(target.questions[place]) for place in places]
        return grow(self.source, prompts, grown, target.token_bytes, meanings)

    def forks(self, groups: Sequence[Sequence[Trace]]) -> list[Forks]:
        """Where the first answer to each of the first ``settings.forks`` questions was decided."""
        target, settings = self.target, self.settings

        def forked(places: range) -> list[Forks]:
            (place,), sampling = places, Sampling(temperature=settings.main)
            question, trace = target.questions[place], groups[place][0]
            # an empty answer has no tokens
            if not trace.steps:
                return []
            chosen = ForkSettings(sampling, settings.limit, settings.fork_samples, settings.seed + place)
            right = partial(_right, target, question) if question.answers else None
            return [forks(self.source, trace, chosen, target.meaning(question), right)]

        return self.in_parts("forks", min(settings.forks, len(target.questions)), 1, forked)


def _right(target: EvalTarget, question: Question, text: str, finished: bool = True) -> bool | None:
    return target.judge(question, text, finished).right
