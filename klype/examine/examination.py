"""The whole examination: answers, experiments and trees, each kept as traces so that a second start goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from klype.answers.forks import Forks, ForkSettings, forks
from klype.answers.tree import Tree, TreeSettings, grow_together
from klype.data.seeds import draw_seed
from klype.examine.caching_source import Recorder
from klype.examine.error_feedback import Replaced, Right, outcomes, replaced
from klype.examine.evidence import (
    Answered,
    ByQuestion,
    DistributionCache,
    Evidence,
    Told,
    answered,
    compared,
    crossings,
    pieces,
    sums,
    told,
)
from klype.examine.examined_model import PER_PAIR, EvalTarget, ExamSpeed, fork_tokens
from klype.examine.interventions import (
    Asked,
    FeedbackSettings,
    Intervention,
    MatchedPairs,
    MatchedSearch,
    find_matched,
    interventions,
)
from klype.examine.settings import ExamSettings
from klype.examine.truth import Point, Reader, Tokens
from klype.sources.source import Source, answers
from klype.values import Question, Request, Sampling, Trace

AT_ONCE = 100  # further questions that are asked at once in search of matched pairs
PROBED = 8  # questions from whose answers the time is estimated
Progress = Callable[[str, int, int], None]  # part, done (0: it begins), of how many


@dataclass
class Examined:
    """Everything that was found out, by temperature where it depends on it. ``true``: answers of the truth's own, and
    what the model thinks of them."""

    target: EvalTarget
    settings: ExamSettings
    evidence: dict[float, Evidence] = field(default_factory=dict)
    traces: dict[float, list[list[Trace]]] = field(default_factory=dict)
    interventions: dict[float, list[Intervention]] = field(default_factory=dict)
    trees: list[Tree] = field(default_factory=list)
    forks: list[Forks] = field(default_factory=list)
    true: list[Trace] = field(default_factory=list)
    passes: int = 0
    tokens: int = 0
    model_s: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Meters:
    """``clock``: seconds; ``joules``: what the machine has used so far, where that can be read."""

    clock: Callable[[], float] = time.perf_counter
    joules: Callable[[], float | None] = lambda: None


def examine(
    target: EvalTarget,
    settings: ExamSettings,
    folder: Path | None = None,
    progress: Progress = lambda part, done, of: None,
    given: Mapping[float, list[Intervention]] | None = None,
    meters: Meters | None = None,
) -> Examined:
    """Asks, judges, and measures what the settings want. Traces land in ``folder/traces``, where there is a folder;
    what is there from before, of the same weights, is not asked again.

    ``given``: another model's interventions by temperature; models are compared on the same beginnings and words.
    """
    meters = meters or Meters()
    began = meters.clock()
    kept = None if folder is None else folder / "traces"
    source = Recorder(target.source, target.identity, kept, meters.clock, meters.joules)
    context = EvalContext(target, settings, source, progress)
    found = Examined(target, settings, true=context.true)
    for t in settings.temperatures:
        found.traces[t] = context.answers(t)
        evidence = context.evidence(t, found.traces[t])
        if t > 0 and settings.interventions:
            if target.reader is None:
                # where nobody knows which words can follow, whole answers are judged
                evidence = replace(evidence, replaced=context.replaced(t, found.traces[t], evidence))
            elif target.whole:
                found.interventions[t], after = context.feedback(t, (given or {}).get(t))
                evidence = replace(evidence, **after)
        found.evidence[t] = evidence
    found.trees = context.trees()
    found.forks = context.forks(found.traces[settings.main])
    main = found.evidence[settings.main]
    found.evidence[settings.main] = replace(main, trees=found.trees, forks=found.forks)
    source.finish()
    found.passes, found.tokens, found.model_s = source.passes, source.tokens, source.model_s
    found.seconds = meters.clock() - began
    return found


def probe(target: EvalTarget, settings: ExamSettings, clock: Callable[[], float] = time.perf_counter) -> ExamSpeed:
    """A few questions answered, and trees begun as all will be, where klype computes the model itself."""
    context = EvalContext(target, settings, target.source)
    requests = [context.request(i, settings.main) for i in range(min(PROBED, len(target.prompts)))]
    answers(target.source, requests[:1])  # the first call is slower
    began = clock()
    traces = [trace for group in answers(target.source, requests) for trace in group]
    # a clock may be too coarse for a tiny model
    speed = sum(len(trace.steps) for trace in traces) / max(1e-6, clock() - began)
    tokens, tree_speed = float(np.mean([len(trace.steps) for trace in traces])), speed
    if settings.trees and target.shape is not None:
        places = range(min(target.trees_together(settings.limit), settings.trees, len(target.prompts)))
        began = clock()
        # as all will be grown, many in one batch, to a quarter: what a beginning costs is much the same
        grown = context.grown(places, settings.tree_budget // 4 or 1)
        tree_speed = sum(tree.expansions for tree in grown) / max(1e-6, clock() - began)
    return ExamSpeed(tokens, speed, tree_speed, fork_tokens(traces))


def draw(target: EvalTarget, settings: ExamSettings, temperature: float) -> list[list[Trace]]:
    """``settings.drawn`` answers to each question, not judged."""
    return EvalContext(target, settings, target.source).answers(temperature)


class EvalContext:
    """Where the examination is at: its source, all questions' readers, what depends on no temperature.

    ``matched``: the pairs of the feedback experiment, looked for once.
    """

    def __init__(
        self,
        target: EvalTarget,
        settings: ExamSettings,
        source: Source,
        progress: Progress = lambda part, done, of: None,
    ) -> None:
        self.target, self.settings, self.source, self.progress = target, settings, source, progress
        self.readers: dict[str, Reader] = {}
        self.crossed: dict[int, tuple[float, ...]] = {}
        self.matched: MatchedPairs | None = None

    @cached_property
    def true(self) -> list[Trace]:
        """One answer of the truth's own to each question, and what the model thinks of it token by token; none where
        the truth is not known."""
        target, settings, said = self.target, self.settings, list[Tokens]()
        if target.reader is None or not target.whole or settings.keeps != "truth":
            return []
        self.begin("truth", len(target.prompts))
        for place in range(len(target.prompts)):
            reader = self.reader(place)
            assert reader is not None
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
    def language(self) -> dict[str, tuple[str, ...]]:
        """Those answers token by token."""
        return {q.id: pieces(self.target, trace) for q, trace in zip(self.target.questions, self.true, strict=False)}

    def request(self, place: int, temperature: float) -> Request:
        target, settings = self.target, self.settings
        # a large vocabulary's distributions are kept only where they are asked for by name: each is megabytes an answer
        listed = settings.keeps == "distributions" or (settings.keeps == "truth" and (target.whole or target.partial))
        return Request(
            target.prompts[place],
            n=settings.drawn(temperature),
            limit=settings.limit,
            sampling=Sampling(temperature=temperature),
            seed=draw_seed(settings.seed, target.questions[place].prompt, temperature),
            stop=tuple(target.source.codec.stop),
            top=-1 if listed else 0,
        )

    def begin(self, part: str, of: int) -> None:
        if of:
            self.progress(part, 0, of)

    def reader(self, place: int) -> Reader | None:
        question = self.target.questions[place]
        if self.target.reader is None or self.settings.keeps == "answers":
            return None
        if question.id not in self.readers:
            self.readers[question.id] = self.target.reader(question)
        return self.readers[question.id]

    def answers(self, temperature: float) -> list[list[Trace]]:
        """In chunks of questions: what was drawn before an interruption stays."""
        total, part = len(self.target.prompts), f"answers {temperature:g}"
        out: list[list[Trace]] = []
        self.begin(part, total)
        for first in range(0, total, self.settings.chunk):
            places = range(first, min(total, first + self.settings.chunk))
            out += answers(self.source, [self.request(i, temperature) for i in places])
            self.progress(part, len(out), total)
        return out

    def evidence(self, temperature: float, groups: Sequence[Sequence[Trace]]) -> Evidence:
        target = self.target
        judged: list[Answered] = []
        said: list[Told] = []
        by_question: list[ByQuestion] = []
        documents: list[list[Point]] = []
        for place, (question, traces) in enumerate(zip(target.questions, groups, strict=True)):
            reader = self.reader(place)
            cache = DistributionCache(reader, temperature)
            judged += answered(target, question, traces, cache)
            said += told(question.id, traces, cache)
            if reader is not None and self.true and temperature > 0:
                # they are of the truth's answers, the same at every temperature
                if place not in self.crossed:
                    self.crossed[place] = crossings(self.true[place], reader)
                by_question.append(sums(traces[:4], self.true[place], cache, self.crossed[place]))
                documents.append(compared(self.true[place], reader, temperature))
        return Evidence(
            judged,
            documents,
            judge=target.judge_name,
            errors=target.errors,
            told=said,
            sums=by_question,
            language=self.language or None,
            other_manners=target.other_manners,
            points=None if target.scores is None else target.scores(self.settings.limit),
        )

    def feedback(
        self, temperature: float, given: list[Intervention] | None
    ) -> tuple[list[Intervention], dict[str, Any]]:
        """What was forced by rule; and for the evidence, what followed it and the matched pairs."""
        settings, target = self._feedback_settings(temperature), self.target
        total, part = min(self.settings.interventions, len(target.questions)), f"feedback {temperature:g}"
        self.begin(part, total)
        asked = [self._asked(target.questions[i], target.prompts[i], self.reader(i)) for i in range(total)]
        known = {one.question for one in asked}
        if given is None:
            forced = interventions(self.source, asked, settings, target.is_word)
        else:
            forced = [one for one in given if one.question in known and one.by_rule]
        after = outcomes(self.source, asked, forced, settings)
        if self.matched is None:  # once: it depends on no temperature, and is compared over all of them
            self.matched = self._matching(asked)
        after += outcomes(self.source, self.matched.asked, self.matched.found, settings)
        self.progress(part, total, total)
        return forced, {"outcomes": after, "dropped": self.matched.dropped}

    def _matching(self, asked: list[Asked]) -> MatchedPairs:
        """Matched pairs, in answers to questions that were not given where such can be made, else in further ones."""
        settings, another = self.settings, self.target.another
        # else every round asks the same questions, and draws other answers
        rounds = max(1, settings.pairs * PER_PAIR // (len(asked) if another is None else AT_ONCE))
        search = MatchedSearch(settings.main or 1.0, settings.pairs, rounds, settings.limit, settings.seed)

        def ask(round_: int) -> list[Asked]:
            if another is None:
                return asked
            return [self._asked(*another(round_ * AT_ONCE + i), None) for i in range(AT_ONCE)]

        return find_matched(self.source, ask, search, self.target.is_word)

    def _feedback_settings(self, temperature: float) -> FeedbackSettings:
        settings = self.settings
        return FeedbackSettings(
            temperature, distances=settings.distances, samples=settings.intervention_samples, seed=settings.seed
        )

    def _asked(self, question: Question, prompt: Tokens, reader: Reader | None) -> Asked:
        target = self.target
        assert target.reader is not None
        edits = target.edits(question) if target.edits is not None else None
        return Asked(question.id, prompt, reader or target.reader(question), edits)

    def replaced(self, temperature: float, groups: Sequence[Sequence[Trace]], evidence: Evidence) -> list[Replaced]:
        """The first right answer of each question, with one word replaced."""
        target, judged = self.target, iter(evidence.answers)
        rows: list[tuple[str, Trace, Right]] = []
        for question, traces in zip(target.questions, groups, strict=True):
            rights = [trace for trace, answer in [(t, next(judged)) for t in traces] if answer.right]
            if rights and len(rows) < self.settings.interventions:
                rows.append((question.id, rights[0], partial(_right, target, question)))
        part = f"feedback {temperature:g}"
        self.begin(part, len(rows))
        out = replaced(self.source, rows, self._feedback_settings(temperature), self.settings.limit)
        self.progress(part, len(rows), len(rows))
        return out

    def trees(self) -> list[Tree]:
        out: list[Tree] = []
        asked = min(self.settings.trees, len(self.target.questions))
        together = self.target.trees_together(self.settings.limit)
        self.begin("trees", asked)
        for first in range(0, asked, together):
            out += self.grown(range(first, min(asked, first + together)), self.settings.tree_budget)
            self.progress("trees", len(out), asked)
        return out

    def grown(self, places: Sequence[int], budget: int) -> list[Tree]:
        target, limit, sampling = self.target, self.settings.limit, Sampling(temperature=self.settings.main)
        grown = TreeSettings(sampling, limit, budget, vocabulary=target.vocabulary, batch=target.tree_batch)
        prompts = [target.prompts[place] for place in places]
        meanings = [target.meaning(target.questions[place]) for place in places]
        return grow_together(self.source, prompts, grown, target.spell, meanings)

    def forks(self, groups: Sequence[Sequence[Trace]]) -> list[Forks]:
        target, settings = self.target, self.settings
        out: list[Forks] = []
        asked = min(settings.forks, len(target.questions))
        self.begin("forks", asked)
        for place in range(asked):
            question, trace = target.questions[place], groups[place][0]
            # an empty answer has no word at which it was decided
            if not trace.steps:
                continue
            chosen = ForkSettings(
                Sampling(temperature=settings.main), settings.limit, settings.fork_samples, settings.seed + place
            )
            right = partial(_right, target, question) if question.answers else None
            out.append(forks(self.source, trace, chosen, target.meaning(question), right))
            self.progress("forks", place + 1, asked)
        return out


def _right(target: EvalTarget, question: Question, text: str, finished: bool = True) -> bool | None:
    return target.judge(question, text, finished).right
