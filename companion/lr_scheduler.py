# Tangled from vocabulary: edit there, `make tangle`. sha256:66c3cbaf95ee
"""PyTorch's learning-rate schedulers: a factor for each step."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from companion.optim import Optimizer
from companion.tensor import Tensor, as_int
from companion.vocabulary import found


class LRScheduler:
    """Each step sets every group's rate, from its first and the step.

    `rule(first, i)` is the rate at step i, from 0. The optimizer listens
    to one scheduler: a rate set by another, or by hand, is overwritten.
    """

    def __init__(self, optimizer: Optimizer,
                 rule: Callable[[float, int], float]):
        self.optimizer, self.rule, self.last_epoch = optimizer, rule, -1
        # What another schedule has set is no first rate.
        firsts = vars(optimizer).setdefault("first_lrs", [])
        firsts += [g["lr"] for g in optimizer.param_groups[len(firsts):]]
        self.base_lrs = [*firsts]
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


def ConstantLR(optimizer: Optimizer, factor: float = 1 / 3,
               total_iters: int = 5) -> LRScheduler:
    """factor times the rate for so many steps, then the rate."""
    return LambdaLR(optimizer, lambda i: factor if i < total_iters else 1.0)


def SequentialLR(optimizer: Optimizer, schedulers: Sequence[LRScheduler],
                 milestones: Sequence[int]) -> LRScheduler:
    """One schedule after another; each counts from where it begins."""
    if len(milestones) != len(schedulers) - 1:
        raise ValueError(f"SequentialLR: {len(schedulers)} schedules have "
                         f"{len(schedulers) - 1} milestones between them, "
                         f"got {list(milestones)}")
    starts = [0, *milestones]

    def rule(first: float, i: int) -> float:
        at = bisect.bisect(milestones, i)
        return schedulers[at].rule(first, i - starts[at])
    return LRScheduler(optimizer, rule)


class ReduceLROnPlateau:
    """factor times the rate when a number stays as it is for long.

    `step(metric)` counts those that are not better, by a share of
    `threshold`, than the best so far; after `patience` of them it acts.
    """

    def __init__(self, optimizer: Optimizer, mode: str = "min",
                 factor: float = 0.1, patience: int = 10,
                 threshold: float = 1e-4, min_lr: float = 0.0):
        if mode not in ("min", "max"):
            raise ValueError(f"ReduceLROnPlateau: expected mode 'min' or "
                             f"'max', got {mode!r}")
        self.optimizer, self.mode, self.factor = optimizer, mode, factor
        self.patience, self.threshold = patience, threshold
        self.min_lr, self.bad = min_lr, 0
        self.best = math.inf if mode == "min" else -math.inf

    def better(self, metric: float) -> bool:
        if self.mode == "min":
            return metric < self.best * (1 - self.threshold)
        return metric > self.best * (1 + self.threshold)

    def step(self, metric: Any) -> None:
        """Look at the number of an epoch."""
        value = float(metric.item() if isinstance(metric, Tensor) else metric)
        if math.isinf(self.best) or self.better(value):
            self.best, self.bad = value, 0
            return
        self.bad += 1
        if self.bad > self.patience:
            self.bad = 0
            for group in self.optimizer.param_groups:
                group["lr"] = max(group["lr"] * self.factor, self.min_lr)

    def get_last_lr(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "bad": self.bad}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best, self.bad = state["best"], state["bad"]


def __getattr__(name: str) -> Any:
    """A schedule that is not there: what to type."""
    return found("lr_scheduler", {}, name)
