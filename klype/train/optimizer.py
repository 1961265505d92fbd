"""One optimizer for all stages: Muon for the matrices inside the model, AdamW for the rest.

Its arithmetic is on flat float32 buffers; the layout (flat_parameters.py) knows where in them the model's parameters
are, and which process has which part. Both learning rates follow one ``Schedule``.
"""

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from klype import config
from klype.errors import KlypeError
from klype.model.config import ModelConfig
from klype.train.flat_parameters import Change, FlatOffsets, Layout, Parts, WholeMatrices, Workers

# matrices by shape that are used as tables of vectors, and so are left to AdamW
TABLES = ("embed", "head", "taps", "norm")


class OptimizerSettings(config.Settings):
    """Learning rates, momentum, decay. ``matrix_rate`` is Muon's (unused when ``kind`` is adamw), ``rate`` AdamW's.

    ``coarse`` runs Muon's iteration in bfloat16, 1.7 to 3.5 times as fast on processors with instructions for it.
    """

    kind: Literal["muon", "adamw"] = "muon"
    matrix_rate: float = Field(default=0.02, gt=0)
    rate: float = Field(default=1e-2, gt=0)
    momentum: float = Field(default=0.95, ge=0, lt=1)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    decay: float = Field(default=0.0, ge=0)
    coarse: bool = False


