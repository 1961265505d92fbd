"""Samplers: every transformation of the next-token distribution, each declared once, as a field of ``Sampling``.

The options of the command line and the API, the fields of requests to klype's server and to others, and the studio's
sliders are made from these declarations (``SAMPLERS``). torch is not imported, so that the command line can read them
quickly. Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from torch import Tensor

TEMPERATURE = 0.7  # the default of commands and methods
# top-p looks for the nucleus among so many tokens of a large vocabulary before it sorts all of them
NUCLEUS = 512
OWN = {"klype": "", "vllm": ""}
EVERYWHERE = {kind: "" for kind in ("klype", "vllm", "llama.cpp", "lmstudio", "ollama", "openai", "other")}


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """How often each token was used, for penalties.

    ``text``: in prompt and answer together, [B, V]. ``counts``: in the answer alone, [B, V].
    """

    text: Tensor
    counts: Tensor


@dataclass(frozen=True, slots=True)
class Sampler:
    """How a field of ``Sampling`` is explained, bounded, applied, and named by servers.

    ``off``: the value without effect. ``least`` to ``most``: the valid range (``above``: without ``least`` itself);
    ``served``: the range for klype's server, if it differs. ``slider``: minimum, maximum and step in the studio.
    ``title``: by language (``help`` is translated by ``klype.words.sentences``). ``shape(logp_BV, value)`` is applied
    after the temperature, in the order of the fields; ``adjust(logits_BV, value, seen)`` before it. ``servers``: the
    field's name in requests to each kind of server that has it ("": the same name); it is not sent to others.
    """

    off: float
    title: Mapping[str, str]
    help: str
    slider: tuple[float, float, float]
    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    served: tuple[float, float] | None = None
    shape: Callable[[Tensor, Any], Tensor] | None = None
    adjust: Callable[[Tensor, Any, TokenCounts], Tensor] | None = None
    servers: Mapping[str, str] = field(default_factory=lambda: OWN)

    @property
    def whole(self) -> bool:
        """Whether its values are integers."""
        return isinstance(self.off, int)

    def supports(self, value: Any) -> bool:
        """Whether the value is valid."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        low = self.least < value if self.above else self.least <= value
        return low and value <= self.most and -math.inf < value < math.inf

    @property
    def range(self) -> str:
        """The valid range in words."""
        if math.isfinite(self.most):
            low, high = f"{self.least:g}", f"{self.most:g}"
            return f"above {low} and at most {high}" if self.above else f"between {low} and {high}"
        number = "a whole number" if self.whole else "a number"
        if not math.isfinite(self.least):
            return number
        return f"{number} above {self.least:g}" if self.above else f"{number} from {self.least:g} up"


def top_k(logp_BV: Tensor, k: int) -> Tensor:
    """Keep the k most probable (Fan et al. 2018, arXiv:1805.04833); tokens equal to the k-th stay too."""
    if k >= logp_BV.shape[-1]:
        return logp_BV
    return logp_BV.masked_fill(logp_BV < logp_BV.topk(k).values[:, -1:], -math.inf).log_softmax(-1)


def top_p(logp_BV: Tensor, p: float) -> Tensor:
    """Keep the smallest set of most probable tokens with mass at least p (nucleus; Holtzman et al. 2020,
    arXiv:1904.09751)."""
    if logp_BV.shape[-1] > 4 * NUCLEUS:
        values_BK, ids_BK = logp_BV.topk(NUCLEUS)
        before_BK = values_BK.exp().cumsum(-1) - values_BK.exp()
        if bool((before_BK[:, -1] >= p).all()):  # every row's nucleus is among them
            kept_BK = values_BK.masked_fill(before_BK >= p, -math.inf)
            return logp_BV.new_full(logp_BV.shape, -math.inf).scatter_(-1, ids_BK, kept_BK.log_softmax(-1))
    return _keep_first(logp_BV, -logp_BV, p)


def min_p(logp_BV: Tensor, p: float) -> Tensor:
    """Keep tokens at least p times as probable as the most probable (Nguyen et al. 2024, arXiv:2407.01082)."""
    unlikely_BV = logp_BV < logp_BV.amax(-1, keepdim=True) + math.log(p)
    return logp_BV.masked_fill(unlikely_BV, -math.inf).log_softmax(-1)


def typical(logp_BV: Tensor, p: float) -> Tensor:
    """Keep the tokens whose surprise is nearest to the entropy, until mass p (locally typical; Meister et al. 2023,
    arXiv:2202.00666)."""
    entropy_B1 = -(logp_BV.exp() * logp_BV.clamp_min(-1e30)).sum(-1, keepdim=True)
    return _keep_first(logp_BV, (-logp_BV - entropy_B1).abs(), p)


def repetition(logits_BV: Tensor, r: float, seen: TokenCounts) -> Tensor:
    """Divide positive and multiply negative logits of tokens already in the prompt or answer (CTRL, Keskar et al. 2019,
    arXiv:1909.05858)."""
    punished_BV = (logits_BV / r).where(logits_BV > 0, logits_BV * r)
    return punished_BV.where(seen.text > 0, logits_BV)


def presence(logits_BV: Tensor, penalty: float, seen: TokenCounts) -> Tensor:
    """Subtract from the logits of the answer's tokens, once (OpenAI's API)."""
    return logits_BV - penalty * (seen.counts > 0).to(logits_BV.dtype)


