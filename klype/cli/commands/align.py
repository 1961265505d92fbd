"""``klype align``: a run's answers are aligned with its rankings, watched, compared and judged in words."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from datetime import date
from typing import Annotated

from klype.cli import options as o
from klype.cli.terminal import Terminal
from klype.option import Option
from klype.runs.options import StageOptions, WorkOptions


@dataclass(frozen=True, kw_only=True)
class AlignOptions(WorkOptions):
    """An alignment, in as many rounds as are asked for."""

    model: o.Model
    method: Annotated[str, Option("grpo, rloo, ppo, expert, dpo, ipo or kto.", shown="grpo")] = ""
    reward: o.Reward = ()
    rounds: Annotated[int, Option("How often to rank, train and rank again.")] = 1
    target_kl: Annotated[
        float | None, Option("How far the answers may go, in nats an answer: the KL penalty adapts to it.")
    ] = None
    beta: Annotated[float | None, Option("A fixed KL penalty: what each nat costs.")] = None
    taste: Annotated[str, Option("Rank anew with another taste: word=-0.1 loves length.")] = ""
    steps: Annotated[int | None, Option("How many steps a round.")] = None
    minutes: Annotated[float | None, Option("How long a round, instead of --steps.")] = None


def command(terminal: Terminal, asked: AlignOptions) -> None:
    """Align a run's fine-tuned model with its rankings, and say what came of it."""
    from klype.cli.progress import listener
    from klype.config import make
    from klype.runs import folder
    from klype.runs.opening import checked
    from klype.runs.rounds import align_rounds, overrides
    from klype.train.rewards import typed

    how = (*overrides(asked.method, typed(asked.reward), asked.beta, asked.target_kl), *asked.overrides)
    common = {field.name: getattr(asked, field.name) for field in fields(WorkOptions)}
    common |= {"from_": asked.model, "steps": asked.steps, "minutes": asked.minutes, "overrides": how}
    stage = make(StageOptions, {**common, "stage": "align", "lang": terminal.lang})
    checked(stage)
    with folder.chosen("align", asked.out, asked.resume, date.today()) as place, listener(terminal, asked.human) as say:
        document = align_rounds(replace(stage, out=place), asked.rounds, asked.taste, say)
    terminal.document(document)