class Optimizer:
    """Muon and AdamW over a layout's flat buffers. A step is ``zero_grad()`` → ``backward`` of each micro-batch →
    ``collect(gradients)`` → ``clip(limit, count)`` → ``step(factor)``.

    ``parts`` gives the rows of fused matrices by the end of their name, for example
    ``{"qkv.weight": (64, 32, 32), "gate_up.weight": (128, 128)}``: each part is orthogonalised by itself.
    ``master`` and ``gradient`` are the flat float32 buffers; ``added`` is the buffer that the model's ``backward`` adds
    to, a different one when it computes in bfloat16.
    """

    def __init__(self, layout: Layout, settings: OptimizerSettings, parts: Parts | None = None) -> None:
        named = [(n, p) for n, p in layout.model.named_parameters() if p.requires_grad]
        if not named:
            raise KlypeError("Nothing can be trained: every parameter of the model is frozen.")
        matrices = [(n, p) for n, p in named if settings.kind == "muon" and is_matrix(n, p)]
        inside = {n for n, _ in matrices}
        decayed = [(n, p) for n, p in named if n not in inside and p.ndim >= 2]
        others = [(n, p) for n, p in named if n not in inside and p.ndim < 2]
        self.settings, self.layout = settings, layout
        self._named = [*matrices, *decayed, *others]
        self._matrices = len(matrices)
        regions = [[p for _, p in region] for region in (matrices, decayed, others)]
        self._places = FlatOffsets.of([[layout.own_part(p) for p in region] for region in regions])
        first, second, end = self._places.ends
        self._muon_end = first
        parameters = [p for _, p in self._named]
        self.master = torch.zeros(end, dtype=torch.float32, device=self.layout.own_part(parameters[0]).device)
        for parameter, view in zip(parameters, self._places.views(self.master), strict=True):
            view.copy_(self.layout.own_part(parameter))
        self.gradient = torch.zeros_like(self.master)
        self.added = self.layout.bind(parameters, self._places, (self.master, self.gradient))
        self.momentum = torch.zeros_like(self.master[:first])
        self._update = torch.zeros_like(self.momentum)
        views = self._places.views(self._update, slice(0, len(matrices)))
        self._whole = layout.whole_matrices(matrices, views)
        self._groups = matrix_groups(split_rows(self._whole, parts or {}))
        self.moment, self.square = (torch.zeros_like(self.master[first:]) for _ in range(2))
        self._taken = torch.zeros((), dtype=torch.float32, device=self.master.device)
        self._decays = [(slice(first, second), settings.decay), (slice(second, end), 0.0)]
        self._scale: torch.Tensor | None = None

    def zero_grad(self) -> None:
        """Sets the gradient to zero."""
        self._sweep(lambda at: self.gradient[at].zero_())

    def collect(self, added: Sequence[torch.Tensor]) -> None:
        """Moves what ``backward`` left in these buffers into the gradient, in their order. Needed after every
        backward."""
        elsewhere = [gradient for gradient in added if gradient is not self.gradient]

        def move(at: slice) -> None:
            for gradient in elsewhere:
                self.gradient[at].add_(gradient[at])
                gradient[at].zero_()

        if elsewhere:
            self._sweep(move)

    def twin(self) -> tuple[nn.Module, torch.Tensor]:
        """A copy of the model that uses the same weights, and the buffer that its ``backward`` adds to."""
        model = copy.deepcopy(self.layout.model)
        named = dict(model.named_parameters())
        return model, self.layout.twin([named[name] for name, _ in self._named])

    @torch.no_grad()
    def clip(self, limit: float, count: float = 1.0) -> torch.Tensor:
        """Divides the gradient of a sum by ``count`` and clips it to the norm ``limit`` (0: no limit), when ``step``
        uses it. Returns the norm before clipping over all parameters, a scalar tensor.
        """
        norm = self.layout.norm(self.gradient) / count
        self._scale = (limit / (norm + 1e-6)).clamp(max=1.0) / count if limit > 0 else torch.full_like(norm, 1 / count)
        return norm

    @torch.no_grad()
    def step(self, factor: float = 1.0) -> None:
        """One update, with both learning rates times ``factor`` and the gradient scaled as ``clip`` decided."""
        settings, inside, rate = self.settings, slice(0, self._muon_end), self.settings.matrix_rate * factor
        changes: list[Change] = []

        def look(at: slice) -> None:
            gradient, momentum = self._shrink(at), self.momentum[at]
            momentum.lerp_(gradient, 1 - settings.momentum)
            torch.lerp(gradient, momentum, settings.momentum, out=self._update[at])  # Nesterov momentum

        def move(at: slice) -> None:
            if settings.decay:
                self.master[at].mul_(1 - rate * settings.decay)
            self.master[at].add_(self._update[at], alpha=-rate)

        if self._matrices:
            self.layout.workers.sweep(look, inside)
            self._whole.gather()
            orthogonalise_(self._groups, torch.bfloat16 if settings.coarse else torch.float32, self.layout.workers)
            self._whole.scatter()
            changes.append((inside, move))
        self._taken += 1
        changes += [(region, partial(self._adamw, settings.rate * factor, decay)) for region, decay in self._decays]
        self.layout.update(changes)
        self._scale = None

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Master weights, momentum and AdamW's moments by parameter, and the number of steps taken.

        The tensors are views of the optimizer's own: values copied into them are loaded, and reach the model with
        ``layout.publish``. In shards, those of parameters are DTensors.
        """
        inside, outside = slice(0, self._matrices), slice(self._matrices, None)
        buffers = [("master", self.master, slice(None)), ("momentum", self.momentum, inside)]
        buffers += [("moment", self.moment, outside), ("square", self.square, outside)]
        named = {"taken": self._taken.view(1)}
        for name, flat, which in buffers:
            for (parameter, p), own in zip(self._named[which], self._places.views(flat, which), strict=True):
                named[f"{name}.{parameter}"] = self.layout.as_parameter(p, own)
        return named

    def _shrink(self, at: slice) -> torch.Tensor:
        """A stretch of the gradient, scaled in place."""
        gradient = self.gradient[at]
        return gradient if self._scale is None else gradient.mul_(self._scale)

    def _adamw(self, rate: float, decay: float, at: slice) -> None:
        """AdamW as in torch.optim.AdamW(fused=True), importing which takes longer than a tiny model's first hundred
        steps."""
        (beta1, beta2), eps = self.settings.betas, self.settings.eps
        state = slice(at.start - self._muon_end, at.stop - self._muon_end)
        weights, gradients, none = [self.master[at]], [self._shrink(at)], list[torch.Tensor]()
        tensors = weights, gradients, [self.moment[state]], [self.square[state]], none, [self._taken]
        torch._fused_adamw_(
            *tensors, lr=rate, beta1=beta1, beta2=beta2, weight_decay=decay, eps=eps, amsgrad=False, maximize=False
        )

    def _sweep(self, work: Callable[[slice], object]) -> None:
        self.layout.workers.sweep(work, slice(0, len(self.gradient)))


def split_rows(whole: WholeMatrices, parts: Parts) -> list[torch.Tensor]:
    """The matrices as views, fused ones split into the rows that are orthogonalised by themselves."""
    views: list[torch.Tensor] = []
    for name, matrix in zip(whole.names, whole.tensors, strict=True):
        rows = next((tuple(sizes) for end, sizes in parts.items() if name.endswith(end)), (matrix.shape[0],))
        if sum(rows) != matrix.shape[0]:
            raise KlypeError(f"The parts {rows} of {name} do not add up to its {matrix.shape[0]} rows.")
        views += torch.split(matrix, list(rows))
    return views


def fused_parts(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Rows of the parts of klype's fused matrices: queries, keys, values; gate, up. See ``Optimizer``."""
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    return {"qkv.weight": (queries, keys, keys), "gate_up.weight": (config.hidden, config.hidden)}


