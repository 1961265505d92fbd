"""The feedback experiment on a chain whose answer is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from klype.examine.error_feedback import InterventionOutcome, effect, outcomes
from klype.examine.interventions import ARMS, Arm, FeedbackSettings, Intervention, Query, interventions
from klype.examine.truth import Reader
from klype.sources.source import NativeSource
from tests.toy_sources import table_source

END, OK, ERR = 0, 1, 2


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Always:
    """A language in which only one token is ever right."""

    def next(self) -> dict[int, float]:
        return {OK: 1.0}

    def push(self, token: int) -> float:
        return float(token == OK)


def chain(a: float, b: float, end: float = 0.0) -> NativeSource:
    """P(error given error) = a, P(error given none) = b, of what does not end."""
    going = 1 - end
    return table_source(np.array([[1, 0, 0], [end, going * (1 - b), going * b], [end, going * (1 - a), going * a]]))[0]


def asked(n: int) -> list[Query]:
    return [Query(f"q{i}", (OK,), Reader(Always)) for i in range(n)]


def test_the_two_state_chain_gives_its_closed_form() -> None:
    a, b = 0.7, 0.2
    slope, level = a - b, b / (1 - (a - b))
    settings = FeedbackSettings(distances=4, samples=24)
    questions = asked(60)
    forced = interventions(chain(a, b), questions, settings, lambda t: True)
    assert forced
    found = effect(outcomes(chain(a, b), questions, forced, settings))
    assert found.difference[0].value == pytest.approx(slope, abs=1e-5)
    assert found.ratio[0].value == pytest.approx(a / b, rel=1e-4)
    for d in range(1, 4):
        exact = slope ** (d + 1)
        ratio = (level + (1 - level) * exact) / (level * (1 - exact))
        wide = 1.5 * (found.difference[d].high - found.difference[d].low) / 2
        assert found.difference[d].value == pytest.approx(exact, abs=wide + 1e-6)
        assert found.ratio[d].value == pytest.approx(ratio, rel=0.25)
    assert all(share == 0 for row in found.ended.values() for share in row)
    assert {figure.why for figure in found.beside_near} == {"fewer than 30 matched pairs"}  # four times as likely
    assert found.moved[0].value == pytest.approx(slope, abs=1e-5)
    assert found.moved[1].value == pytest.approx(0, abs=1e-5)


def test_without_memory_there_is_no_feedback() -> None:
    settings = FeedbackSettings(distances=3, samples=2)
    forced = interventions(chain(0.3, 0.3), asked(20), settings, lambda t: True)
    found = effect(outcomes(chain(0.3, 0.3), asked(20), forced, settings))
    for difference, ratio, moved in zip(found.difference, found.ratio, found.moved, strict=True):
        assert difference.value == pytest.approx(0, abs=1e-6)
        assert ratio.value == pytest.approx(1, abs=1e-5)
        assert moved.value == pytest.approx(0, abs=1e-6)


def test_who_never_recovers_has_recovery_zero_and_who_always_does_one() -> None:
    settings = FeedbackSettings(distances=3, samples=2)
    for a, recovery in ((1.0, 0.0), (0.0, 1.0)):
        source = chain(a, 1e-9)
        forced = [Intervention(f"q{i}", (), (ERR, OK, OK)) for i in range(8)]
        found = effect(outcomes(source, asked(8), forced, settings))
        assert [figure.value for figure in found.recovery] == pytest.approx([recovery] * 3)


def test_an_arm_that_ended_counts_as_no_error_and_is_shown() -> None:
    settings = FeedbackSettings(distances=4, samples=8)
    source = chain(0.5, 0.5, end=0.5)
    forced = interventions(source, asked(40), settings, lambda t: True)
    found = effect(outcomes(source, asked(40), forced, settings))
    assert found.ended["wrong"][0] == 0
    assert found.ended["wrong"][1] == pytest.approx(0.5, abs=0.15)
    assert list(found.ended["right"]) == sorted(found.ended["right"])


def test_the_forced_tokens_are_wrong_right_and_near_and_never_the_end() -> None:
    p = np.array([[1, 0, 0, 0, 0], [0.2, 0.5, 0.05, 0.2, 0.05], *[[0.2, 0.2, 0.2, 0.2, 0.2]] * 3])
    source, _ = table_source(p)

    class Two(Always):
        def next(self) -> dict[int, float]:
            return {OK: 0.4, 2: 0.4, END: 0.2}

    questions = [Query(f"q{i}", (OK,), Reader(Two)) for i in range(60)]
    forced = interventions(source, questions, FeedbackSettings(positions=1), lambda t: True)
    assert len(forced) == 60
    assert {intervention.tokens[0] for intervention in forced} == {3, 4}
    assert {intervention.tokens[1] for intervention in forced} == {1, 2}
    for intervention in forced:
        assert intervention.tokens[2] == (1 if intervention.tokens[0] == 3 else 2)


def test_the_reader_remembers_and_agrees_with_reading_anew() -> None:
    class Count:
        def __init__(self) -> None:
            self.said: tuple[int, ...] = ()

        def next(self) -> dict[int, float]:
            return {len(self.said): 1.0}

        def push(self, token: int) -> float:
            fine = float(token == len(self.said))
            self.said = (*self.said, token)
            return fine

    reader = Reader(Count)
    assert reader.next((0, 1, 5)) == {3: 1.0}
    assert reader.first_error((0, 1, 5, 3)) == 3
    assert reader.first_error((0, 1)) is None
    assert reader.next(()) == {0: 1.0}


def test_a_number_of_errors_has_no_interval_below_none() -> None:
    """A few places with a whole error, tiny chances elsewhere: an interval of the mean alone reaches below 0."""
    rng = np.random.default_rng(3)
    found = []
    for i in range(162):
        edits: dict[Arm, tuple[float, ...]] = {arm: (float(rng.random() * 1e-3 + 1.3 * (i < 3)),) for arm in ARMS}
        intervention = Intervention(f"q{i}", (), (1, 2, 2))
        found.append(InterventionOutcome(intervention, edits, edits, edits, (None,), edits=edits))
    for name, figure in effect(found).further.items():
        assert figure.low is not None, name
        assert figure.low >= 0, name
