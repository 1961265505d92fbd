"""A question as it is put to a model: its prompt, what its answers mean, and which of them are correct.

Also what is known of a model's training data, and checks of arguments.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real

from klype.errors import UsageError
from klype.judge.judge import Judge, Meaning
from klype.judge.meaning import judge_of
from klype.option import not_empty
from klype.runs import provenance
from klype.runs.provenance import DataSources
from klype.sources.opening import OpenModel
from klype.sources.source import Message, Source
from klype.values import Figure, Question
from klype.words import words
from klype.world import World


@dataclass(frozen=True, slots=True)
class PromptContext:
    """A question as it is put to a model, and how its answers are judged.

    ``meaning(answer)``: answers of equal meaning have equal values; ``right(answer)``: whether it is correct (None:
    unknown). ``judge``: the name of what decides on meanings; ``error_rate``: how often it errs, without a value where
    that was not measured, None if it cannot err. ``unread``: why the demo world's grammar cannot parse the question,
    if the model was trained on it.
    """

    source: Source
    prompt: tuple[int, ...]
    question: Question
    meaning: Meaning
    judge: str
    right: Callable[[str], bool | None] | None
    error_rate: Figure | None = None
    unread: str = ""


def prompt_context(opened: OpenModel, text: str, raw: bool | None, judge: Judge | None = None) -> PromptContext:
    """The PromptContext of ``text``: a question of the demo world if its grammar can parse it, a question that the run
    held out, or else free text. ``judge``: decides on meanings, by default the grammar or the rules."""
    plain = opened.as_raw(raw)
    prompt = prompt_of(opened, text, raw)
    run = opened.found.run
    world = world_of(opened) if not plain else None
    found, unread = provenance.question_in(world, run, text) if run is not None and not plain else (None, "")
    question = found or Question("asked", text)
    ruling = judge_of(question, world, judge)
    right = partial(ruling.right, question) if world is not None and found is not None else None
    error = ruling.errs("same", [question])
    return PromptContext(opened.source, prompt, question, ruling.meaning(question), ruling.name, right, error, unread)


def whole(**given: object) -> None:
    """Raises UsageError for a count, limit or seed that is not an integer."""
    for name, number in given.items():
        if isinstance(number, bool) or not isinstance(number, Integral):
            raise UsageError(f"{name} should be a whole number (it is {number!r}).")


def number(name: str, value: object) -> float:
    """The value as a float. Raises UsageError if it is not a finite number from 0 up."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < math.inf:
        raise UsageError(f"{name} should be a number from 0 up (it is {value!r}).")
    return float(value)


def prompt_of(opened: OpenModel, text: str, raw: bool | None) -> tuple[int, ...]:
    """The token ids of the prompt for a text. Raises UsageError if it is empty or not a string."""
    return tuple(opened.user_prompt(not_empty(text), raw))


def reading_from(opened: OpenModel) -> DataSources | None:
    """The training data of a run's model; None where that is unknown."""
    return None if opened.native is None else provenance.data_sources(opened.found, opened.loaded.tokenizer)


def world_of(opened: OpenModel) -> World | None:
    """The demo world that the model was trained on; None for other models."""
    return provenance.world_of(opened.found.run)


def is_single_turn(opened: OpenModel) -> bool:
    """Whether the model was trained on single questions only, each with its own story, as in the demo world; earlier
    turns would only confuse it."""
    return world_of(opened) is not None


def read_of(messages: Sequence[Message], single_turn: bool) -> Sequence[Message]:
    """The part of a conversation that a model reads: all of it, or with ``single_turn`` from the last question on."""
    users = [i for i, message in enumerate(messages) if message["role"] == "user"]
    return messages[users[-1] :] if single_turn and users else messages


def fit(
    messages: Sequence[Message], prompt: Callable[[Sequence[Message]], list[int]], window: int, reserve: int
) -> tuple[list[Message], list[int]] | None:
    """The newest messages whose prompt leaves ``reserve`` tokens of the window, and that prompt.

    A system message at the start is kept; after it, the first message is a user's. None: the last message alone does
    not fit.
    """
    head = list(messages[:1]) if messages and messages[0]["role"] == "system" else []
    starts = [i for i in range(len(head), len(messages)) if i == len(head) or messages[i]["role"] == "user"]
    for start in starts:  # dropping the oldest question, with its answer
        kept = [*head, *messages[start:]]
        if len(ids := prompt(kept)) + reserve <= window:
            return kept, ids
    return None


def introduction(opened: OpenModel, lang: str) -> str:
    """A sentence on the model's training data, and whether it reads each question alone; "" where that is unknown."""
    reading = reading_from(opened)
    if reading is None:
        return ""
    return f"{reading.about(lang)} {words(lang, 'reading')('alone') if is_single_turn(opened) else ''}".rstrip()


TRIED = 12  # candidates, from which the shortest of each kind is suggested


def suggestions(opened: OpenModel, lang: str, count: int = 3, seed: int | None = None) -> list[str]:
    """``count`` questions of different kinds that suit the model: drawn from the demo world's grammar, or from a run's
    held-out questions. Empty if none are known."""
    rng, world, run = random.Random(seed), world_of(opened), opened.found.run
    if world is not None:
        drawn = [q for q in (world.question(rng, heldout=True) for _ in range(3 * TRIED)) if q.extra["lang"] == lang]
    else:
        known = provenance.read_questions(run / "questions.jsonl") if run is not None else []
        mine = [q for q in known if q.extra.get("lang", lang) == lang and "before" not in q.extra]
        drawn = rng.sample(mine, min(TRIED, len(mine)))
    drawn = sorted(drawn[:TRIED], key=lambda question: len(question.prompt))
    # reversed: the shortest question of each kind overwrites longer ones
    kinds = {str(question.extra.get("kind", question.id)): question.prompt for question in reversed(drawn)}
    return sorted(kinds.values(), key=len)[:count]
