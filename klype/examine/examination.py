"""The whole examination: answers, experiments and trees, each kept as traces so that a second start goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from klype.answers.forks import Forks, ForkSettings, forks
from klype.answers.tree import Tree, TreeSettings, grow_together
from klype.data.seeds import draw_seed
from klype.examine.evidence import Answered, Evidence, Told
from klype.examine.feedback import InterventionOutcome, Replaced, Right, outcomes, replaced
from klype.examine.from_traces import DistributionCache, answered, compared, crossings, pieces, sums, told
from klype.examine.interventions import (
    Asked,
    FeedbackSettings,
    Intervention,
    MatchedPairs,
    MatchedSearch,
    find_matched,
    interventions,
)
from klype.examine.recorder import Recorder
from klype.examine.settings import ExamSettings
from klype.examine.target import PER_PAIR, EvalTarget, ExamSpeed, fork_tokens
from klype.examine.truth import Reader, Tokens
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


@dataclass
class EvalContext:
    """Where the examination is at: its source, all questions' readers, what depends on no temperature."""

    target: EvalTarget
    settings: ExamSettings
    source: Recorder
    progress: Progress
    readers: dict[str, Reader] = field(default_factory=dict)
    crossed: dict[int, tuple[float, ...]] = field(default_factory=dict)
    language: dict[str, tuple[str, ...]] | None = None
    matching: MatchedPairs | None = None

    def begin(self, part: str, of: int) -> None:
        if of:
            self.progress(part, 0, of)

    def asked(self, place: int) -> Asked:
        return _asked(self.target, self.target.questions[place], self.target.prompts[place], self.reader(place))

    def reader(self, place: int) -> Reader | None:
        question = self.target.questions[place]
        if self.target.reader is None or self.settings.keeps == "answers":
            return None
        if question.id not in self.readers:
            self.readers[question.id] = self.target.reader(question)
        return self.readers[question.id]


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
    found = Examined(target, settings)
    true = _true_answers(context)
    if true is not None:
        found.true = [trace for group in true for trace in group]
        context.language = {q.id: pieces(target, t[0]) for q, t in zip(target.questions, true, strict=True)}
    for temperature in settings.temperatures:
        found.traces[temperature] = _answers(context, temperature)
        found.evidence[temperature] = _evidence(context, temperature, found.traces[temperature], true)
        if target.reader is not None and target.whole and temperature > 0 and settings.interventions:
            found.interventions[temperature], after = _feedback(context, temperature, (given or {}).get(temperature))
            assert context.matching is not None
            found.evidence[temperature] = replace(
                found.evidence[temperature], outcomes=after, dropped=context.matching.dropped
            )
        elif target.reader is None and temperature > 0 and settings.interventions:
            # where nobody knows which words can follow, whole answers are judged
            replacing = _replaced(context, temperature, found.traces[temperature], found.evidence[temperature])
            found.evidence[temperature] = replace(found.evidence[temperature], replaced=replacing)
    found.trees = _trees(context)
    found.forks = _forks(context, found.traces[settings.main])
    main = found.evidence[settings.main]
    found.evidence[settings.main] = replace(main, trees=found.trees, forks=found.forks)
    source.finish()
    found.passes, found.tokens, found.model_s = source.passes, source.tokens, source.model_s
    found.seconds = meters.clock() - began
    return found


