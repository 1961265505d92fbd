"""A recipe: everything that makes a run what it is, as one checked value. Recipes are TOML files in ``recipes/``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, FiniteFloat

from klype.config import Settings, load, nearest
from klype.errors import UsageError
from klype.model.lora import LoraSettings
from klype.runs.run_options import Size
from klype.train.loop import TrainSettings as Training
from klype.train.optimizer import OptimizerSettings, Schedule
from klype.train.policy import AlignSettings, method
from klype.train.reward_model import RewardSettings
from klype.train.rewards import MODEL, absolute

RECIPES = Path(__file__).with_name("recipes")


class TokenizerSection(Settings):
    """[tokenizer] of a recipe. ``size``: the most tokens that the vocabulary may have. ``megabyte``: how many it has
    for a text of a megabyte; for other texts it grows with the root of their length, as the words of a text do (Heaps
    1978), by doubling. 0: as many as there may be, whatever the text.
    """

    size: int = Field(default=2048, ge=262, le=1_000_000)
    megabyte: int = Field(default=0, ge=0, le=1_000_000)

    def tokens(self, characters: int) -> int:
        """How many are asked for, for a text of this length."""
        if not self.megabyte:
            return self.size
        doubled = max(0, round(math.log2(max(1, characters) / 1e6) / 2))
        return min(self.size, self.megabyte << doubled)


class DataSection(Settings):
    """[data] of a recipe: what is read besides the user's own text. ``language``: only texts of ``--data`` in it are
    taken ("": all).

    ``dictionary``: Bokmålsordboka's articles are read, and ``words`` of its words are asked about. ``megabytes``: how
    much of a data set of the Hub is fetched. ``memory_megabytes``: larger texts are trained on from the disk.
    ``unpacked_megabytes``: what a packed file may hold, however small it is (fifty times its own size it always may).
    ``near``: a text whose five-word shingles are that similar to an earlier one's (Jaccard) is left out; 0: none is.
    """

    language: Literal["", "nb", "en"] = ""
    dictionary: Literal["", "bokmalsordboka"] = ""
    words: int = Field(default=6000, ge=50)
    megabytes: float = Field(default=40.0, gt=0, allow_inf_nan=False)
    memory_megabytes: float = Field(default=64.0, gt=0, allow_inf_nan=False)
    unpacked_megabytes: float = Field(default=256.0, gt=0, allow_inf_nan=False)
    near: float = Field(default=0.0, ge=0, lt=1)


class ModelShape(NamedTuple):
    """How large a transformer is."""

    width: int
    layers: int
    heads: int
    hidden: int


# Shapes that are asked for by name, or chosen by the time (see shape).
SHAPES: dict[str, ModelShape] = {
    "tiny": ModelShape(96, 2, 4, 256),
    "mini": ModelShape(128, 3, 4, 352),
    "small": ModelShape(192, 4, 4, 512),
    "medium": ModelShape(256, 5, 4, 704),
    "base": ModelShape(384, 6, 6, 1024),
    "large": ModelShape(512, 8, 8, 1376),
}


class ModelSection(Settings):
    """The transformer. What is 0 in its shape (width, layers, heads, hidden) is chosen by the time that there is.

    ``conv``: taps of the short convolution before attention; with it, positions are not rotated. ``conv_std``: of the
    taps at first.
    """

    width: int = Field(default=0, ge=0)
    layers: int = Field(default=0, ge=0)
    heads: int = Field(default=0, ge=0)
    hidden: int = Field(default=0, ge=0)
    window: int = Field(default=256, ge=16)
    conv: int = Field(default=0, ge=0)
    conv_std: float = Field(default=1.0, ge=0)
    tie: bool = False
    embed_std: float = Field(default=0.5, gt=0)

    @property
    def open(self) -> bool:
        """Whether some of its shape is to be chosen."""
        return not all(getattr(self, name) for name in ModelShape._fields)

    def filled(self, shape: ModelShape) -> ModelSection:
        """With this shape where it is open."""
        return self.model_copy(update={k: getattr(self, k) or v for k, v in shape._asdict().items()})


class LoraSection(LoraSettings):
    """``rank`` above 0: adapters are trained in place of the model's weights, by these optimizers in place of the
    stages' own; ``align`` is that of alignment."""

    optimizer: OptimizerSettings = OptimizerSettings(kind="adamw", rate=1e-3, betas=(0.9, 0.99))
    align: OptimizerSettings = OptimizerSettings(kind="adamw", rate=3e-4, betas=(0.9, 0.99))


