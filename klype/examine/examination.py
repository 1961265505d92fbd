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
from klype.data.order import draw_seed
from klype.examine.evidence import Answered, Evidence, Told
from klype.examine.examinee import PER_PAIR, Examinee, ExamSettings, Pace, fork_tokens
from klype.examine.feedback import InterventionOutcome, Replaced, Right, outcomes, replaced
from klype.examine.from_traces import Looked, answered, compared, crossings, pieces, sums, told
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
from klype.examine.truth import Reader, Tokens
from klype.sources.source import Source, answers
from klype.values import Question, Request, Sampling, Trace

AT_ONCE = 100
"""Further questions that are asked at once in search of matched pairs."""
PROBED = 8
"""Questions from whose answers the time is estimated."""
Progress = Callable[[str, int, int], None]
"""part, done (0: it begins), of how many"""


@dataclass
class Examined:
    """Everything that was found out, by temperature where it depends on it. ``true``: answers of the truth's own, and
    what the model thinks of them."""

    examinee: Examinee
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
class Desk:
    """Where the examination is at: its source, all questions' readers, what depends on no temperature."""

    examinee: Examinee
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
        return _asked(self.examinee, self.examinee.questions[place], self.examinee.prompts[place], self.reader(place))

    def reader(self, place: int) -> Reader | None:
        question = self.examinee.questions[place]
        if self.examinee.reader is None:
            return None
        if question.id not in self.readers:
            self.readers[question.id] = self.examinee.reader(question)
        return self.readers[question.id]


@dataclass(frozen=True, slots=True)
class Meters:
    """``clock``: seconds; ``joules``: what the machine has used so far, where that can be read."""

    clock: Callable[[], float] = time.perf_counter
    joules: Callable[[], float | None] = lambda: None


def examine(
    examinee: Examinee,
    settings: ExamSettings,
    folder: Path,
    progress: Progress = lambda part, done, of: None,
    given: Mapping[float, list[Intervention]] | None = None,
    meters: Meters | None = None,
) -> Examined:
    """Traces land in ``folder/traces``; what is there from before, of the same weights, is not asked again.

    ``given``: another model's interventions by temperature; models are compared on the same beginnings and words.
    """
    settings.check()
    meters = meters or Meters()
    began = meters.clock()
    source = Recorder(examinee.source, examinee.identity, folder / "traces", meters.clock, meters.joules)
    desk = Desk(examinee, settings, source, progress)
    found = Examined(examinee, settings)
    true = _true_answers(desk)
    if true is not None:
        found.true = [trace for group in true for trace in group]
        desk.language = {q.id: pieces(examinee, t[0]) for q, t in zip(examinee.questions, true, strict=True)}
    for temperature in settings.temperatures:
        found.traces[temperature] = _answers(desk, temperature)
        found.evidence[temperature] = _evidence(desk, temperature, found.traces[temperature], true)
        if examinee.reader is not None and examinee.whole and temperature > 0 and settings.interventions:
            found.interventions[temperature], after = _feedback(desk, temperature, (given or {}).get(temperature))
            assert desk.matching is not None
            found.evidence[temperature] = replace(
                found.evidence[temperature], outcomes=after, dropped=desk.matching.dropped
            )
        elif examinee.reader is None and temperature > 0 and settings.interventions:
            replacing = _replaced(desk, temperature, found.traces[temperature], found.evidence[temperature])
            found.evidence[temperature] = replace(found.evidence[temperature], replaced=replacing)
    found.trees = _trees(desk)
    found.forks = _forks(desk, found.traces[settings.main])
    main = found.evidence[settings.main]
    found.evidence[settings.main] = replace(main, trees=found.trees, forks=found.forks)
    source.finish()
    found.passes, found.tokens, found.model_s = source.passes, source.tokens, source.model_s
    found.seconds = meters.clock() - began
    return found


