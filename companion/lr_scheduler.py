# Tangled from vocabulary: edit there, `make tangle`. sha256:06c410719020
"""PyTorch's learning-rate schedulers: a factor for each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from companion.optim import Optimizer
from companion.tensor import as_int


class LRScheduler:
    """Each step sets every group's rate, from its first and the step.

    `rule(first, i)` is the rate at step i, from 0. The optimizer listens
    to one scheduler: a rate set by another, or by hand, is overwritten.
    """

    def __init__(self, optimizer: Optimizer,
                 rule: Callable[[float, int], float]):
        self.optimizer, self.rule, self.last_epoch = optimizer, rule, -1
        self.base_lrs = [g["lr"] for g in optimizer.param_groups]
        self.step()

    def step(self) -> None:
        """Call it after the optimizer's step, or at an epoch's end."""
        groups = self.optimizer.param_groups
        if len(groups) != len(self.base_lrs):
            raise ValueError(f"scheduler: the optimizer has {len(groups)} "
                             f"groups, the schedule {len(self.base_lrs)} "
                             f"first rates; make it after the last group")
        self.last_epoch += 1
        for group, first in zip(groups, self.base_lrs):
            group["lr"] = self.rule(first, self.last_epoch)

    def get_last_lr(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        return {"last_epoch": self.last_epoch, "base_lrs": self.base_lrs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.base_lrs = list(state["base_lrs"])
        self.last_epoch = state["last_epoch"] - 1
        self.step()


def check_steps(name: str, steps: int) -> None:
    if as_int(steps) < 1:
        raise ValueError(f"{name}: expected one step or more, got {steps}")


def LambdaLR(optimizer: Optimizer,
             lr_lambda: Callable[[int], float]) -> LRScheduler:
    """The first rate times lr_lambda(the number of the step)."""
    return LRScheduler(optimizer, lambda first, i: first * lr_lambda(i))


def StepLR(optimizer: Optimizer, step_size: int,
           gamma: float = 0.1) -> LRScheduler:
    """gamma times the rate after every `step_size` steps."""
    check_steps("StepLR", step_size)
    return LambdaLR(optimizer, lambda i: gamma ** (i // step_size))


def MultiStepLR(optimizer: Optimizer, milestones: Sequence[int],
                gamma: float = 0.1) -> LRScheduler:
    """gamma times the rate at each milestone."""
    return LambdaLR(optimizer, lambda i: gamma ** sum(
        m <= i for m in milestones))


def ExponentialLR(optimizer: Optimizer, gamma: float) -> LRScheduler:
    """gamma times the rate at every step."""
    return LambdaLR(optimizer, lambda i: gamma ** i)


def LinearLR(optimizer: Optimizer, start_factor: float = 1 / 3,
             end_factor: float = 1.0, total_iters: int = 5) -> LRScheduler:
    """From one factor to another in a straight line."""
    check_steps("LinearLR", total_iters)
    return LambdaLR(optimizer, lambda i: start_factor + (
        end_factor - start_factor) * min(i, total_iters) / total_iters)


def CosineAnnealingLR(optimizer: Optimizer, T_max: int,
                      eta_min: float = 0.0) -> LRScheduler:
    """Down to eta_min along half a cosine (Loshchilov, 2017)."""
    check_steps("CosineAnnealingLR", T_max)
    return LRScheduler(optimizer, lambda first, i: eta_min + (
        first - eta_min) * (1 + math.cos(math.pi * i / T_max)) / 2)
