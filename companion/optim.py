# Tangled from optimizers, vocabulary: edit there, `make tangle`. sha256:8864c4d721ce  # noqa: E501
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from itertools import chain
from typing import Any
from weakref import proxy

import numpy as np

from companion.autograd import no_grad
from companion.layers import Module, cleared
from companion.tensor import Tensor
from companion.tensor.creation import zeros_like
from companion.tensor.random import feed


class Optimizer:
    """Parameters in groups with settings, and a memory for each.

    `parameters`: tensors, or dicts {"params": tensors, setting: value}
    that override `defaults` for their group.
    """

    def __init__(self, parameters: Iterable[Any], **defaults: Any):
        groups = groups_of(parameters)
        self.defaults = defaults
        self.param_groups = [defaults | g | {"params": list(g["params"])}
                             for g in groups]
        check_groups(self.param_groups, defaults)
        # By the tensor, not by id(): a copied pair of model and optimizer
        # still finds its memory.
        self.state: dict[Tensor, dict[str, Any]] = {}

    def step(self) -> None:
        """Move every parameter that has a gradient.

        The first makes what later ones overwrite: record the second.
        """
        with no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        self.state.setdefault(p, {"step": 0})
                        self.update(p, p.grad, group | self.fed(p, group))

    def update(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        raise NotImplementedError(
            f"{type(self).__name__} has no update: define one")

    def numbers(self, p: Tensor, group: dict[str, Any]) -> dict[str, float]:
        """What is another number at each step of p, by its name."""
        return {"lr": group["lr"]}

    def fed(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """Count the step, and bring its numbers to where p is."""
        mine = proxy(self)

        # Counted inside what is fed: a replayed step counts as well.
        def count() -> dict[str, np.ndarray]:
            mine.state[p]["step"] += 1
            return {name: np.asarray(n, p.dtype.numpy)
                    for name, n in mine.numbers(p, group).items()}
        return feed(count, p.device)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of the last step, or fill in zeros."""
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = cleared(p.grad, set_to_none)

    def kept(self, p: Tensor, name: str) -> Tensor:
        """What is remembered of `p`, on its device; zeros at first."""
        own = self.state[p]
        # Brought along: the parameter may have moved since the last step.
        own[name] = own[name].to(p.device) if name in own else zeros_like(p)
        return own[name]

    def parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def state_dict(self) -> dict[str, Any]:
        """{"state": {place: memory}, "param_groups": settings}."""
        places = {p: i for i, p in enumerate(self.parameters())}
        groups = [group | {"params": [places[p] for p in group["params"]]}
                  for group in self.param_groups]
        return {"state": {i: dict(self.state[p])
                          for p, i in places.items() if p in self.state},
                "param_groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over memory and settings; all of it or nothing."""
        saved, own = state["param_groups"], self.param_groups
        sizes = [[len(g["params"]) for g in groups]
                 for groups in (own, saved)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"load_state_dict: expected groups of {sizes[0]} "
                f"parameters, got {sizes[1]}")
        groups = [mine | {k: v for k, v in g.items()
                          if k in self.defaults or v not in (None, False)}
                  | {"params": mine["params"]}
                  for mine, g in zip(own, saved)]
        # Only the last line changes anything: all is checked before it.
        check_groups(groups, self.defaults)
        # By text: in a state that was JSON, the places have become text.
        places = chain.from_iterable(g["params"] for g in saved)
        at = dict(zip(map(str, places), self.parameters()))
        if lost := [i for i in state["state"] if str(i) not in at]:
            raise ValueError(f"load_state_dict: there is memory for {lost}; "
                             f"expected places of the groups, {[*at]}")
        memory = {at[str(place)]: copied_state(at[str(place)], values)
                  for place, values in state["state"].items()}
        self.param_groups, self.state = groups, memory

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """One more group; settings that it lacks are the defaults."""
        given = param_group["params"]
        new = self.defaults | dict(param_group) | {
            "params": [given] if isinstance(given, Tensor) else [*given]}
        groups = groups_of([*self.param_groups, new])
        check_groups(groups, self.defaults)
        self.param_groups = groups


def groups_of(parameters: Iterable[Any]) -> list[dict[str, Any]]:
    """What an optimizer was given, as groups."""
    given = [] if isinstance(parameters, Tensor) else list(parameters)
    groups = given if given and isinstance(given[0], dict) else [
        {"params": given}]
    if not all(group.get("params") for group in groups):
        raise ValueError(
            "optimizer: expected a list of parameters, or dicts with such "
            "a list under \"params\"; pass module.parameters()")
    return groups


LIMITS = {"lr": math.inf, "eps": math.inf, "weight_decay": math.inf,
          "momentum": 1.0, "alpha": 1.0, "betas": 1.0}


def check_groups(groups: list[dict[str, Any]],
                 defaults: Mapping[str, Any]) -> None:
    """Known settings within their limits, and each leaf once."""
    seen: set[Tensor] = set()
    for group in groups:
        unknown = set(group) - set(defaults) - {"params"}
        if unknown:
            raise ValueError(
                f"optimizer: unknown setting {sorted(unknown)}; expected "
                f"{', '.join(defaults)}")
        for name in LIMITS.keys() & group:
            values = listed(group[name])
            count = 2 if name == "betas" else 1
            if (len(values) != count
                    or not all(0 <= v < LIMITS[name] for v in values)):
                raise ValueError(
                    f"optimizer: {name} is {group[name]}; expected {count} "
                    f"of at least 0 and less than {LIMITS[name]}")
        if group.get("nesterov") and not group["momentum"]:
            raise ValueError("optimizer: nesterov looks ahead along the "
                             "momentum; expected momentum above 0")
        for p in group["params"]:
            check_parameter(p, seen)


def check_parameter(p: Any, seen: set[Tensor]) -> None:
    """A tensor of floats, given and not computed, for the first time."""
    if not isinstance(p, Tensor):
        raise TypeError(f"optimizer: expected tensors as parameters, got "
                        f"a {type(p).__name__}; pass module.parameters()")
    faults = [fault for fault, found in (
        ("comes twice", p in seen), ("is computed", not p.is_leaf),
        (f"holds {p.dtype}", not p.dtype.is_float)) if found]
    if faults:
        raise ValueError(
            f"optimizer: the parameter of shape {p.shape} {faults[0]}; "
            f"expected each leaf of a float dtype once")
    seen.add(p)


def listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, tuple | list) else (value,)


def descend(p: Tensor, way: Tensor, rate: Tensor) -> None:
    """p -= way · rate, in the memory of p."""
    p.assign(p - way * rate)


class SGD(Optimizer):
    """p -= lr · v, where v = momentum · v + g (Polyak, 1964).

    `nesterov` uses g + momentum · v in place of v. `weight_decay` adds
    that multiple of p to the gradient.
    """

    def __init__(self, parameters: Iterable[Any], lr: float = 1e-3,
                 momentum: float = 0.0, weight_decay: float = 0.0,
                 nesterov: bool = False):
        super().__init__(parameters, lr=lr, momentum=momentum,
                         weight_decay=weight_decay, nesterov=nesterov)

    def update(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        g, momentum = decayed(p, g, group), group["momentum"]
        if momentum:
            v = self.kept(p, "momentum_buffer")
            v.assign(v * momentum + g)
            g = g + v * momentum if group["nesterov"] else v
        descend(p, g, group["lr"])


def decayed(p: Tensor, g: Tensor, group: dict[str, Any]) -> Tensor:
    """The gradient with that of the penalty weight_decay · |p|² / 2."""
    return g + p * group["weight_decay"] if group["weight_decay"] else g


class RMSprop(Optimizer):
    """p -= lr · g / (√s + eps), s a running mean of g² (Hinton, 2012)."""

    def __init__(self, parameters: Iterable[Any], lr: float = 1e-2,
                 alpha: float = 0.99, eps: float = 1e-8,
                 weight_decay: float = 0.0):
        super().__init__(parameters, lr=lr, alpha=alpha, eps=eps,
                         weight_decay=weight_decay)

    def update(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        g, alpha = decayed(p, g, group), group["alpha"]
        s = self.kept(p, "square_avg")
        s.assign(s * alpha + g * g * (1 - alpha))
        descend(p, g / (s.sqrt() + group["eps"]), group["lr"])


class Adam(Optimizer):
    """p -= lr · m̂ / (√ŝ + eps) (Kingma and Ba, 2015).

    m and s are running means of g and g², divided by 1 - β^step.
    `weight_decay` adds to the gradient (see AdamW).
    """

    def __init__(self, parameters: Iterable[Any], lr: float = 1e-3,
                 betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 0.0):
        super().__init__(parameters, lr=lr, betas=betas, eps=eps,
                         weight_decay=weight_decay)

    def update(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        g, (first, second) = decayed(p, g, group), group["betas"]
        m, s = self.kept(p, "exp_avg"), self.kept(p, "exp_avg_sq")
        m.assign(m * first + g * (1 - first))
        s.assign(s * second + g * g * (1 - second))
        descend(p, self.direction(m, s, group), group["lr"])

    def numbers(self, p: Tensor, group: dict[str, Any]) -> dict[str, float]:
        """lr and eps, combined with the corrections c = 1 - β^step.

        lr · m̂ / (√ŝ + eps) is m / (√s + eps · √c_s) · lr · √c_s / c_m.
        """
        (first, second), t = group["betas"], self.state[p]["step"]
        root = math.sqrt(1 - second ** t)
        return {"lr": group["lr"] * root / (1 - first ** t),
                "eps": group["eps"] * root}

    def direction(self, m: Tensor, s: Tensor,
                  group: dict[str, Any]) -> Tensor:
        """Which way to go: m / (√s + eps), by the numbers above."""
        return m / (s.sqrt() + group["eps"])


class AdamW(Adam):
    """Adam, with p shrunk by lr · weight_decay beside it (2019)."""

    def __init__(self, parameters: Iterable[Any], lr: float = 1e-3,
                 betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 1e-2):
        super().__init__(parameters, lr, betas, eps, weight_decay)

    def update(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        # Outside of the gradient, where it would be divided by its size.
        if group["weight_decay"]:
            p.assign(p * group["keep"])
        super().update(p, g, group | {"weight_decay": 0.0})

    def numbers(self, p: Tensor, group: dict[str, Any]) -> dict[str, float]:
        """Those of Adam, and what part of p is to be kept."""
        lost = group["lr"] * group["weight_decay"]
        return super().numbers(p, group) | {"keep": 1 - lost}


def decay_groups(module: Module,
                 weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; vectors (biases, norms) do not."""
    matrices = [p for p in module.parameters() if p.ndim >= 2]
    vectors = [p for p in module.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay},
              {"params": vectors, "weight_decay": 0.0}]
    return [g for g in groups if g["params"]]


def copied_state(p: Tensor, values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of what was remembered for a tensor like `p`."""
    tensors = {k: v for k, v in values.items()
               if k != "step" and v is not None}
    for name, value in tensors.items():
        if np.shape(value) != p.shape or not isinstance(value, Tensor):
            raise ValueError(
                f"load_state_dict: {name} has shape {np.shape(value)}, its "
                f"parameter {p.shape}; expected tensors of that shape")
    return {"step": int(values.get("step", 0)),
            **{k: v.clone().to(p.device) for k, v in tensors.items()}}


def __getattr__(name: str) -> Any:
    """PyTorch's torch.optim.lr_scheduler stands beside this module."""
    if name != "lr_scheduler":
        raise AttributeError(f"optim has no {name}: type SGD, Adam, AdamW, "
                             f"RMSprop, or lr_scheduler")
    return import_module("companion.lr_scheduler")
