# Tangled from vocabulary: edit there, `make tangle`. sha256:3815413ef5a6
"""PyTorch's learning-rate schedulers: a factor for each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from companion.optim import Optimizer


class LambdaLR:
    """Each step sets every group's rate to its first times a factor.

    `lr_lambda` maps the number of the step, from 0, to the factor.
    """

    def __init__(self, optimizer: Optimizer,
                 lr_lambda: Callable[[int], float]):
        self.optimizer, self.factor, self.last_epoch = optimizer, lr_lambda, -1
        self.base_lrs = [g["lr"] for g in optimizer.param_groups]
        self.step()

    def step(self) -> None:
        """Call it after the optimizer's step, or at an epoch's end."""
        self.last_epoch += 1
        factor = self.factor(self.last_epoch)
        for group, rate in zip(self.optimizer.param_groups, self.base_lrs):
            group["lr"] = rate * factor

    def get_last_lr(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        return {"last_epoch": self.last_epoch, "base_lrs": self.base_lrs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.base_lrs = list(state["base_lrs"])
        self.last_epoch = state["last_epoch"] - 1
        self.step()


def StepLR(optimizer: Optimizer, step_size: int,
           gamma: float = 0.1) -> LambdaLR:
    """gamma times the rate after every `step_size` steps."""
    return LambdaLR(optimizer, lambda i: gamma ** (i // step_size))


def MultiStepLR(optimizer: Optimizer, milestones: Sequence[int],
                gamma: float = 0.1) -> LambdaLR:
    """gamma times the rate at each milestone."""
    return LambdaLR(optimizer, lambda i: gamma ** sum(
        m <= i for m in milestones))


def ExponentialLR(optimizer: Optimizer, gamma: float) -> LambdaLR:
    """gamma times the rate at every step."""
    return LambdaLR(optimizer, lambda i: gamma ** i)


def LinearLR(optimizer: Optimizer, start_factor: float = 1 / 3,
             end_factor: float = 1.0, total_iters: int = 5) -> LambdaLR:
    """From one factor to another in a straight line."""
    return LambdaLR(optimizer, lambda i: start_factor + (
        end_factor - start_factor) * min(i, total_iters) / total_iters)


def CosineAnnealingLR(optimizer: Optimizer, T_max: int,
                      eta_min: float = 0.0) -> LambdaLR:
    """Down to eta_min along half a cosine (Loshchilov, 2017)."""
    rates = {group["lr"] for group in optimizer.param_groups}
    if eta_min and len(rates) > 1:
        raise ValueError("CosineAnnealingLR: eta_min is one rate, and the "
                         "groups have several; use LambdaLR")
    low = eta_min / rates.pop() if eta_min else 0.0
    return LambdaLR(optimizer, lambda i: low + (1 - low) * (
        1 + math.cos(math.pi * i / T_max)) / 2)
