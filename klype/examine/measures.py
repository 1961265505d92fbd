"""The table of measures. A new measure is a row of MEASURES with its estimator, a function from Evidence to Figure.

``measure(evidence)`` returns every figure that the evidence allows. Command line, API, report and studio show the rows
of the table in its order.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from klype.examine import estimators as est
from klype.examine.evidence import Evidence
from klype.values import Figure

RunPart = Literal["stages", "temperatures"]
OUTSIDE: tuple[RunPart, ...] = ()
OF_STAGES: tuple[RunPart, ...] = ("stages",)
AT_TEMPERATURES: tuple[RunPart, ...] = ("temperatures",)


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure.

    Its words are in the catalogue of reports (``measure`` and ``unit``), or else in ``title`` and ``help`` (the meaning
    of the figure in one line), by language. ``function``: the estimator; None for what only a run measures. ``judge``:
    what decides: "meaning" the evidence's judge, "text" equality of texts, "truth" the true distribution, "" nothing.
    ``runs``: the parts of a run's report that contain it, where the evidence allows it.
    """

    name: str
    unit: str
    better: Literal["more", "less", "neither"]
    function: Callable[[Evidence], Figure] | None = None
    judge: str = ""
    runs: tuple[RunPart, ...] = ("stages", "temperatures")
    title: Mapping[str, str] = field(default_factory=dict)
    help: Mapping[str, str] = field(default_factory=dict)


def in_runs(part: RunPart) -> frozenset[str]:
    """The names of the measures in one part of a run's report."""
    return frozenset(row.name for row in KNOWN.values() if part in row.runs)


def measure(evidence: Evidence, only: Collection[str] | None = None) -> dict[str, Figure]:
    """Every figure that the evidence allows, by the name of its measure. ``only``: of these measures."""
    rows = [row for row in KNOWN.values() if only is None or row.name in only]
    figures = {row.name: row.function(evidence) for row in rows if row.function is not None}
    return {name: figure for name, figure in figures.items() if figure.value is not None or figure.why != est.NOTHING}