def is_matrix(name: str, parameter: torch.Tensor) -> bool:
    """Whether Muon updates it: two-dimensional and not a table of vectors (embedding, head, convolution, norm)."""
    return parameter.ndim == 2 and not any(word in name for word in TABLES)


class Schedule(config.Settings):
    """Learning rates over the run: rising until ``warmup``, flat until ``flat`` (both fractions of the run), then
    falling linearly to ``floor`` times the rate at the end."""

    warmup: float = Field(default=0.03, ge=0, le=1)
    flat: float = Field(default=0.4, ge=0, le=1)
    floor: float = Field(default=0.05, ge=0, le=1)


def factor(schedule: Schedule, fraction: float) -> float:
    """Factor on the learning rates at ``fraction`` of the run (0: first step, 1: end); in (0, 1].

    Warm-up starts a thousandth of the run in, so that the first step already changes the weights.
    """
    rising = min(1.0, (fraction + 1e-3) / schedule.warmup) if schedule.warmup > 0 else 1.0
    flat = max(schedule.flat, schedule.warmup)
    if fraction <= flat or flat >= 1:
        return rising
    return schedule.floor + (1 - schedule.floor) * (1 - min(fraction, 1.0)) / (1 - flat)


COEFFICIENTS = (
    # One quintic per step, tuned so that five steps bring singular values in (0.003, 1] near 1 (You Jiacheng, 2025).
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


def nearest_orthogonal(x_NRC: torch.Tensor) -> torch.Tensor:
    """Approximately the nearest semi-orthogonal matrices to ``x`` [N, R, C]: singular values become about 1.

    Needs R <= C, which keeps the product in the iteration small.
    """
    x: torch.Tensor = x_NRC / (torch.linalg.matrix_norm(x_NRC, keepdim=True) + 1e-7)
    for a, b, c in COEFFICIENTS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


# matrices of one shape (tall ones transposed), as views of a buffer, and the scale of each update [N, 1, 1]
MatrixGroup = tuple[list[torch.Tensor], torch.Tensor]
# operations per group: enough to outweigh the cost of the calls; one matrix at a time would be slower
ENOUGH = 8e8


def matrix_groups(matrices: Sequence[torch.Tensor]) -> list[MatrixGroup]:
    """Groups of equal shape for one batched iteration each, most expensive first. ``matrices`` are views."""
    shapes: dict[tuple[int, int], list[torch.Tensor]] = {}
    for matrix in matrices:
        rows, columns = matrix.shape
        shapes.setdefault((min(rows, columns), max(rows, columns)), []).append(matrix)
    groups: list[MatrixGroup] = []
    for (rows, columns), every in sorted(shapes.items(), key=lambda each: -operations(*each[0])):
        most = math.ceil(ENOUGH / operations(rows, columns))
        for alike in (every[at : at + most] for at in range(0, len(every), most)):
            # a tall matrix's update is as much larger as it has more rows than columns (Jordan et al. 2024, Muon)
            scales = [max(1.0, m.shape[0] / m.shape[1]) ** 0.5 for m in alike]
            scales_N11 = torch.tensor(scales, dtype=alike[0].dtype, device=alike[0].device)[:, None, None]
            groups.append(([m.T if m.shape[0] > m.shape[1] else m for m in alike], scales_N11))
    return groups


def operations(rows: int, columns: int) -> float:
    """Floating-point operations to orthogonalise one matrix, rows <= columns."""
    return len(COEFFICIENTS) * 2.0 * rows * rows * (2 * columns + rows)


def orthogonalise_(
    groups: Sequence[MatrixGroup], dtype: torch.dtype = torch.float32, workers: Workers | None = None
) -> None:
    """Replaces every matrix of the groups in place by its ``nearest_orthogonal``, computed in ``dtype``, times its
    scale."""

    def one(group: MatrixGroup) -> None:
        lying, scales_N11 = group
        torch._foreach_copy_(lying, (nearest_orthogonal(torch.stack(lying).to(dtype)) * scales_N11).unbind())

    (workers or Workers()).each(one, groups)
