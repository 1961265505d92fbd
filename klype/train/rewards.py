"""Rewards: plain functions of questions and answers, and the reward model, each with a weight.

A reward is a function ``(questions, answers) -> list of floats`` of texts, with one number per answer; higher is
better. Its name is ``file.py:function``.
"""

import difflib
import hashlib
import importlib.util
import inspect
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, cast

import numpy as np

from klype.config import toml_table
from klype.errors import KlypeError, UsageError
from klype.train.objectives import Ids
from klype.train.reward_model import RewardModel
from klype.values import Floats, Question, Reward

# the reward model's name among rewards
MODEL = "model"


@dataclass(frozen=True, slots=True)
class QuestionPrompt:
    """A question and its prompt as token ids."""

    prompt: tuple[int, ...]
    question: Question | None = None


# a reward as training calls it: N questions and N answers as token ids to N numbers
AnswerReward = Callable[[Sequence[QuestionPrompt], Sequence[Ids]], Floats]


@dataclass(frozen=True, slots=True)
class WeightedRewards:
    """An ``AnswerReward``, the weighted sum of ``parts`` {name: (reward, weight)}."""

    parts: Mapping[str, tuple[AnswerReward, float]]

    def __call__(self, asked: Sequence[QuestionPrompt], answers: Sequence[Ids]) -> Floats:
        return self.total(self.each(asked, answers))

    def each(self, asked: Sequence[QuestionPrompt], answers: Sequence[Ids]) -> dict[str, Floats]:
        """Rewards by part, unweighted."""
        return {name: reward(asked, answers) for name, (reward, _) in self.parts.items()}

    def total(self, each: Mapping[str, Floats]) -> Floats:
        whole: Floats = np.sum([self.parts[name][1] * found for name, found in each.items()], axis=0)
        return whole


def by_model(model: RewardModel) -> AnswerReward:
    """A reward model's scores as an ``AnswerReward``."""
    return lambda asked, answers: model.score([a.prompt for a in asked], answers)


def by_text(reward: Reward, decode: Callable[[Ids], str], name: str = "") -> AnswerReward:
    """A plain function as an ``AnswerReward``; ``decode`` gives an answer's text. Raises KlypeError as ``scores``
    does."""

    def rewarded(asked: Sequence[QuestionPrompt], answers: Sequence[Ids]) -> Floats:
        questions = [a.question for a in asked]
        known = [q.transcript for q in questions if q is not None]
        assert len(known) == len(questions), "a reward on words needs the questions"
        return scores(reward, known, [decode(answer) for answer in answers], name)

    return rewarded


def scores(reward: Reward, questions: Sequence[str], answers: Sequence[str], name: str = "") -> Floats:
    """Rewards [N] of a plain function. KlypeError, with its file and line, when it fails or does not return one finite
    number per answer."""
    name = name or name_of(reward)
    try:
        found: list[Any] = list(reward(questions, answers))
    except (Exception, SystemExit) as error:
        raise KlypeError(f"The reward {name} failed ({_place(reward, error)}): {_error_text(error)}.") from error
    where = _place(reward)
    if len(found) != len(answers):
        raise KlypeError(
            f"The reward {name} ({where}) gave {len(found)} numbers for {len(answers)} answers.",
            "Return a list with one number per answer.",
        )
    numbers = np.array([_number(value) for value in found], dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(numbers))
    if bad.size:
        first, answer = repr(found[bad[0]])[:60], " ".join(answers[bad[0]].split())[:60]
        raise KlypeError(
            f"The reward {name} ({where}) gave {first} for the answer “{answer}”: {bad.size} of {len(answers)} are not "
            "finite numbers.",
            "Return a list with one finite number per answer.",
        )
    return numbers


def load_function(name: str) -> Reward:
    """The function ``file.py:function``; the file is executed. UsageError when there is no such function, KlypeError
    when the file fails."""
    file, _, wanted = name.rpartition(":")
    path = Path(file).expanduser()
    if not file or not path.is_file():
        raise UsageError(f"There is no file {file or name} with a reward.", "Give FILE.py:FUNCTION, or model.")
    spec = importlib.util.spec_from_file_location(f"klype_reward_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{file} is not a Python file with a reward.", "Give FILE.py:FUNCTION, or model.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up their module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else _line_in(error, str(path))
        raise KlypeError(f"{file} cannot be run (line {line}): {_error_text(error)}.") from error
    found = getattr(module, wanted, None)
    if not callable(found):
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        near = difflib.get_close_matches(wanted, functions, 1)
        listed = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(functions) or 'none'}."
        raise UsageError(f"{file} has no function {wanted or '(none is named)'}.", listed)
    function: Reward = found
    return function


