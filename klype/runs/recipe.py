"""Recipes: all settings of a run as one validated value. klype's own are TOML files in ``recipes/``."""

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
    """[tokenizer] of a recipe. ``size``: maximum vocabulary size. ``megabyte``: vocabulary size for a text of one
    megabyte; it grows with the square root of the text's length, as the number of words does (Heaps 1978), by doubling.
    0: ``size``, whatever the text.
    """

    size: int = Field(default=2048, ge=262, le=1_000_000)
    megabyte: int = Field(default=0, ge=0, le=1_000_000)

    def tokens(self, characters: int) -> int:
        """The vocabulary size for a text of this many characters."""
        if not self.megabyte:
            return self.size
        doubled = max(0, round(math.log2(max(1, characters) / 1e6) / 2))
        return min(self.size, self.megabyte << doubled)


class DataSection(Settings):
    """[data] of a recipe: what is read, and how. ``language``: only texts of ``--data`` in this language are used ("":
    all).

    ``dictionary``: read Bokmålsordboka's articles, and ask about ``words`` of its words. ``megabytes``: how much of a
    Hub data set is downloaded. ``memory_megabytes``: larger texts are trained on from disk. ``unpacked_megabytes``:
    limit for a compressed file's contents (fifty times its own size is always allowed). ``near``: a text is left out
    when the Jaccard similarity of its five-word shingles to an earlier text's is at least this; 0: none is.
    """

    language: Literal["", "nb", "en"] = ""
    dictionary: Literal["", "bokmalsordboka"] = ""
    words: int = Field(default=6000, ge=50)
    megabytes: float = Field(default=40.0, gt=0, allow_inf_nan=False)
    memory_megabytes: float = Field(default=64.0, gt=0, allow_inf_nan=False)
    unpacked_megabytes: float = Field(default=256.0, gt=0, allow_inf_nan=False)
    near: float = Field(default=0.0, ge=0, lt=1)


class ModelShape(NamedTuple):
    """The shape of a transformer."""

    width: int
    layers: int
    heads: int
    hidden: int


# shapes to name with --size, or to be chosen by the time (machine_probe.choose_shape)
SHAPES: dict[str, ModelShape] = {
    "tiny": ModelShape(96, 2, 4, 256),
    "mini": ModelShape(128, 3, 4, 352),
    "small": ModelShape(192, 4, 4, 512),
    "medium": ModelShape(256, 5, 4, 704),
    "base": ModelShape(384, 6, 6, 1024),
    "large": ModelShape(512, 8, 8, 1376),
}


class ModelSection(Settings):
    """[model] of a recipe: the transformer. Zeros in its shape (width, layers, heads, hidden) are chosen by the time
    available.

    ``conv``: taps of the short convolution before attention, which replaces rotary positions. ``conv_std``: initial
    standard deviation of the taps.
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
        """Whether part of its shape is still to be chosen."""
        return not all(getattr(self, name) for name in ModelShape._fields)

    def with_shape(self, shape: ModelShape) -> "ModelSection":
        """A copy with this shape's values in place of zeros."""
        return self.model_copy(update={k: getattr(self, k) or v for k, v in shape._asdict().items()})


class LoraSection(LoraSettings):
    """[lora] of a recipe. ``rank`` above 0: train adapters in place of the model's weights, with these optimizers in
    place of the stages'; ``align``: the one for alignment."""

    optimizer: OptimizerSettings = OptimizerSettings(kind="adamw", rate=1e-3, betas=(0.9, 0.99))
    align: OptimizerSettings = OptimizerSettings(kind="adamw", rate=3e-4, betas=(0.9, 0.99))


