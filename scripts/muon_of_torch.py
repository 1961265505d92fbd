"""How far torch.optim.Muon's update is from klype's, for one matrix and one gradient.

Momentum, Nesterov's look ahead and scale are the same; torch's iteration is in bfloat16, one quintic for all of its
steps, klype's in float32 (or bfloat16, ``coarse``), one quintic a step.
"""

from __future__ import annotations

import torch

from klype.train.optimizer import nearest_orthogonal


def of_klype(gradient: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The first update, for a learning rate of 1."""
    ahead = gradient.lerp(gradient * 0.05, 0.95)  # momentum .95, from nothing
    lying = ahead.T if len(ahead) > ahead.shape[1] else ahead
    found = nearest_orthogonal(lying.to(dtype)[None])[0].float()
    whole: torch.Tensor = found.T if len(ahead) > ahead.shape[1] else found
    return whole * max(1.0, gradient.shape[0] / gradient.shape[1]) ** 0.5


def of_torch(gradient: torch.Tensor) -> torch.Tensor:
    """The same, by torch.optim.Muon."""
    parameter = torch.nn.Parameter(torch.zeros_like(gradient))
    parameter.grad = gradient.clone()
    torch.optim.Muon([parameter], lr=1.0, weight_decay=0.0, momentum=0.95, adjust_lr_fn="original").step()
    return -parameter.detach()


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for rows, columns in ((192, 192), (192, 512), (512, 192)):
        gradient = torch.randn(rows, columns) @ torch.diag(torch.logspace(0, -3, columns))
        fine = of_klype(gradient, torch.float32)
        apart = [
            float((u - fine).norm() / fine.norm()) for u in (of_torch(gradient), of_klype(gradient, torch.bfloat16))
        ]
        print(f"{rows} x {columns}: torch.optim.Muon {apart[0]:.3f}, klype's in bfloat16 {apart[1]:.4f}")


if __name__ == "__main__":
    main()
