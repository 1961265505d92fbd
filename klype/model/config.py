"""The model's configuration, strictly validated."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from klype.errors import KlypeError

# largest table of positions (window × head_dim): a million tokens with heads of width 128
TABLE = 2**27


class RopeScaling(BaseModel):
    """How rotary frequencies are scaled for long windows.

    "linear" divides every frequency by ``factor`` (Chen et al. 2023, arXiv:2306.15595); "llama3" divides only the
    low ones and blends in between (Llama 3.1's reference code; the field names are Hugging Face's).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    kind: Literal["linear", "llama3"]
    factor: float = Field(ge=1e-3, le=1e6)
    low_freq_factor: float = Field(default=1.0, ge=1e-3, le=1e6)
    high_freq_factor: float = Field(default=4.0, ge=1e-3, le=1e6)
    original_window: int = Field(default=8192, gt=0)

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise ValueError("high_freq_factor must be greater than low_freq_factor")
        return self


class ModelConfig(BaseModel):
    """The shape of a Llama-like decoder. 0 in ``kv_heads`` means ``heads``, 0 in ``head_dim`` ``width / heads``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    vocab_size: int = Field(gt=0)
    width: int = Field(default=64, gt=0)
    layers: int = Field(default=2, gt=0)
    heads: int = Field(default=4, gt=0)
    kv_heads: int = Field(default=0, ge=0)
    head_dim: int = Field(default=0, ge=0)
    hidden: int = Field(default=128, gt=0)
    window: int = Field(default=512, gt=1)
    rope_theta: float = Field(default=10_000.0, ge=0, le=1e30)
    rope_scaling: RopeScaling | None = None
    conv: int = Field(default=0, ge=0, le=64)
    tie: bool = False
    norm_eps: float = Field(default=1e-6, ge=1e-30, le=1)
    qkv_bias: bool = False
    qk_norm: bool = False
    embed_std: float = Field(default=0.7, gt=0)
    matrix_gain: float = Field(default=0.6, ge=0)
    conv_std: float = Field(default=1.0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        filled = dict(data)
        heads, width = filled.get("heads", 4), filled.get("width", 64)
        # types are checked after this: pydantic refuses what is not a number
        if not filled.get("kv_heads"):
            filled["kv_heads"] = heads
        if not filled.get("head_dim") and isinstance(heads, int) and isinstance(width, int) and heads > 0:
            if width % heads:
                raise ValueError(f"width {width} is not a multiple of heads {heads}; give head_dim")
            filled["head_dim"] = width // heads
        return filled

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.rope_theta and self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd: rotary positions need an even one")
        if self.rope_scaling is not None and not self.rope_theta:
            raise ValueError("rope_scaling needs a rope_theta above 0")
        if 0 < self.rope_theta < 1:
            raise ValueError(f"rope_theta {self.rope_theta:g} turns faster with every pair: it is 0 or at least 1")
        if self.window * self.head_dim > TABLE:
            raise ValueError(f"a window of {self.window} tokens is more than klype has tables for")
        return self

    @staticmethod
    def parse(data: dict[str, Any], where: str = "the model's configuration") -> "ModelConfig":
        """A configuration from plain data (TOML, JSON); KlypeError, in one sentence, for what is wrong."""
        try:
            return ModelConfig.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            message = first["msg"].removeprefix("Value error, ")
            raise KlypeError(f"Something is wrong in {where}: {f'{field}: ' if field else ''}{message}.") from None

    @property
    def qkv_width(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def parameters(self) -> int:
        """Number of weights, embeddings included (a tied head counts once)."""
        d, norms = self.width, 2 * self.width + (2 * self.head_dim if self.qk_norm else 0)
        attention = d * self.qkv_width + self.heads * self.head_dim * d + (self.qkv_width if self.qkv_bias else 0)
        layer = attention + 3 * d * self.hidden + norms + self.conv * d
        return self.layers * layer + d + self.vocab_size * d * (1 if self.tie else 2)

    @property
    def flops_per_token(self) -> int:
        """Multiply–adds of the matrices, twice, for one token's forward pass (attention over the past left out)."""
        d = self.width
        layer = d * self.qkv_width + self.heads * self.head_dim * d + 3 * d * self.hidden
        return 2 * (self.layers * layer + d * self.vocab_size)

    def flops_at(self, context: int) -> int:
        """FLOP of one token's forward pass that attends to ``context`` tokens (training costs about three times this).

        Beside the matrices four per attended position and head dimension (scores and mixture), two per tap of the
        convolution (Kaplan et al. 2020, table 1, with gated units).
        """
        return self.flops_per_token + self.layers * (
            4 * context * self.heads * self.head_dim + 2 * self.conv * self.width
        )
