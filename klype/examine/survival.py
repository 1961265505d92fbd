"""How long answers stay error-free, and how long they would if errors were independent.

S is the probability mass on words that can follow an error-free prefix (``JudgedAnswer.s``); S̄ is its mean. R_n is the
share of answers without an error through word n; an answer that ended without one stays so. K_n is the Kaplan–Meier
survival, as if no answer had ended.

h_t, the probability that the first error is word t given an open, error-free answer before it, is the mean of 1 − S
over the model's own error-free prefixes where S is known (exact per prefix), and the observed share elsewhere. Ending
without error is a competing event (open + ended + erred = 1 at every t, Aalen–Johansen); only the token limit censors.
K_n = Π(1 − h_t) is compared with Π(1 − h̄_t), from each position's own hazard: h̄_t is the mean over error-free
prefixes drawn from what can follow. The prefixes that survive, with probability Π S, each stand for 1 / Π S of these
(inverse-probability weights). The two agree where errors are independent given the position, however hazards depend on
the position; S̄^n would mix both effects. Where fewer than ten questions are at risk, K_n and its references are
withheld (a hazard of 0 with nobody left would keep K too high); R_n, which rests on all questions, is not.

Shapes: M questions, N answers, B tables at once, T positions, E columns of counts (``COLUMNS``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from klype.examine import intervals
from klype.examine.evidence import Evidence, JudgedAnswer
from klype.examine.intervals import ONE, Array, figure_with
from klype.values import Figure

COLUMNS = 6  # columns of a table of counts, see ``hazards``
AT_RISK, ERRED, CLEAN, ENDED, WEIGHT, WEIGHED = range(COLUMNS)
S_MIN = 1e-6  # a smaller S gives a prefix no larger weight than this
MIN_AT_RISK = 10  # questions with an open, error-free answer: with fewer, K and its references have no value
FEW = "fewer than ten questions were still right and open"
SHARES = "share of answers"


@dataclass(frozen=True, slots=True)
class Survival:
    """S, and the curves over positions t = 1, 2, … (index 0 is t = 1)."""

    s: Figure
    r: tuple[Figure, ...]
    k: tuple[Figure, ...]
    independent: tuple[Figure, ...]  # S̄^t
    by_position: tuple[Figure, ...]  # Π(1 − h̄_t)
    difference: tuple[Figure, ...]  # K minus by_position


def survival(answers: Sequence[JudgedAnswer]) -> Survival:
    """The curves up to the longest answer, with jackknife intervals over questions."""
    table_MTE = hazards(answers)
    questions, length = table_MTE.shape[:2]
    curves = _curves(table_MTE.mean(axis=0)[None])
    weighed = {}
    if questions > 1:
        without = _curves(intervals.without_each(table_MTE))
        weighed = {name: intervals.pseudo_values(curves[name], without[name]) for name in curves}
    risk_T = (table_MTE[:, :, AT_RISK] > 0).sum(axis=0)
    known = any(answer.s for answer in answers)

    def figure(name: str, t: int) -> Figure:
        value, n = float(curves[name][0, t]), len(answers)
        unit = "difference of shares" if name == "difference" else SHARES
        # questions at risk at t; 0 for R, which rests on all questions
        at_risk = 0 if name == "r" else int(risk_T[t])
        if 0 < at_risk < MIN_AT_RISK:
            return Figure(None, n=n, unit=unit, why=FEW)
        if name in ("by_position", "difference") and not known:
            return Figure(None, n=n, unit=unit, why="S is not known")
        if questions == 1:
            return figure_with(value, None, n, unit, why=ONE)
        # where few are still at risk, the further question has the weight of one of them
        part_M, size = weighed[name][:, t], questions / (at_risk or questions)
        if name == "difference":
            return figure_with(value, intervals.difference_limits(part_M, size), n, unit)
        return figure_with(value, intervals.share_limits(part_M, np.ones(questions), size), n, unit)

    at_risk_M, erred_M = (table_MTE[:, :, column].sum(axis=1) for column in (AT_RISK, ERRED))
    return Survival(
        s=replace(intervals.ratio_of_means(at_risk_M - erred_M, at_risk_M, "share a word"), n=len(answers)),
        **{name: tuple(figure(name, t) for t in range(length)) for name in curves},
    )


def survival_of(evidence: Evidence) -> Survival:
    """Survival curves of all answers, cached."""
    return evidence.once("survival", lambda: survival(evidence.answers))


def hazards(answers: Sequence[JudgedAnswer]) -> Array:
    """Counts by question and position, table_MTE.

    The columns: answers AT_RISK; ERRED (expected errors where S is known, else observed ones); CLEAN, without an error;
    ENDED without one. Where S is known also WEIGHT, how many error-free prefixes the answers at risk stand for, and
    WEIGHED, the expected errors of these.
    """
    assert answers
    index_N, questions = intervals.index_of(answer.question for answer in answers)
    table_MTE = np.zeros((questions, max(1, *(_positions(answer) for answer in answers)), COLUMNS))
    for m, answer in zip(index_N.tolist(), answers, strict=True):
        positions = _positions(answer)
        table_MTE[m, :positions, AT_RISK] += 1
        table_MTE[m, :positions, CLEAN] += 1
        if answer.first_error is not None:
            table_MTE[m, answer.first_error - 1, CLEAN] -= 1
        elif answer.ended == "stop":
            table_MTE[m, positions - 1, ENDED] += 1
        if answer.s:
            assert len(answer.s) == positions, "S must be known at every right and open prefix, or at none"
            s_T = np.array(answer.s)
            # inverse-probability weights: the prefix stands for those that did not survive
            stands_for_T = 1 / np.cumprod(np.concatenate([[1.0], np.maximum(s_T[:-1], S_MIN)]))
            table_MTE[m, :positions, ERRED] += 1 - s_T
            table_MTE[m, :positions, WEIGHT] += stands_for_T
            table_MTE[m, :positions, WEIGHED] += stands_for_T * (1 - s_T)
        elif answer.first_error is not None:
            table_MTE[m, answer.first_error - 1, ERRED] += 1
    return table_MTE


def _positions(answer: JudgedAnswer) -> int:
    """The number of positions at risk: up to the answer's first error, its end, or the token limit."""
    if answer.first_error is not None:
        return answer.first_error
    return len(answer.words) + (answer.ended == "stop")


