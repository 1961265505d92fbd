"""What measures are made from: answers that were drawn and judged, and the model's next word beside the truth's."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from klype.answers.forks import Forks
from klype.answers.tree import Tree
from klype.examine.feedback import InterventionOutcome, Replaced
from klype.examine.truth import Point
from klype.judge.judge import Ruling
from klype.values import Figure

Found = TypeVar("Found")
# Of the answers that a judge decides, the share decided wrongly, and of pairs, the share whose sameness it judges
# otherwise than a reader; no value where that was not measured.
Errors = Mapping[Ruling, Figure]
OTHER_MANNERS = "alignment gave it other manners than the truth has, which is that of the fine-tuning examples"


@dataclass(frozen=True, slots=True)
class Answered:
    """One judged answer. A verdict is None when the judge cannot decide; a cost is None when it was not measured.

    ``words`` without the end. ``first_error`` is the position (1, 2, …, the end of text counting as a word) of the
    first word that cannot follow. ``s`` is the mass on words that can follow, Σ_{v∈A} q(v), before every position up
    to the first error, the end, or the limit: the same for all answers of one evidence, known or unknown.
    ``s_bounds`` and ``entropy_bounds`` (low, high) stand for them where only the most probable tokens are told.
    ``meaning`` is what it means (None: nobody can say); ``entropy`` is Σ_t H(q_t) of the distributions drawn from, and
    ``drawn_logp`` the answer's log-probability under them (nats); ``copied`` is the share found in the training text.
    ``asked``: whether the judge had anything to say whether it is right by.
    """

    question: str
    words: tuple[str, ...]
    ended: Literal["stop", "length", "cancelled"]
    right: bool | None = None
    word_for_word: bool | None = None
    polite: bool | None = None
    concise: bool | None = None
    well_formed: bool | None = None
    score: float | None = None
    first_error: int | None = None
    s: tuple[float, ...] = ()
    passes: int | None = None
    tokens: int | None = None
    flops: float | None = None
    bytes_moved: float | None = None
    seconds: float | None = None
    joules: float | None = None
    meaning: Hashable = None
    entropy: float | None = None
    drawn_logp: float | None = None
    s_bounds: tuple[tuple[float, float], ...] = ()
    entropy_bounds: tuple[float, float] | None = None
    copied: float | None = None
    asked: bool = True


@dataclass(frozen=True, slots=True)
class Told:
    """What was said to be so probable, how often it comes true (0 or 1, or the truth itself), and where."""

    said: float
    true: float
    question: str


@dataclass(frozen=True, slots=True)
class ByQuestion:
    """Sums over one question's beginnings: KL(p‖q) on the model's own and on true ones; cross-entropies by temperature
    (``calibration.TEMPERATURES``)."""

    own_kl: float | None = None
    true_kl: float | None = None
    cross_entropies: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything known of one model at one temperature; a measure whose evidence is absent is left out.

    ``documents``: each held-out document's prefixes, compared with the truth (``truth.point``). ``words``: how
    many words each document has when a word may be several tokens (else every prefix is a word's). ``judge`` names
    who said right or wrong, ``errors`` how often it errs (None: it cannot). ``other_manners``: the model was taught
    other manners than the truth has, so that how near its probabilities are to the truth's says nothing; which words
    can follow is the same.
    ``points``: the least and the most that the annotator's score can be, where that is known.
    ``dropped``: beginnings of the feedback experiment at which no right word was as rare as the wrong one.
    """

    answers: Sequence[Answered] = ()
    documents: Sequence[Sequence[Point]] = ()
    words: Sequence[int] | None = None
    judge: str = ""
    errors: Errors | None = None
    told: Sequence[Told] = ()
    sums: Sequence[ByQuestion] = ()
    outcomes: Sequence[InterventionOutcome] = ()
    dropped: int = 0
    trees: Sequence[Tree] = ()
    forks: Sequence[Forks] = ()
    replaced: Sequence[Replaced] = ()
    language: Mapping[str, Sequence[str]] | None = None
    other_manners: bool = False
    points: tuple[float, float] | None = None
    _known: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def by_word(self) -> bool:
        """Whether errors are judged word by word."""
        return any(answer.s or answer.s_bounds or answer.first_error is not None for answer in self.answers)

    def once(self, name: str, make: Callable[[], Found]) -> Found:
        """What several measures need is computed once."""
        if name not in self._known:
            self._known[name] = make()
        found: Found = self._known[name]
        return found