def probe(examinee: Examinee, settings: ExamSettings, clock: Callable[[], float] = time.perf_counter) -> Pace:
    """A few questions answered, and trees begun as all will be, where klype computes the model itself."""
    few = range(min(PROBED, len(examinee.prompts)))
    requests = [_request(examinee, settings, i, settings.main, settings.drawn(settings.main)) for i in few]
    answers(examinee.source, requests[:1])  # the first call is slower
    began = clock()
    traces = [trace for group in answers(examinee.source, requests) for trace in group]
    speed = sum(len(trace.steps) for trace in traces) / max(1e-6, clock() - began)
    tokens, tree_speed = float(np.mean([len(trace.steps) for trace in traces])), speed
    if settings.trees and examinee.shape is not None:
        places = range(min(examinee.trees_together(settings.limit), settings.trees, len(examinee.prompts)))
        began = clock()
        grown = _grown(examinee.source, examinee, replace(settings, tree_budget=settings.tree_budget // 4 or 1), places)
        tree_speed = sum(tree.expansions for tree in grown) / max(1e-6, clock() - began)
    return Pace(tokens, speed, tree_speed, fork_tokens(traces))


def _request(examinee: Examinee, settings: ExamSettings, place: int, temperature: float, n: int) -> Request:
    return Request(
        examinee.prompts[place],
        n=n,
        limit=settings.limit,
        sampling=Sampling(temperature=temperature),
        seed=draw_seed(settings.seed, examinee.questions[place].prompt, temperature),
        stop=tuple(examinee.source.codec.stop),
        top=-1 if examinee.whole or examinee.partial else 0,
    )


def _answers(desk: Desk, temperature: float) -> list[list[Trace]]:
    """In chunks of questions: what was drawn before an interruption stays."""
    total = len(desk.examinee.prompts)
    out: list[list[Trace]] = []
    desk.begin(f"answers {temperature:g}", total)
    for first in range(0, total, desk.settings.chunk):
        places = range(first, min(total, first + desk.settings.chunk))
        n = desk.settings.drawn(temperature)
        requests = [_request(desk.examinee, desk.settings, i, temperature, n) for i in places]
        out += answers(desk.source, requests)
        desk.progress(f"answers {temperature:g}", len(out), total)
    return out


def _true_answers(desk: Desk) -> list[list[Trace]] | None:
    """One answer of the truth's own to each question, and what the model thinks of it token by token."""
    examinee = desk.examinee
    if examinee.reader is None or not examinee.whole:
        return None
    desk.begin("truth", len(examinee.prompts))
    said = [_say(desk, i) for i in range(len(examinee.prompts))]
    traces = desk.source.score(examinee.prompts, said, -1)
    desk.progress("truth", len(said), len(said))
    return [[trace] for trace in traces]


def _say(desk: Desk, place: int) -> Tokens:
    reader = desk.reader(place)
    assert reader is not None
    rng = np.random.default_rng([desk.settings.seed, place, 17])
    stop = set(desk.examinee.source.codec.stop)
    tokens: Tokens = ()
    while len(tokens) < desk.settings.limit and not set(tokens[-1:]) & stop:
        p = reader.next(tokens)
        weights = np.array(list(p.values()))
        tokens = (*tokens, int(rng.choice(list(p), p=weights / weights.sum())))
    return tokens


def _evidence(
    desk: Desk, temperature: float, groups: Sequence[Sequence[Trace]], true: Sequence[Sequence[Trace]] | None
) -> Evidence:
    examinee = desk.examinee
    judged: list[Answered] = []
    said: list[Told] = []
    by_question = []
    documents = []
    for place, (question, traces) in enumerate(zip(examinee.questions, groups, strict=True)):
        reader = desk.reader(place)
        looked = Looked(reader, temperature)
        judged += answered(examinee, question, traces, looked)
        said += told(question.id, traces, looked)
        if reader is not None and true is not None and temperature > 0:
            if place not in desk.crossed:
                desk.crossed[place] = crossings(true[place], reader)
            by_question.append(sums(traces[:4], true[place], looked, desk.crossed[place]))
            documents += [compared(trace, reader, temperature) for trace in true[place]]
    return Evidence(
        judged,
        documents,
        judge=examinee.judge_name,
        told=said,
        sums=by_question,
        language=desk.language,
        other_manners=examinee.other_manners,
        points=None if examinee.scores is None else examinee.scores(desk.settings.limit),
    )


def _feedback(
    desk: Desk, temperature: float, given: list[Intervention] | None
) -> tuple[list[Intervention], list[InterventionOutcome]]:
    settings = FeedbackSettings(
        temperature,
        distances=desk.settings.distances,
        samples=desk.settings.intervention_samples,
        seed=desk.settings.seed,
    )
    examinee = desk.examinee
    total = min(desk.settings.interventions, len(examinee.questions))
    desk.begin(f"feedback {temperature:g}", total)
    asked = [desk.asked(place) for place in range(total)]
    known = {one.question for one in asked}
    if given is None:
        forced, _ = interventions(desk.source, asked, settings, examinee.is_word)
    else:
        forced = [intervention for intervention in given if intervention.question in known and intervention.by_rule]
    after = outcomes(desk.source, asked, forced, settings)
    if desk.matching is None:  # once: what is forced depends on no temperature, and is compared over all of them
        desk.matching = _matching(desk, asked)
    after += outcomes(desk.source, desk.matching.asked, desk.matching.found, settings)
    desk.progress(f"feedback {temperature:g}", total, total)
    return forced, after


def _matching(desk: Desk, asked: Sequence[Asked]) -> MatchedPairs:
    """Matched pairs, in answers to questions that were not given where such can be made, else in further answers."""
    examinee, settings = desk.examinee, desk.settings
    at_once = len(asked) if examinee.another is None else AT_ONCE
    rounds = max(1, settings.pairs * PER_PAIR // at_once)
    looked = MatchedSearch(settings.main or 1.0, settings.pairs, rounds, settings.limit, settings.seed)

    def ask(round_: int) -> list[Asked]:
        if examinee.another is None:
            return list(asked)
        made = [examinee.another(round_ * AT_ONCE + i) for i in range(AT_ONCE)]
        return [_asked(examinee, question, prompt, None) for question, prompt in made]

    return find_matched(desk.source, ask, looked, examinee.is_word)


def _asked(examinee: Examinee, question: Question, prompt: Tokens, reader: Reader | None) -> Asked:
    assert examinee.reader is not None
    edits = examinee.edits(question) if examinee.edits is not None else None
    return Asked(question.id, prompt, reader or examinee.reader(question), edits)


def _replaced(desk: Desk, temperature: float, groups: Sequence[Sequence[Trace]], evidence: Evidence) -> list[Replaced]:
    """The first right answer of each question, with one word replaced."""
    examinee, judged = desk.examinee, iter(evidence.answers)
    rows: list[tuple[str, Trace, Right]] = []
    for question, traces in zip(examinee.questions, groups, strict=True):
        rights = [trace for trace, answer in [(t, next(judged)) for t in traces] if answer.right]
        if rights and len(rows) < desk.settings.interventions:
            rows.append((question.id, rights[0], partial(_judged, examinee, question)))
    settings = FeedbackSettings(temperature, samples=desk.settings.intervention_samples, seed=desk.settings.seed)
    desk.begin(f"feedback {temperature:g}", len(rows))
    out = replaced(desk.source, rows, settings, desk.settings.limit)
    desk.progress(f"feedback {temperature:g}", len(rows), len(rows))
    return out


def _trees(desk: Desk) -> list[Tree]:
    examinee, settings = desk.examinee, desk.settings
    out: list[Tree] = []
    asked = min(settings.trees, len(examinee.questions))
    together = examinee.trees_together(settings.limit)
    desk.begin("trees", asked)
    for first in range(0, asked, together):
        places = range(first, min(asked, first + together))
        out += _grown(desk.source, examinee, settings, places)
        desk.progress("trees", len(out), asked)
    return out


def _grown(source: Source, examinee: Examinee, settings: ExamSettings, places: Sequence[int]) -> list[Tree]:
    grown = TreeSettings(
        Sampling(temperature=settings.main),
        settings.limit,
        settings.tree_budget,
        vocabulary=examinee.vocabulary,
        batch=examinee.tree_batch,
    )
    meanings = [examinee.meaning(examinee.questions[place]) for place in places]
    return grow_together(source, [examinee.prompts[place] for place in places], grown, examinee.spell, meanings)


def _forks(desk: Desk, groups: Sequence[Sequence[Trace]]) -> list[Forks]:
    examinee, settings = desk.examinee, desk.settings
    out: list[Forks] = []
    asked = min(settings.forks, len(examinee.questions))
    desk.begin("forks", asked)
    for place in range(asked):
        question, trace = examinee.questions[place], groups[place][0]
        if not trace.steps:
            continue
        chosen = ForkSettings(
            Sampling(temperature=settings.main), settings.limit, settings.fork_samples, settings.seed + place
        )
        right = partial(_right, examinee, question) if question.answers else None
        out.append(forks(desk.source, trace, chosen, examinee.meaning(question), right))
        desk.progress("forks", place + 1, asked)
    return out


def _judged(examinee: Examinee, question: Question, text: str, finished: bool) -> bool | None:
    return examinee.judge(question, text, finished).right


def _right(examinee: Examinee, question: Question, text: str) -> bool | None:
    return examinee.judge(question, text, True).right