def probe(target: EvalTarget, settings: ExamSettings, clock: Callable[[], float] = time.perf_counter) -> ExamSpeed:
    """A few questions answered, and trees begun as all will be, where klype computes the model itself."""
    few = range(min(PROBED, len(target.prompts)))
    requests = [_request(target, settings, i, settings.main, settings.drawn(settings.main)) for i in few]
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
        grown = _grown(target.source, target, replace(settings, tree_budget=settings.tree_budget // 4 or 1), places)
        tree_speed = sum(tree.expansions for tree in grown) / max(1e-6, clock() - began)
    return ExamSpeed(tokens, speed, tree_speed, fork_tokens(traces))


def draw(target: EvalTarget, settings: ExamSettings, temperature: float) -> list[list[Trace]]:
    """``settings.drawn`` answers to each question, not judged."""
    n = settings.drawn(temperature)
    return answers(target.source, [_request(target, settings, i, temperature, n) for i in range(len(target.prompts))])


def _request(target: EvalTarget, settings: ExamSettings, place: int, temperature: float, n: int) -> Request:
    # A large vocabulary's distributions are kept only where they are asked for by name: each is megabytes an answer.
    listed = settings.keeps == "distributions" or (settings.keeps == "truth" and (target.whole or target.partial))
    return Request(
        target.prompts[place],
        n=n,
        limit=settings.limit,
        sampling=Sampling(temperature=temperature),
        seed=draw_seed(settings.seed, target.questions[place].prompt, temperature),
        stop=tuple(target.source.codec.stop),
        top=-1 if listed else 0,
    )


def _answers(context: EvalContext, temperature: float) -> list[list[Trace]]:
    """In chunks of questions: what was drawn before an interruption stays."""
    total = len(context.target.prompts)
    out: list[list[Trace]] = []
    context.begin(f"answers {temperature:g}", total)
    for first in range(0, total, context.settings.chunk):
        places = range(first, min(total, first + context.settings.chunk))
        n = context.settings.drawn(temperature)
        requests = [_request(context.target, context.settings, i, temperature, n) for i in places]
        out += answers(context.source, requests)
        context.progress(f"answers {temperature:g}", len(out), total)
    return out


def _true_answers(context: EvalContext) -> list[list[Trace]] | None:
    """One answer of the truth's own to each question, and what the model thinks of it token by token."""
    target = context.target
    if target.reader is None or not target.whole or context.settings.keeps != "truth":
        return None
    context.begin("truth", len(target.prompts))
    said = [_say(context, i) for i in range(len(target.prompts))]
    traces = context.source.score(target.prompts, said, -1)
    context.progress("truth", len(said), len(said))
    return [[trace] for trace in traces]


def _say(context: EvalContext, place: int) -> Tokens:
    reader = context.reader(place)
    assert reader is not None
    rng = np.random.default_rng([context.settings.seed, place, 17])
    stop = set(context.target.source.codec.stop)
    tokens: Tokens = ()
    while len(tokens) < context.settings.limit and not set(tokens[-1:]) & stop:
        p = reader.next(tokens)
        weights = np.array(list(p.values()))
        tokens = (*tokens, int(rng.choice(list(p), p=weights / weights.sum())))
    return tokens


def _evidence(
    context: EvalContext, temperature: float, groups: Sequence[Sequence[Trace]], true: Sequence[Sequence[Trace]] | None
) -> Evidence:
    target = context.target
    judged: list[Answered] = []
    said: list[Told] = []
    by_question = []
    documents = []
    for place, (question, traces) in enumerate(zip(target.questions, groups, strict=True)):
        reader = context.reader(place)
        cache = DistributionCache(reader, temperature)
        judged += answered(target, question, traces, cache)
        said += told(question.id, traces, cache)
        if reader is not None and true is not None and temperature > 0:
            # they are of the truth's answers, the same at every temperature
            if place not in context.crossed:
                context.crossed[place] = crossings(true[place], reader)
            by_question.append(sums(traces[:4], true[place], cache, context.crossed[place]))
            documents += [compared(trace, reader, temperature) for trace in true[place]]
    return Evidence(
        judged,
        documents,
        judge=target.judge_name,
        errors=target.errors,
        told=said,
        sums=by_question,
        language=context.language,
        other_manners=target.other_manners,
        points=None if target.scores is None else target.scores(context.settings.limit),
    )


def _feedback(
    context: EvalContext, temperature: float, given: list[Intervention] | None
) -> tuple[list[Intervention], list[InterventionOutcome]]:
    settings = FeedbackSettings(
        temperature,
        distances=context.settings.distances,
        samples=context.settings.intervention_samples,
        seed=context.settings.seed,
    )
    target = context.target
    total = min(context.settings.interventions, len(target.questions))
    context.begin(f"feedback {temperature:g}", total)
    asked = [context.asked(place) for place in range(total)]
    known = {one.question for one in asked}
    if given is None:
        forced, _ = interventions(context.source, asked, settings, target.is_word)
    else:
        forced = [intervention for intervention in given if intervention.question in known and intervention.by_rule]
    after = outcomes(context.source, asked, forced, settings)
    if context.matching is None:  # once: what is forced depends on no temperature, and is compared over all of them
        context.matching = _matching(context, asked)
    after += outcomes(context.source, context.matching.asked, context.matching.found, settings)
    context.progress(f"feedback {temperature:g}", total, total)
    return forced, after


def _matching(context: EvalContext, asked: Sequence[Asked]) -> MatchedPairs:
    """Matched pairs, in answers to questions that were not given where such can be made, else in further answers."""
    target, settings = context.target, context.settings
    # else every round asks the same questions, and draws other answers
    at_once = len(asked) if target.another is None else AT_ONCE
    rounds = max(1, settings.pairs * PER_PAIR // at_once)
    cache = MatchedSearch(settings.main or 1.0, settings.pairs, rounds, settings.limit, settings.seed)

    def ask(round_: int) -> list[Asked]:
        if target.another is None:
            return list(asked)
        made = [target.another(round_ * AT_ONCE + i) for i in range(AT_ONCE)]
        return [_asked(target, question, prompt, None) for question, prompt in made]

    return find_matched(context.source, ask, cache, target.is_word)


def _asked(target: EvalTarget, question: Question, prompt: Tokens, reader: Reader | None) -> Asked:
    assert target.reader is not None
    edits = target.edits(question) if target.edits is not None else None
    return Asked(question.id, prompt, reader or target.reader(question), edits)


def _replaced(
    context: EvalContext, temperature: float, groups: Sequence[Sequence[Trace]], evidence: Evidence
) -> list[Replaced]:
    """The first right answer of each question, with one word replaced."""
    target, judged = context.target, iter(evidence.answers)
    rows: list[tuple[str, Trace, Right]] = []
    for question, traces in zip(target.questions, groups, strict=True):
        rights = [trace for trace, answer in [(t, next(judged)) for t in traces] if answer.right]
        if rights and len(rows) < context.settings.interventions:
            rows.append((question.id, rights[0], partial(_right, target, question)))
    settings = FeedbackSettings(temperature, samples=context.settings.intervention_samples, seed=context.settings.seed)
    context.begin(f"feedback {temperature:g}", len(rows))
    out = replaced(context.source, rows, settings, context.settings.limit)
    context.progress(f"feedback {temperature:g}", len(rows), len(rows))
    return out


def _trees(context: EvalContext) -> list[Tree]:
    target, settings = context.target, context.settings
    out: list[Tree] = []
    asked = min(settings.trees, len(target.questions))
    together = target.trees_together(settings.limit)
    context.begin("trees", asked)
    for first in range(0, asked, together):
        places = range(first, min(asked, first + together))
        out += _grown(context.source, target, settings, places)
        context.progress("trees", len(out), asked)
    return out


def _grown(source: Source, target: EvalTarget, settings: ExamSettings, places: Sequence[int]) -> list[Tree]:
    grown = TreeSettings(
        Sampling(temperature=settings.main),
        settings.limit,
        settings.tree_budget,
        vocabulary=target.vocabulary,
        batch=target.tree_batch,
    )
    meanings = [target.meaning(target.questions[place]) for place in places]
    return grow_together(source, [target.prompts[place] for place in places], grown, target.spell, meanings)


def _forks(context: EvalContext, groups: Sequence[Sequence[Trace]]) -> list[Forks]:
    target, settings = context.target, context.settings
    out: list[Forks] = []
    asked = min(settings.forks, len(target.questions))
    context.begin("forks", asked)
    for place in range(asked):
        question, trace = target.questions[place], groups[place][0]
        # an empty answer has no word at which it was decided
        if not trace.steps:
            continue
        chosen = ForkSettings(
            Sampling(temperature=settings.main), settings.limit, settings.fork_samples, settings.seed + place
        )
        right = partial(_right, target, question) if question.answers else None
        out.append(forks(context.source, trace, chosen, target.meaning(question), right))
        context.progress("forks", place + 1, asked)
    return out


def _right(target: EvalTarget, question: Question, text: str, finished: bool = True) -> bool | None:
    return target.judge(question, text, finished).right