def digest(reward: Reward) -> str:
    """SHA-256 of a function's file, or of its source if it has no file; "" if it has neither."""
    try:
        file = Path(inspect.getsourcefile(inspect.unwrap(reward)) or "")
        source = file.read_bytes() if file.is_file() else inspect.getsource(reward).encode()
    except (OSError, TypeError):
        return ""
    return hashlib.sha256(source).hexdigest()


def name_of(reward: Reward) -> str:
    """Name of a reward function."""
    return str(getattr(reward, "__name__", type(reward).__name__))


def by_name(rewards: Iterable[Reward] | Mapping[Reward | str, float]) -> tuple[dict[str, float], dict[str, Reward]]:
    """Weights and functions by name, from functions (weight 1) or {function, "model" or "file.py:function": weight}.
    Raises UsageError for anything else."""
    given = cast(object, rewards)  # a caller may give anything
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise UsageError(
            "rewards should be a list of functions, or {function: weight}.", "For one: rewards=[function]."
        )
    weights = rewards if isinstance(rewards, Mapping) else dict.fromkeys(rewards, 1.0)
    found: dict[str, float] = {}
    functions: dict[str, Reward] = {}
    for reward, weight in weights.items():
        if not isinstance(reward, str) and not callable(reward):
            raise UsageError(f"{reward!r} is not a reward.", "Give functions (questions, answers) -> list of floats.")
        name = reward if isinstance(reward, str) else name_of(reward)
        if isinstance(weight, bool) or not isinstance(weight, Real) or not math.isfinite(weight):
            raise UsageError(f"The weight of the reward {name} should be a number (it is {weight!r}).")
        if name in found or (callable(reward) and name == MODEL):
            raise UsageError(f"Two rewards are called {name}.", "Give their functions different names.")
        found[name] = float(weight)
        if not isinstance(reward, str):
            functions[name] = reward
    return found, functions


def typed_rewards(options: Sequence[str]) -> dict[str, float]:
    """{name: weight} of ``--reward`` as it is typed: ``file.py:function``, ``file.py:function=0.5``, ``model=1``."""
    found: dict[str, float] = {}
    for option in options:
        name, equals, weight = option.rpartition("=")
        if not equals:
            name, weight = option, "1"
        try:
            number = float(weight)
        except ValueError:
            raise UsageError(f"--reward {option}: the weight {weight} is not a number.", "For example …=0.5.") from None
        if name != MODEL and ":" not in name:
            raise UsageError(f"--reward {option}: that names no function.", "Give FILE.py:FUNCTION, or model.")
        if name in found:
            raise UsageError(f"--reward {name} is given twice.")
        found[name] = number
    return found


def as_settings(weights: Mapping[str, float]) -> tuple[str, ...]:
    """The override that sets these rewards in a recipe; empty when there are none."""
    return (f"align.rewards={toml_table(weights)}",) if weights else ()


def absolute(name: str) -> str:
    """The name with an absolute path, since a run may be resumed in another working directory."""
    file, colon, function = name.rpartition(":")
    return f"{os.path.abspath(os.path.expanduser(file))}:{function}" if colon else name


def _number(value: Any) -> float:
    """The value as a float, NaN if it is not a number; a string is not, even if it spells one."""
    try:
        return float("nan") if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def _place(reward: Reward, error: BaseException | None = None) -> str:
    """File and line of a function, or the line in it where an error was raised."""
    code = getattr(inspect.unwrap(reward), "__code__", None)
    if code is None:
        return type(reward).__name__
    line = None if error is None else _line_in(error, code.co_filename)
    return f"{code.co_filename}, line {line or code.co_firstlineno}"


def _line_in(error: BaseException, file: str) -> int | None:
    """The line of the innermost frame of an error's traceback that is in this file."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return lines[-1] if lines else None


def _error_text(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".removesuffix(".").removesuffix(": ")