class TrainingSection(Settings):
    """What all stages of training share: their part of the time, the rows of a batch, and how it is trained."""

    share: float = Field(default=0.0, ge=0, le=1)
    rows: int = Field(default=16, ge=1)
    training: Training = Training(steps=0)

    @property
    def micro_rows(self) -> int:
        """Rows of a micro-batch."""
        return max(1, self.rows // self.training.micro_batches)


class PretrainSection(TrainingSection):
    """``plain``: the part of the steps in which answers have only plain manners; ``easy``: the part over which stories
    grow from two facts to four; ``answer_weight``: see lessons; ``passes``: how often a document is
    met; for the user's own text: at most, lest it be learnt by heart. ``decay_a_pass``: weight decay for each time that
    such a text will be met, up to 1 in all: what is met often is learnt by heart without. ``decay_tokens``: weight
    decay is this many over the text's tokens, up to a half, however often they are met: what it forgets over, its time
    scale, is then about the same share of every text (Wang and Aitchison 2024, arXiv:2405.13698)."""

    plain: float = Field(default=0.6, ge=0, le=1)
    easy: float = Field(default=0.3, ge=0, le=1)
    answer_weight: float = Field(default=5.0, gt=0)
    passes: int = Field(default=1, ge=1)
    decay_a_pass: float = Field(default=0.0, ge=0)
    decay_tokens: float = Field(default=0.0, ge=0)


class RehearsalSection(TrainingSection):
    """``rehearsal_rows`` rows of pre-training text per step, so that nothing is forgotten."""

    rehearsal_rows: int = Field(default=0, ge=0)


class FinetuneSection(RehearsalSection):
    """``rehearsal_weight``: of a rehearsed token relative to a learnt one; ``passes``: how often an example is met at
    most (0: any number), lest it be learnt by heart; the time that is left over is pre-training's."""

    passes: int = Field(default=0, ge=0)
    rehearsal_weight: float = Field(default=0.5, ge=0)


class RankSection(Settings):
    """How many questions are ranked, and where each question's candidates come from.

    ``drawn`` at temperature 1, ``hot`` at ``hot_temperature``, ``wrong`` made by the world; ``noise`` is the chance
    that the annotator swaps two neighbours.
    """

    share: float = Field(default=0.04, ge=0, le=1)
    questions: int = Field(default=900, ge=1)
    held_out: int = Field(default=200, ge=1)
    drawn: int = Field(default=3, ge=1)
    hot: int = Field(default=3, ge=0)
    hot_temperature: float = Field(default=1.25, gt=0)
    wrong: int = Field(default=2, ge=0)
    noise: float = Field(default=0.1, ge=0, lt=0.5)
    limit: int = Field(default=40, ge=1)


class RewardSection(Settings):
    """``gate``: held-out pair accuracy that is aimed at; what is below it beyond its interval starts no alignment."""

    share: float = Field(default=0.02, ge=0, le=1)
    gate: float = Field(default=0.75, ge=0.5, le=1)
    fit: RewardSettings = RewardSettings()


class AlignSection(RehearsalSection):
    """``rows`` questions per step, ``answers`` to each, of at most ``limit`` tokens. ``how``: method and options.

    ``stops``: alignment ends when the reward and the annotator's own score part, where the latter is known.
    ``rewards``: {name: weight} of what is learnt from in place of the reward model: ``model`` (that one),
    ``file.py:function``, or the name of a function that was given to ``klype.train``. None: the reward model, or the
    rankings as they are where the method learns from rankings.
    """

    answers: int = Field(default=8, ge=2)
    limit: int = Field(default=40, ge=1)
    stops: bool = True
    rewards: dict[str, FiniteFloat] = Field(default={})
    how: AlignSettings = AlignSettings()

    @property
    def weights(self) -> dict[str, float]:
        """The rewards that answers are given; none where rankings are learnt from as they are."""
        ranks = method(self.how.method).learns_from == "rankings"
        return self.rewards or ({} if ranks else {MODEL: 1.0})

    @property
    def replaces_model(self) -> bool:
        """Whether the answers are rewarded without the reward model."""
        return bool(self.rewards) and MODEL not in self.rewards

    @property
    def needs(self) -> frozenset[str]:
        """The earlier stages that alignment cannot do without, besides fine-tuning."""
        if MODEL in self.weights:
            return frozenset(["rank", "reward"])
        return frozenset(["rank"] if method(self.how.method).learns_from == "rankings" else [])


class ExamineSection(Settings):
    """How much is measured: ``questions`` with one answer each, ``documents`` of held-out text."""

    questions: int = Field(default=400, ge=1)
    documents: int = Field(default=80, ge=1)
    temperatures: tuple[float, ...] = (0.0, 0.4, 0.7, 1.0, 1.25, 1.5)
    temperature: float = Field(default=0.7, ge=0)
    share: float = Field(default=0.1, ge=0, le=1)


class Recipe(Settings):
    """A run's whole recipe. ``kind`` says what it is about: the demo world, or the user's own text."""

    kind: Literal["world", "text"] = "text"
    world: Literal["full", "small"] = "full"
    data: DataSection = DataSection()
    tokenizer: TokenizerSection = TokenizerSection()
    model: ModelSection = ModelSection()
    lora: LoraSection = LoraSection()
    pretrain: PretrainSection = PretrainSection(
        share=0.6, training=Training(steps=0, optimizer=OptimizerSettings(rate=6e-3), schedule=Schedule(floor=0.03))
    )
    finetune: FinetuneSection = FinetuneSection(share=0.14)
    rank: RankSection = RankSection()
    reward: RewardSection = RewardSection()
    align: AlignSection = AlignSection(share=0.14)
    examine: ExamineSection = ExamineSection()

    def from_anywhere(self) -> Recipe:
        """With the files of its rewards named absolutely."""
        rewards = {absolute(name): weight for name, weight in self.align.rewards.items()}
        return self.model_copy(update={"align": self.align.model_copy(update={"rewards": rewards})})

    def training(self, stage: Literal["pretrain", "finetune", "align"]) -> Training:
        """How a stage trains what it trains: weights, or adapters."""
        own: Training = getattr(self, stage).training
        if not self.lora.rank:
            return own
        rates = self.lora.align if stage == "align" else self.lora.optimizer
        return own.model_copy(update={"optimizer": rates})

    def pretraining(self, steps: int, tokens: int | None) -> Training:
        """The settings of ``steps`` steps of pre-training on a text of ``tokens`` tokens (None: without end)."""
        own = self.training("pretrain")
        lesson = self.pretrain
        if not tokens or not (lesson.decay_a_pass or lesson.decay_tokens) or self.lora.rank:
            return own
        passes = steps * lesson.rows * self.model.window / tokens
        decay = min(1.0, lesson.decay_a_pass * passes + min(0.5, lesson.decay_tokens / tokens))
        return own.model_copy(update={"optimizer": own.optimizer.model_copy(update={"decay": decay})})


def saved(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run, of an earlier klype too: whether alignment started was once a threshold of its own, and
    the reward model's scores had a margin and a centre."""
    reward = settings.get("reward")
    if not isinstance(reward, dict):
        return settings
    reward = {k: v for k, v in reward.items() if k != "threshold"}
    if isinstance(fit := reward.get("fit"), dict):
        reward["fit"] = {k: v for k, v in fit.items() if k not in ("margin", "centre")}
    return {**settings, "reward": reward}


def names() -> list[str]:
    """The recipes that come with klype."""
    return sorted(file.stem for file in RECIPES.glob("*.toml"))


def read(name: str, overrides: tuple[str, ...] = (), size: Size | None = None) -> Recipe:
    """A recipe by its name or TOML file, of this size, with dotted overrides. UsageError for an unknown name or
    setting.
    """
    sized = [f"model.{k}={v}" for k, v in SHAPES[size]._asdict().items()] if size else []
    own = name.endswith(".toml")
    if not own and name not in names():
        near = nearest(name, names())
        hint = f"Did you mean {near}?" if near else f"Recipes are: {', '.join(names())}, or a TOML file."
        raise UsageError(f"There is no recipe {name}.", hint)
    return load(Recipe, Path(name) if own else RECIPES / f"{name}.toml", (*sized, *overrides))
