"""Gates that a run's figures have to pass, whether alignment may start, and the comparison before and after it."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from klype.examine.intervals import mean_by_question, mean_change
from klype.examine.measures import measure
from klype.examine.run_facts import JsonObject, clear_change
from klype.examine.say import Say
from klype.model.transformer import Transformer
from klype.runs.align_stage import Evaluation, best
from klype.runs.stages import RunContext
from klype.runs.task import answer_settings, exam_questions, examine_model
from klype.sources.model_files import is_aligned
from klype.values import Figure
from klype.words import LANGUAGES, number, percent, words

MIN_CASES = 30  # cases that a gate needs
KNOWS = 0.5  # a story tells of two to four: picking one at random is right at most half of the time
CHANCE = 0.5  # pair accuracy of a random order
WORLD = (
    ("base", "retrieval_hard", "retrieval_hard", 0.93),
    ("base", "s", "s", 0.97),
    ("finetuned", "right", "finetuned_right", 0.88),
    ("aligned", "right", "aligned_right", 0.90),
    ("aligned", "polite", "aligned_polite", 0.93),
    ("base", "kl", "kl", 0.10),
)  # stage, figure, gate, threshold
KEPT = 0.90
Status = Literal["passed", "within", "missed"]


def gates(run: RunContext, yardsticks: JsonObject | None = None) -> tuple[list[JsonObject], list[JsonObject]]:
    """(gates, those left out because they have too few cases), as the report has them. Missed gates are included."""
    figures = run.record.content["figures"]
    world = run.recipe.kind == "world"
    rows = [(name, figure_of(figures.get(at), measure), least) for at, measure, name, least in WORLD] if world else []
    bits = figure_of(figures.get("base"), "bits_per_byte")
    if yardsticks is not None and bits.value is not None:
        for name in ("ngram", "xz"):
            low, high = (None if end is None else yardsticks[name] - end for end in (bits.high, bits.low))
            saved = replace(bits, value=yardsticks[name] - bits.value, low=low, high=high)
            rows.append((f"bits_below_{name}", saved, 0.0))
    rows.append(("reward_pairs", figure_of(run.record.content.get("reward"), "pair_accuracy"), pair_threshold(run)))
    if world:
        gain = gains(run).get("annotator", Figure(None, why="not both models were asked"))
        before, after = (figure_of(figures.get(stage), "retrieval_text") for stage in ("base", "aligned"))
        rows += [("aligned_score_up", gain, 0.0), ("retrieval_kept", retention(before, after), KEPT)]

    def too_few(figure: Figure) -> bool:
        return figure.value is not None and (figure.n < MIN_CASES or figure.low is None)

    found = [gate_row(name, f, threshold, below=name == "kl") for name, f, threshold in rows if not too_few(f)]
    return found, [{"name": name, "n": f.n} for name, f, _ in rows if too_few(f)]


def time_gate(run: RunContext) -> JsonObject:
    """The gate for the run's time: at most 15 % more than its minutes. The record's clock must be stopped."""
    took = round(run.record.elapsed, 2)
    return gate_row("seconds", Figure(took, took, took, 1, "s"), 1.15 * 60 * (run.options.minutes or 5), below=True)


def status(figure: Figure, threshold: float, below: bool = False) -> Status:
    """Returns "passed" if the whole interval reaches the threshold, "within" if part of it does, else "missed" (also
    without a value or an interval). ``below``: the figure should be below the threshold."""
    if figure.value is None or figure.low is None or figure.high is None:
        return "missed"
    near, far = (-figure.high, -figure.low) if below else (figure.low, figure.high)
    wanted = -threshold if below else threshold
    return "passed" if near >= wanted else "within" if far >= wanted else "missed"


def figure_of(figures: Mapping[str, Any] | None, name: str) -> Figure:
    """The figure of this name from its JSON; one without a value if there is none."""
    return Figure.of((figures or {}).get(name) or {"value": None})


def retention(before: Figure, after: Figure) -> Figure:
    """``after`` / ``before`` with a conservative interval (all ratios that both intervals allow); no value if either
    may be at chance level."""
    ends = (before.low, before.high, after.low, after.high)
    if before.value is None or after.value is None or any(end is None or end <= 0 for end in ends):
        return Figure(None, why="nothing is known to be left of")
    low0, high0, low1, high1 = (float(end) for end in ends if end is not None)
    if min(low0, low1) <= KNOWS:
        return Figure(None, why="who knows so little may be guessing")
    return Figure(after.value / before.value, low1 / high0, high1 / low0, min(before.n, after.n), "ratio")


def pair_threshold(run: RunContext) -> float:
    """The pair accuracy required before alignment: the recipe's, or chance where the annotator's noise is unknown."""
    return CHANCE if by_people(run) else run.recipe.reward.gate


def by_people(run: RunContext) -> bool:
    """Whether the annotator's noise is unknown, as it is for people."""
    reward = run.record.content.get("reward")
    return reward is not None and figure_of(reward, "ceiling").value is None


def reason_not_to_align(run: RunContext) -> dict[str, str] | None:
    """Why alignment should not start, by language; None if it may.

    With a simulated annotator it is refused only if the reward model's pair accuracy is known to be below the recipe's
    gate; with people's rankings, unless it is known to be better than chance. Without held-out pairs it is allowed.
    """
    pairs, threshold = run.record.content["reward"]["pair_accuracy"], pair_threshold(run)
    figure = figure_of(run.record.content["reward"], "pair_accuracy")
    if people := by_people(run):
        may = figure.low is not None and figure.low > CHANCE
    else:
        may = figure.low is None or status(figure, threshold) != "missed"
    if figure.value is None or may:
        return None
    key, told = "like_chance" if people else "too_weak", dict[str, str]()
    for lang in LANGUAGES:
        shown = {"pairs": Say(lang).figure(pairs, "pair_accuracy"), "wanted": percent(threshold, lang)}
        told[lang] = words(lang, "align")(key, **shown)
    return told


