"""Muon: momentum whose update is orthogonalised, for weight matrices; Adam for embeddings, norms and biases.

A small model trained from scratch for minutes learns more from the same tokens than with AdamW (measured in
`docs/decisions/0004`). PyTorch's own Muon takes matrices only and computes in bfloat16, which is many times slower than
float32 on processors without units for it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) with the update scaled to AdamW's size, so that one learning rate serves both kinds
    (Liu et al. 2025, arXiv 2502.16982, equation 4).

    Args:
        matrices: weights [rows, columns] of linear layers.
        others: everything else, embeddings and heads included; they get Adam.
        lr: of both.
        momentum: of the matrices, with Nesterov's look-ahead.
        betas: of Adam.
        weight_decay: decoupled, on the matrices alone.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        *,
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.0,
    ) -> None:
        groups: list[dict[str, Any]] = [
            {"params": list(matrices), "orthogonal": True, "weight_decay": weight_decay},
            {"params": list(others), "orthogonal": False, "weight_decay": 0.0},
        ]
        super().__init__([g for g in groups if g["params"]], {"lr": lr, "momentum": momentum, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # ty: ignore[incompatible-method-override]
        """One update from the gradients; parameters without one are left alone."""
        if closure is not None:
            raise NotImplementedError("Muon takes its gradients from backward(); it does not call a closure")
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            if group["orthogonal"]:
                self._orthogonal(trained, group)
            else:
                self._adam(trained, group)

    def _orthogonal(self, matrices: list[nn.Parameter], group: dict[str, Any]) -> None:
        shapes: dict[tuple[int, ...], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
        for matrix in matrices:
            assert matrix.grad is not None
            buffer = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
            buffer.lerp_(matrix.grad, 1 - group["momentum"])
            update = unsharded(matrix.grad.lerp(buffer, group["momentum"]))
            wide = update if update.shape[0] <= update.shape[1] else update.mT
            shapes[tuple(wide.shape)].append((matrix, wide))
        for (rows, columns), pairs in shapes.items():  # alike shapes together: one batched product each
            for (matrix, _), wide in zip(pairs, orthogonalize(torch.stack([w for _, w in pairs])), strict=True):
                update = wide if matrix.shape[0] <= matrix.shape[1] else wide.mT
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(_laid_out_like(matrix, update), alpha=-group["lr"] * 0.2 * math.sqrt(max(rows, columns)))

    def _adam(self, others: list[nn.Parameter], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        for other in others:
            assert other.grad is not None
            state = self.state[other]
            if not state:
                state.update(step=torch.zeros(()), mean=torch.zeros_like(other), square=torch.zeros_like(other))
            state["step"] += 1
            state["mean"].lerp_(other.grad, 1 - beta1)
            state["square"].lerp_(other.grad.square(), 1 - beta2)
            steps = state["step"].item()
            root = (state["square"] / (1 - beta2**steps)).sqrt_().add_(1e-8)
            other.addcdiv_(state["mean"], root, value=-group["lr"] / (1 - beta1**steps))


def unsharded(tensor: Tensor) -> Tensor:
    """A sharded tensor as the plain one it stands for; a plain one as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _laid_out_like(matrix: Tensor, update: Tensor) -> Tensor:
    """This process's share of an update that every process has computed alike."""
    if not isinstance(matrix, DTensor):
        return update
    return distribute_tensor(update, matrix.device_mesh, matrix.placements, src_data_rank=None)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Move the singular values of each matrix [count, rows, columns], rows <= columns, towards 1 by five Newton-Schulz
    iterations with the coefficients of Jordan et al. 2024.

    >>> made = orthogonalize(torch.diag(torch.tensor([3.0, 1.0]))[None])[0]
    >>> bool((made.diag() > 0.6).all() and (made.diag() < 1.3).all())
    True
    """
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x