def _curves(counts_BTE: Array) -> dict[str, Array]:
    """The curves of ``Survival`` by name, [B, T] each, from tables of counts."""
    hazard_BT = _ratio(counts_BTE[..., ERRED], counts_BTE[..., AT_RISK])
    ending_BT = _ratio(counts_BTE[..., ENDED], counts_BTE[..., CLEAN])
    # an answer that ended cannot err any more: a competing event, not censoring
    open_BT = np.cumprod((1 - hazard_BT) * (1 - ending_BT), axis=1)
    before_BT = np.concatenate([np.ones_like(open_BT[:, :1]), open_BT[:, :-1]], axis=1)
    risk_B1 = counts_BTE[..., AT_RISK].sum(axis=1, keepdims=True)
    s_BT = np.broadcast_to(1 - _ratio(counts_BTE[..., ERRED].sum(axis=1, keepdims=True), risk_B1), open_BT.shape)
    k_BT = np.cumprod(1 - hazard_BT, axis=1)
    by_position_BT = np.cumprod(1 - _ratio(counts_BTE[..., WEIGHED], counts_BTE[..., WEIGHT]), axis=1)
    return {
        "r": 1 - np.cumsum(before_BT * hazard_BT, axis=1),
        "k": k_BT,
        "independent": s_BT ** np.arange(1, s_BT.shape[1] + 1),
        "by_position": by_position_BT,
        "difference": k_BT - by_position_BT,
    }


def _ratio(top: Array, under: Array) -> Array:
    """top / under, and 0 where ``under`` is 0."""
    return np.divide(top, under, out=np.zeros_like(top), where=under > 0)


UNIT = "shape"
GROUPS = 100  # most jackknife groups of questions: each is a fit
MIN_ERRORS = 10.0  # with fewer there is no interval
ROUNDS, NEAR = 200, 1e-7  # most iterations of a fit, and its tolerance: a smaller step is the last
WIDEST = 3.0  # the range of ln k is ± this, and no step is longer