def frequency(logits_BV: Tensor, penalty: float, seen: TokenCounts) -> Tensor:
    """Subtract from the logits of the answer's tokens, per use (OpenAI's API)."""
    return logits_BV - penalty * seen.counts


def _keep_first(logp_BV: Tensor, order_BV: Tensor, p: float) -> Tensor:
    """Keep tokens in rising order of ``order_BV`` until their mass reaches p (at least one)."""
    order = order_BV.sort(stable=True, dim=-1)[1]
    sorted_p = logp_BV.gather(-1, order).exp()
    drop = sorted_p.cumsum(-1) - sorted_p >= p
    drop[:, 0] = False
    return logp_BV.masked_fill(drop.new_zeros(drop.shape).scatter(-1, order, drop), -math.inf).log_softmax(-1)


def sampler(off: float, **about: Any) -> Any:
    """A field of ``Sampling`` with its declaration."""
    return field(default=off, metadata={"sampler": Sampler(off, **about)})


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn from the logits. Temperature 0 is greedy: a one-hot distribution.

    A new sampler is a function above, a field here, and its line in ``SamplingOptions``. ``logit_bias``: pairs of a
    token id and what is added to its logit, before everything else.
    """

    temperature: float = sampler(
        1.0, least=0.0, served=(0.0, 2.0), slider=(0.0, 2.0, 0.05), servers=EVERYWHERE,
        title={"en": "Temperature", "nb": "Temperatur"}, help="0: always the most probable token.",
    )  # fmt: skip
    top_k: int = sampler(
        0, least=0, served=(-1, 2**31 - 1), slider=(0, 100, 1), shape=top_k,
        servers={**OWN, "llama.cpp": "", "lmstudio": ""}, title={"en": "top-k", "nb": "top-k"},
        help="Draw only from this many of the most probable tokens (0: all).",
    )  # fmt: skip
    top_p: float = sampler(
        1.0, least=0.0, most=1.0, above=True, served=(0.0, 1.0), slider=(0.05, 1.0, 0.05), shape=top_p,
        servers=EVERYWHERE, title={"en": "top-p", "nb": "top-p"},
        help="Draw only from the most probable tokens of this mass.",
    )  # fmt: skip
    min_p: float = sampler(
        0.0, least=0.0, most=1.0, slider=(0.0, 0.5, 0.01), shape=min_p, servers={**OWN, "llama.cpp": ""},
        title={"en": "min-p", "nb": "min-p"},
        help="Draw only tokens at least this probable, relative to the most probable one.",
    )  # fmt: skip
    typical_p: float = sampler(
        1.0, least=0.0, most=1.0, above=True, slider=(0.05, 1.0, 0.05), shape=typical,
        servers={"klype": "", "llama.cpp": ""}, title={"en": "typical-p", "nb": "typical-p"},
        help="Draw only from the tokens of this mass whose surprise is nearest to the entropy.",
    )  # fmt: skip
    repetition_penalty: float = sampler(
        1.0, least=0.0, above=True, served=(0.1, 10.0), slider=(1.0, 2.0, 0.05), adjust=repetition,
        servers={**OWN, "llama.cpp": "repeat_penalty", "lmstudio": "repeat_penalty"},
        title={"en": "Repetition penalty", "nb": "Straff for gjentakelse"},
        help="Make tokens of prompt and answer less probable: their logits are divided by this (1: off).",
    )  # fmt: skip
    presence_penalty: float = sampler(
        0.0, served=(-2.0, 2.0), slider=(-2.0, 2.0, 0.1), adjust=presence, servers=EVERYWHERE,
        title={"en": "Presence penalty", "nb": "Straff for tokener som er brukt"},
        help="Subtract this from the logit of every token that the answer has used.",
    )  # fmt: skip
    frequency_penalty: float = sampler(
        0.0, served=(-2.0, 2.0), slider=(-2.0, 2.0, 0.1), adjust=frequency, servers=EVERYWHERE,
        title={"en": "Frequency penalty", "nb": "Straff for hver bruk"},
        help="Subtract this from a token's logit for each time that the answer has used it.",
    )  # fmt: skip
    logit_bias: tuple[tuple[int, float], ...] = ()


PLAIN = Sampling()


class SamplingOptions(TypedDict, total=False):
    """The fields of ``klype.Sampling`` besides the temperature, as arguments (a test checks that they agree)."""

    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: tuple[tuple[int, float], ...]


# by field name, in the order in which they are applied
SAMPLERS: Mapping[str, Sampler] = {f.name: f.metadata["sampler"] for f in fields(Sampling) if "sampler" in f.metadata}


def active(sampling: Sampling) -> dict[str, Any]:
    """The samplers that have an effect, with their values."""
    values = {name: getattr(sampling, name) for name in SAMPLERS}
    return {name: value for name, value in values.items() if value != SAMPLERS[name].off}


def needs_counts(sampling: Sampling) -> bool:
    """Whether the distribution depends on how often tokens were used in the prompt and the answer."""
    return any(SAMPLERS[name].adjust is not None for name in active(sampling))


def without_penalties(sampling: Sampling) -> Sampling:
    """The same sampling without penalties for tokens in the prompt or the answer."""
    off: dict[str, Any] = {name: row.off for name, row in SAMPLERS.items() if row.adjust is not None}
    return replace(sampling, **off)
