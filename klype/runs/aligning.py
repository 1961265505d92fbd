"""The last two stages: a model that imitates the ranker, and answers that please it, held near what they were."""

from __future__ import annotations

import copy

from torch import nn

from klype.engine.engine import Engine
from klype.errors import UsageError
from klype.model.transformer import Transformer
from klype.runs import ranking
from klype.runs.lessons import messages
from klype.runs.plan import Planned
from klype.runs.stages import Run, learn, session_of
from klype.train.objectives import Objective
from klype.train.rewards import RewardModel, fit_reward
from klype.train.rollout import Asked, Players, RolloutBatches, RolloutSettings, by_model
from klype.train.stages import align_objective, method
from klype.values import Batch, Batches, Figure


def reward(run: Run) -> None:
    """A model that imitates the ranker; how well is measured on questions it has not seen."""
    trunk = run.model("finetune")
    ranked = ranking.load(run.subject, run.folder / "rank")
    fit = run.recipe.reward.fit
    run.say.stage_start("reward", fit.steps)
    session = session_of(run, "reward", None, None, None)
    model = fit_reward(trunk, ranked.train, fit, run.folder / "reward", session)
    figures = ranking.agreement(model, ranked, run.subject, run.options.seed)
    run.save("reward", trunk, {"parent": "finetune", "what": "the trunk of a reward model; its head lies beside"})
    model.save(run.folder / "reward", {"annotator": ranked.annotator})
    run.models.pop("reward")
    run.record.content["reward"] = {name: figure.json() for name, figure in figures.items()}
    run.say.stage_end(f"agrees with the ranker on {_share(figures['pair_accuracy'])} of held-out pairs")


def align(run: Run) -> None:
    """The ranker's imitator rewards fresh answers; a leash holds the model near what it was."""
    section = run.recipe.align
    row = method(section.how.method)
    if row.learns_from != "rollouts" or row.scaling is None:
        raise UsageError(f"The way to align called {row.name} learns from rankings, which a run cannot do yet.")
    reference = copy.deepcopy(run.model("finetune")).requires_grad_(False)
    judge = RewardModel.load(run.folder / "reward", reference)
    model = copy.deepcopy(reference).requires_grad_(True)
    asked = run.subject.questions(2)
    tokenizer = run.subject.chat.tokenizer
    rollouts = RolloutSettings(
        answers=section.answers,
        limit=section.limit,
        scaling=row.scaling,
        seed=run.options.seed % 2**20,
        stop=tokenizer.ends,
    )

    def ask(step: int) -> list[Asked]:
        questions = [asked(step * section.rows + i) for i in range(section.rows)]
        return [Asked(tuple(run.subject.chat.prompt(messages(q))), q) for q in questions]

    def build(twin: nn.Module, planned: Planned | None) -> tuple[Objective, Batches]:
        assert isinstance(twin, Transformer)
        rehearsed = run.subject.rehearsal(section.rehearsal_rows) if section.rehearsal_rows else None

        def rehearsal(step: int) -> Batch:
            assert rehearsed is not None
            rehearsed.restore({"position": step})
            return next(rehearsed)

        players = Players(ask, Engine(twin), by_model(judge), reference, rehearsal if rehearsed else None)
        return align_objective(section.how), RolloutBatches(players, rollouts)

    trained = learn(run, "align", model, build, section.training)
    run.save("align", model, {"steps": trained.steps, "parent": "finetune", "method": row.name})


def _share(figure: Figure) -> str:
    return "none" if figure.value is None else f"{100 * figure.value:.0f} %"