class TrainingSection(Settings):
    """What the training stages have in common. ``share``: part of the run's time; ``rows``: per step."""

    share: float = Field(default=0.0, ge=0, le=1)
    rows: int = Field(default=16, ge=1)
    training: Training = Training(steps=0)

    @property
    def micro_rows(self) -> int:
        """Rows per micro-batch."""
        return max(1, self.rows // self.training.micro_batches)


class PretrainSection(TrainingSection):
    """[pretrain] of a recipe. For the demo world: ``plain``, the part of the steps with plain answers only; ``easy``,
    the part over which stories grow from two facts to four; ``answer_weight``, loss weight of words inside answers.

    ``passes``: how often a document is trained on; for the user's own text at most, against overfitting.
    ``decay_a_pass``: weight decay per pass through such a text, up to 1 in all; without it, a text seen often is
    memorised. ``decay_tokens``: weight decay is this over the text's tokens, up to a half, whatever the passes: its
    time scale is then about the same share of every text (Wang and Aitchison 2024, arXiv:2405.13698)."""

    plain: float = Field(default=0.6, ge=0, le=1)
    easy: float = Field(default=0.3, ge=0, le=1)
    answer_weight: float = Field(default=5.0, gt=0)
    passes: int = Field(default=1, ge=1)
    decay_a_pass: float = Field(default=0.0, ge=0)
    decay_tokens: float = Field(default=0.0, ge=0)


class RehearsalSection(TrainingSection):
    """A stage that rehearses ``rehearsal_rows`` rows of pre-training text per step, against forgetting."""

    rehearsal_rows: int = Field(default=0, ge=0)


class FinetuneSection(RehearsalSection):
    """[finetune] of a recipe. ``rehearsal_weight``: loss weight of a rehearsed token; ``passes``: how often an example
    is trained on at most (0: no limit), against overfitting; pre-training gets the time left over."""

    passes: int = Field(default=0, ge=0)
    rehearsal_weight: float = Field(default=0.5, ge=0)


class RankSection(Settings):
    """[rank] of a recipe: how many questions are ranked, and where each question's candidates come from.

    ``drawn`` answers at temperature 1, ``hot`` at ``hot_temperature``, ``wrong`` ones made by the task; ``noise``: the
    probability that the simulated annotator swaps two neighbours; ``limit``: tokens per answer.
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
    """[reward] of a recipe. ``gate``: the held-out pair accuracy to reach; alignment does not start when the accuracy's
    interval is below it."""

    share: float = Field(default=0.02, ge=0, le=1)
    gate: float = Field(default=0.75, ge=0.5, le=1)
    fit: RewardSettings = RewardSettings()


class AlignSection(RehearsalSection):
    """[align] of a recipe: ``rows`` questions per step, ``answers`` to each, of at most ``limit`` tokens. ``how``:
    method and options.

    ``stops``: end early when the annotator's score falls while the reward does not, where that score is known.
    ``rewards``: {name: weight}; a name is ``model`` (the reward model), ``file.py:function``, or a function given to
    ``klype.train``. Empty: the reward model, or for methods that learn from rankings the rankings as they are.
    """

    answers: int = Field(default=8, ge=2)
    limit: int = Field(default=40, ge=1)
    stops: bool = True
    rewards: dict[str, FiniteFloat] = Field(default={})
    how: AlignSettings = AlignSettings()

    @property
    def weights(self) -> dict[str, float]:
        """The rewards by name with their weights; none where rankings are learned from as they are."""
        ranks = method(self.how.method).learns_from == "rankings"
        return self.rewards or ({} if ranks else {MODEL: 1.0})

    @property
    def replaces_model(self) -> bool:
        """Whether answers are rewarded by functions alone, without the reward model."""
        return bool(self.rewards) and MODEL not in self.rewards

    @property
    def needs(self) -> frozenset[str]:
        """The stages that alignment requires besides fine-tuning."""
        if MODEL in self.weights:
            return frozenset(["rank", "reward"])
        return frozenset(["rank"] if method(self.how.method).learns_from == "rankings" else [])


class ExamineSection(Settings):
    """[examine] of a recipe: ``questions`` with one answer each at ``temperature``, ``documents`` of held-out text, and
    ``temperatures`` to compare."""

    questions: int = Field(default=400, ge=1)
    documents: int = Field(default=80, ge=1)
    temperatures: tuple[float, ...] = (0.0, 0.4, 0.7, 1.0, 1.25, 1.5)
    temperature: float = Field(default=0.7, ge=0)
    share: float = Field(default=0.1, ge=0, le=1)


class Recipe(Settings):
    """A recipe. ``kind``: "world" for the demo world, "text" for the user's own text; ``world``: the world's size."""

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

    def from_anywhere(self) -> "Recipe":
        """A copy in which the files of rewards have absolute paths."""
        rewards = {absolute(name): weight for name, weight in self.align.rewards.items()}
        return self.model_copy(update={"align": self.align.model_copy(update={"rewards": rewards})})

    def training(self, stage: Literal["pretrain", "finetune", "align"]) -> Training:
        """A stage's training settings, with the adapters' optimizer where adapters are trained."""
        own: Training = getattr(self, stage).training
        if not self.lora.rank:
            return own
        rates = self.lora.align if stage == "align" else self.lora.optimizer
        return own.model_copy(update={"optimizer": rates})

    def pretraining(self, steps: int, tokens: int | None) -> Training:
        """The settings for ``steps`` steps of pre-training on a text of ``tokens`` tokens (None: endless), whose weight
        decay depends on both."""
        own = self.training("pretrain")
        lesson = self.pretrain
        if not tokens or not (lesson.decay_a_pass or lesson.decay_tokens) or self.lora.rank:
            return own
        passes = steps * lesson.rows * self.model.window / tokens
        decay = min(1.0, lesson.decay_a_pass * passes + min(0.5, lesson.decay_tokens / tokens))
        return own.model_copy(update={"optimizer": own.optimizer.model_copy(update={"decay": decay})})


def current_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings in a run.json without those that earlier versions of klype had: ``reward.threshold``, and the reward
    model's ``margin``, ``centre``, ``ties`` and ``tie_weight``."""
    reward = settings.get("reward")
    if not isinstance(reward, dict):
        return settings
    reward = {k: v for k, v in reward.items() if k != "threshold"}
    if isinstance(fit := reward.get("fit"), dict):
        reward["fit"] = {k: v for k, v in fit.items() if k not in ("margin", "centre", "ties", "tie_weight")}
    return {**settings, "reward": reward}


def names() -> list[str]:
    """The names of klype's own recipes."""
    return sorted(file.stem for file in RECIPES.glob("*.toml"))


def read(name: str, overrides: tuple[str, ...] = (), size: Size | None = None) -> Recipe:
    """Reads a recipe by name or from a TOML file, with the shape of this size and dotted overrides. UsageError for an
    unknown name or setting.
    """
    sized = [f"model.{k}={v}" for k, v in SHAPES[size]._asdict().items()] if size else []
    own = name.endswith(".toml")
    if not own and name not in names():
        near = nearest(name, names())
        hint = f"Did you mean {near}?" if near else f"Recipes are: {', '.join(names())}, or a TOML file."
        raise UsageError(f"There is no recipe {name}.", hint)
    return load(Recipe, Path(name) if own else RECIPES / f"{name}.toml", (*sized, *overrides))