MEASURES: tuple[Measure, ...] = (
    Measure("decided", "share", "more", partial(est.decided_share, True), "meaning", OF_STAGES),
    Measure("right", "share", "more", partial(est.verdict, "right"), "meaning"),
    Measure("undecided", "share", "less", partial(est.decided_share, False), "meaning", OF_STAGES),
    Measure("word_for_word", "share", "more", partial(est.verdict, "word_for_word"), "text"),
    Measure("polite", "share", "more", partial(est.verdict, "polite"), "meaning"),
    Measure("concise", "share", "more", partial(est.verdict, "concise"), "meaning", OF_STAGES),
    Measure("annotator", "points", "more", est.score, "meaning"),
    Measure("s", "share a word", "more", est.s_own, "truth", AT_TEMPERATURES),
    Measure("survival", "share of answers", "more", partial(est.curve_at, "r"), "truth", OUTSIDE),
    Measure("would_survive", "share of answers", "more", partial(est.curve_at, "k"), "truth", OUTSIDE),
    Measure("s_corpus", "share a word", "more", est.s_of_corpus, "truth", OUTSIDE),
    Measure("kl", "nats a word", "less", partial(est.of_truth, "kl"), "truth", OUTSIDE),
    Measure("kl_acceptable", "nats a word", "less", partial(est.of_truth, "kl_acceptable"), "truth", OUTSIDE),
    Measure("jensen_shannon", "nats a word", "less", partial(est.of_truth, "jensen_shannon"), "truth", OUTSIDE),
    Measure("overlap", "share", "more", partial(est.of_truth, "overlap"), "truth", OUTSIDE),
    Measure("log_score", "nats a word", "less", partial(est.of_truth, "log_score"), "truth", OUTSIDE),
    Measure("brier", "squared probability", "less", partial(est.of_truth, "brier"), "truth", OUTSIDE),
    Measure("repetition", "share of 4-grams", "less", est.repeats, runs=AT_TEMPERATURES),
    Measure("loops", "share of words", "less", est.loops, runs=OUTSIDE),
    Measure("repetition_beyond", "difference of shares", "less", est.repeats_beyond, "truth", OUTSIDE),
    Measure("distinct", "share of 2-grams", "neither", est.distinct, runs=AT_TEMPERATURES),
    Measure("same_text", "share of pairs", "neither", est.same_text, runs=AT_TEMPERATURES),
    Measure("same_meaning", "share of pairs", "neither", est.same_meaning, "meaning", OUTSIDE),
    Measure("common_prefix", "words", "neither", est.common_prefix, runs=OUTSIDE),
    Measure("answer_entropy", "nats", "neither", est.answer_entropy),
    Measure("meaning_entropy", "nats", "neither", est.meaning_entropy, "meaning", OUTSIDE),
    Measure("unseen", "share", "less", est.unseen_mass, runs=OUTSIDE),
    Measure("answer_mass", "share", "neither", est.answer_mass, runs=OUTSIDE),
    Measure("unexplored", "share", "less", est.unexplored_mass, runs=OUTSIDE),
    Measure("tree_entropy", "nats", "neither", est.tree_entropy, "meaning", OUTSIDE),
    Measure("independence", "difference of shares", "neither", partial(est.curve_at, "difference"), "truth", OUTSIDE),
    Measure("weibull_shape", "shape", "neither", est.shape, "truth", OUTSIDE),
    Measure("feedback", "difference of shares", "less", partial(est.feedback, "difference"), "truth", OUTSIDE),
    Measure("feedback_ratio", "times as likely", "less", partial(est.feedback, "ratio"), "truth", OUTSIDE),
    Measure("feedback_rare", "difference of shares", "less", partial(est.feedback, "cautious"), "truth", OUTSIDE),
    Measure("feedback_meaning", "difference of shares", "less", est.swap_effect, "meaning", OUTSIDE),
    Measure("recovery", "share of answers", "more", partial(est.feedback, "recovery", distance=3), "truth", OUTSIDE),
    Measure("excess_error", "% more", "less", est.excess, "truth", OUTSIDE),
    Measure("calibration", "probability", "less", est.calibration, "truth", OUTSIDE),
    Measure("best_temperature", "temperature", "neither", est.temperature, "truth", OUTSIDE),
    Measure("selective", "share of what knowing gains", "more", est.selective, "meaning", OUTSIDE),
    Measure("fork", "share of answers", "neither", est.fork_share, "meaning", OUTSIDE),
    Measure("fork_word", "word", "neither", est.fork_word, "meaning", OUTSIDE),
    Measure("copied", "share of words", "less", partial(est.mean_of, "copied", "share of words"), "text", OUTSIDE),
    Measure("passes", "passes", "less", partial(est.mean_of, "passes", "passes"), runs=OUTSIDE),
    Measure("tokens", "tokens", "neither", partial(est.mean_of, "tokens", "tokens"), runs=OUTSIDE),
    Measure("flops", "FLOPs", "less", partial(est.mean_of, "flops", "FLOPs"), runs=OUTSIDE),
    Measure("bytes_moved", "bytes", "less", partial(est.mean_of, "bytes_moved", "bytes"), runs=OUTSIDE),
    Measure("seconds", "s", "less", partial(est.mean_of, "seconds", "s"), runs=OUTSIDE),
    Measure("joules", "J", "less", partial(est.mean_of, "joules", "J"), runs=OUTSIDE),
    Measure("joules_per_right", "J per right answer", "less", est.joules_per_right, "meaning", OUTSIDE),
)
# Measures that only a run has, of its own models.
OF_RUNS: tuple[Measure, ...] = (
    Measure("right_fixed", "share", "more"),
    Measure("kl_reference", "nats a word", "less"),
    Measure("pair_accuracy", "share of pairs", "more"),
    Measure("ceiling", "share of pairs", "neither"),
    Measure("retrieval_hard", "share", "more"),
    Measure("retrieval_text", "share", "more"),
    Measure("bits_per_byte", "bits per byte", "less"),
    Measure("loss", "nats a token", "less"),
    Measure("held_out", "nats a token", "less"),
    Measure("reward", "points", "more"),
    Measure("score", "points", "more"),
    Measure("well_formed", "share", "more", partial(est.verdict, "well_formed"), runs=OF_STAGES),
    Measure("right_trained", "share", "more"),
    Measure("real_words", "share of words", "more"),
)
KNOWN: Mapping[str, Measure] = {row.name: row for row in (*MEASURES, *OF_RUNS)}