def weibull_shape(answers: Sequence[JudgedAnswer]) -> Figure:
    """The shape k of a discrete Weibull hazard (Nakagawa & Osaki 1975), 1 − h_t = exp(−λ^k (t^k − (t − 1)^k)): k = 1
    when the hazard is constant (K_n = S^n), below 1 when it falls with t.

    By maximum likelihood (exact hazards enter as expected counts), with a jackknife interval of ln k over groups of
    questions. Without a value where there is no error, or only one position.
    """
    table_MTE = hazards(answers)
    counts_TE = table_MTE.sum(axis=0)
    if counts_TE.shape[0] < 2 or counts_TE[:, ERRED].sum() < 1e-9:
        return Figure(None, n=len(answers), unit=UNIT, why="too few errors")
    value, limits = float(_fit(counts_TE[None])[0]), None
    questions = table_MTE.shape[0]
    if questions >= intervals.MIN_QUESTIONS and counts_TE[:, ERRED].sum() >= MIN_ERRORS:
        grouped = np.zeros((min(questions, GROUPS), *counts_TE.shape))
        np.add.at(grouped, np.arange(questions) % len(grouped), table_MTE)
        # of ln k, so that the interval contains no negative shape
        without_G = np.log(_fit(intervals.without_each(grouped)))
        limits = intervals.exp_limits(intervals.jackknife_limits(np.log(value), without_G))
    return figure_with(value, limits, len(answers), UNIT, why=ONE if questions == 1 else "too few errors")


def _fit(counts_BTE: Array) -> Array:
    """k of every table, by Fisher's scoring with Levenberg's damping in (ln λ, ln k), all tables at once."""
    erred_BT, risk_BT = counts_BTE[..., ERRED], counts_BTE[..., AT_RISK]
    # as shares of those at risk, so that damping and tolerance do not depend on their number
    scale_B1 = np.maximum(1e-9, risk_BT.sum(axis=1, keepdims=True))
    erred_BT, risk_BT = erred_BT / scale_B1, risk_BT / scale_B1
    log_T = np.log(np.arange(1, erred_BT.shape[1] + 1))

    def cumulated(at_B2: Array) -> tuple[Array, Array]:
        """u = (λt)^k, and its logarithm."""
        # exp(60) is far beyond any hazard, and its square is still finite
        log_BT = np.clip(np.exp(at_B2[:, 1:]) * (at_B2[:, :1] + log_T), -60, 60)
        return np.exp(log_BT), log_BT

    def neg_log_likelihood(at_B2: Array) -> Array:
        """Σ_t c_t (at risk − erred) − ln(1 − e^−c_t) erred, with c_t the increment of the cumulative hazard."""
        growth_BT = np.diff(cumulated(at_B2)[0], axis=1, prepend=0.0)
        log_hazard_BT = np.log(np.maximum(-np.expm1(-growth_BT), 1e-300))
        return np.asarray((growth_BT * (risk_BT - erred_BT) - log_hazard_BT * erred_BT).sum(axis=1))

    at_B2 = np.stack([np.log(np.maximum(1e-6, erred_BT.sum(axis=1))), np.zeros(len(erred_BT))], axis=1)
    damping_B, here_B = np.full(len(at_B2), 1e-3), neg_log_likelihood(at_B2)
    for _ in range(ROUNDS):
        u_BT, log_BT = cumulated(at_B2)
        # du/d ln λ = k u, du/d ln k = u ln u
        moved_2BT = np.diff(np.stack([np.exp(at_B2[:, 1:]) * u_BT, u_BT * log_BT]), axis=2, prepend=0.0)
        odds_BT = np.maximum(np.expm1(np.maximum(np.diff(u_BT, axis=1, prepend=0.0), 1e-300)), 1e-300)
        gradient_B2 = np.einsum("ibt,bt->bi", moved_2BT, risk_BT - erred_BT - erred_BT / odds_BT)
        # the expected information instead of the second derivative
        curve_B22 = np.einsum("ibt,jbt,bt->bij", moved_2BT, moved_2BT, risk_BT / odds_BT)
        spread_B2 = np.einsum("bii->bi", curve_B22)
        curve_B22 = curve_B22 + np.eye(2) * (damping_B[:, None] * spread_B2 + 1e-12)[:, None]
        step_B2 = np.clip(np.linalg.solve(curve_B22, -gradient_B2[..., None])[..., 0], -WIDEST, WIDEST)
        next_B2 = at_B2 + step_B2
        next_B2[:, 1] = np.clip(next_B2[:, 1], -WIDEST, WIDEST)
        there_B = neg_log_likelihood(next_B2)
        better_B = there_B <= here_B
        at_B2[better_B], here_B[better_B] = next_B2[better_B], there_B[better_B]
        # Levenberg: towards Newton's step while it helps, towards a short downhill one where it does not
        damping_B = np.clip(np.where(better_B, damping_B / 5, damping_B * 10), 1e-12, 1e12)
        if np.abs(step_B2).max() < NEAR:
            break
    return np.asarray(np.exp(at_B2[:, 1]))
