"""The learning rate over a run: warm up, stay, decay. A pure function of the fraction done."""

from __future__ import annotations

from pydantic import Field

from klype import config


class Schedule(config.Settings):
    """Shares of the run: ``warmup`` rising, flat until ``flat``, then linear down to ``floor`` at the end."""

    warmup: float = Field(default=0.03, ge=0, le=1)
    flat: float = Field(default=0.4, ge=0, le=1)
    floor: float = Field(default=0.05, ge=0, le=1)


def factor(schedule: Schedule, fraction: float) -> float:
    """What the learning rates are multiplied with at ``fraction`` (0 first step, 1 end) of the run; in (0, 1].

    The first step already moves: warm-up starts at a thousandth of the way, not at zero.
    """
    rising = min(1.0, (fraction + 1e-3) / schedule.warmup) if schedule.warmup > 0 else 1.0
    flat = max(schedule.flat, schedule.warmup)
    if fraction <= flat or flat >= 1:
        return rising
    return schedule.floor + (1 - schedule.floor) * (1 - min(fraction, 1.0)) / (1 - flat)