def gate_row(name: str, figure: Figure, threshold: float, below: bool) -> JsonObject:
    """A gate's row in the report."""
    found = status(figure, threshold, below)
    row: dict[str, Any] = {"name": name, **{key: getattr(figure, key) for key in ("value", "low", "high", "n")}}
    row |= {"threshold": threshold, "status": found, "passed": found == "passed", **({"below": True} if below else {})}
    return row


def gains(run: RunContext) -> dict[str, Figure]:
    """The change by alignment in right, polite and the annotator's score, paired by question."""
    content = run.record.content
    scores = {name: {"annotator": kept} for name, kept in content.get("scores", {}).items()}  # of an earlier klype
    judged = {**scores, **content.get("judged", {})}
    before, after = judged.get("finetuned", {}), judged.get("aligned", {})
    shared = [name for name in sorted(before.keys() & after.keys()) if len(before[name]) == len(after[name])]
    found = {name: _gain(before[name], after[name], range(len(before[name]))) for name in shared}
    return {name: figure for name, figure in found.items() if figure is not None}


def _gain(
    before: Sequence[float | None], after: Sequence[float | None], questions: Sequence[Hashable]
) -> Figure | None:
    """Mean of after minus before, paired by question, without undecided ones; None if all are undecided."""
    rows = zip(before, after, questions, strict=True)
    known = [(float(a), float(b), asked) for a, b, asked in rows if a is not None and b is not None]
    return mean_change(*(list(column) for column in zip(*known, strict=True))) if known else None  # type: ignore[arg-type]


TRAITS = ("right", "polite", "concise", "score")
UNDECIDED = Figure(None, why="nothing was decided")
# measures of plain text; 1: higher is better, -1: lower is better
KNOWLEDGE = {"retrieval_text": 1, "retrieval_hard": 1, "kl": -1, "bits_per_byte": -1}
SEVERAL, DRAWN = 60, 4  # questions, and answers to each, for the measures of diversity


def compare(run: RunContext, before: Transformer, after: Transformer) -> dict[str, Any]:
    """The JSON document of an alignment: figures of both models, paired differences, win rate and ties."""
    questions = exam_questions(run.task, run.options.minutes)
    asking = answer_settings(run.task, t := run.recipe.examine.temperature)
    wide = answer_settings(run.task, 1.0, DRAWN, "distributions")
    aligned = is_aligned(run.folder / "finetune"), True
    sides, answers = [], []
    for model, other_manners in zip((before, after), aligned, strict=True):
        evidence = examine_model(run.task, model, questions, asking).evidence[t]
        several = examine_model(run.task, model, questions[:SEVERAL], wide)
        spread = replace(several.evidence[1.0], other_manners=other_manners)
        figures = measure(evidence, ("right", "polite", "concise", "annotator", "tokens"))
        figures |= measure(spread, ("s", "repetition", "distinct", "same_text", "calibration"))
        figures |= run.task.knowledge(model, few=True)
        sides.append({name: figure.json() for name, figure in figures.items()})
        answers.append(evidence.answers)
    first, last = ([answer.score or 0.0 for answer in side] for side in answers)
    equal = [float(a == b) for a, b in zip(first, last, strict=True)]
    asked = [answer.question for answer in answers[0]]
    both = {name: [[getattr(answer, name) for answer in side] for side in answers] for name in TRAITS}
    found = {name: _gain(was, now, asked) or UNDECIDED for name, (was, now) in both.items()}
    return {
        "before": sides[0],
        "after": sides[1],
        "gain": {name: figure.json() for name, figure in found.items()},
        "win_rate": win_rate(first, last).json(),
        "ties": mean_by_question(equal, range(len(equal)), "share of questions").json(),
    }


def win_rate(before: Sequence[float], after: Sequence[float]) -> Figure:
    """The share of questions whose later answer scores higher; ties count half."""
    wins = [1.0 if b > a else 0.5 if a == b else 0.0 for a, b in zip(before, after, strict=True)]
    return mean_by_question(wins, range(len(wins)), "share of questions")


def verdict(document: Mapping[str, Any], seen: Sequence[Evaluation], stopped: bool, fell: bool, lang: str) -> str:
    """The result of an alignment in a few sentences. ``seen``: the evaluations; ``stopped``: it ended early;
    ``fell``: the annotator's score fell significantly."""
    w = words(lang, "align")
    said: list[str] = []
    gain = figure_of(document["gain"], "score")
    if gain.value is None or gain.low is None or gain.high is None:
        said.append(w("unknown"))
    else:
        ends = {"gain": gain.value, "low": gain.low, "high": gain.high}
        kind = "better" if gain.low > 0 else "worse" if gain.high < 0 else "same"
        said.append(w(kind, **{name: f"{'+' if end >= 0 else ''}{number(end, lang)}" for name, end in ends.items()}))
    if stopped:
        said.append(w("parted", step=seen[-1].step, best=best(seen).step))
    elif fell and seen[-1].reward > seen[0].reward:
        said.append(w("hacked"))
    if seen:
        said.append(w("far", kl=number((best(seen) if stopped else seen[-1]).kl, lang)))
    before, after = document["before"], document["after"]
    if known := [name for name in KNOWLEDGE if name in before and name in after]:
        lost = [name for name in known if clear_change(before[name], after[name]) == -KNOWLEDGE[name]]
        said.append(w("forgot", measure=", ".join(lost)) if lost else w("kept"))
    return " ".join(said)
