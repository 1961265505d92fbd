"""Muon's update: momentum made orthogonal by a Newton-Schulz iteration, many matrices of one shape at once.

Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from klype.train.workers import Workers

COEFFICIENTS = (
    # One quintic per step, tuned so that five steps bring singular values in (0.003, 1] near 1 (You Jiacheng, 2025).
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


def orthogonalised(x_NRC: torch.Tensor) -> torch.Tensor:
    """The nearest (semi-)orthogonal matrices to ``x``, roughly: its singular vectors with singular values near 1.

    Needs rows <= columns, which keeps the product in the iteration small.
    """
    x: torch.Tensor = x_NRC / (torch.linalg.matrix_norm(x_NRC, keepdim=True) + 1e-7)
    for a, b, c in COEFFICIENTS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


@dataclass(frozen=True, slots=True)
class Group:
    """Matrices that are of one shape once the tall ones lie down: views of one buffer, and what each is scaled with."""

    lying: tuple[torch.Tensor, ...]
    scales: torch.Tensor  # [N, 1, 1]


ENOUGH = 8e8
"""Operations of a group: so many take longer than the calls that ask for them, and one matrix at a time is slow."""


def grouped(matrices: Sequence[torch.Tensor]) -> list[Group]:
    """Groups of equal shape, for one batched iteration each, dearest first. ``matrices`` are views into a buffer."""
    shapes: dict[tuple[int, int], list[torch.Tensor]] = {}
    for matrix in matrices:
        rows, columns = matrix.shape
        shapes.setdefault((min(rows, columns), max(rows, columns)), []).append(matrix)
    groups = []
    for (rows, columns), alike in sorted(shapes.items(), key=lambda each: -operations(*each[0])):
        most = math.ceil(ENOUGH / operations(rows, columns))
        groups += [alike[at : at + most] for at in range(0, len(alike), most)]
    return [Group(tuple(m.T if m.shape[0] > m.shape[1] else m for m in ms), _scales(ms)) for ms in groups]


def operations(rows: int, columns: int) -> float:
    """Additions and multiplications for one matrix, rows <= columns."""
    return len(COEFFICIENTS) * 2.0 * rows * rows * (2 * columns + rows)


def orthogonalise_(groups: Sequence[Group], dtype: torch.dtype = torch.float32, workers: Workers | None = None) -> None:
    """Replaces every matrix of the groups by its orthogonalised, scaled self, in place; computed in ``dtype``."""

    def one(group: Group) -> None:
        update_NRC = orthogonalised(torch.stack(group.lying).to(dtype)) * group.scales
        torch._foreach_copy_(group.lying, update_NRC.unbind())

    (workers or Workers()).each(one, groups)


def _scales(matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    scales = [max(1.0, m.shape[0] / m.shape[1]) ** 0.5 for m in matrices]
    return torch.tensor(scales, dtype=matrices[0].dtype, device=matrices[0].device)[:, None, None]
