# Tangled from optimizers: edit there, `make tangle`. sha256:4948d4e15032
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from companion.autograd import no_grad
from companion.layers import Module
from companion.tensor import Tensor, zeros_like


# chapters/gradients/optimizers.md:72
class Optimizer:
    """Parameters in groups with settings, and a memory for each.

    `parameters`: tensors, or dicts {"params": tensors, setting: value}
    that override `defaults` for their group.
    """

    def __init__(self, parameters: Iterable[Any], **defaults: Any):
        given = list(parameters)
        if not given:
            raise ValueError("optimizer: expected parameters, got none; "
                             "pass module.parameters()")
        groups = given if isinstance(given[0], dict) else [
            {"params": given}]
        self.param_groups = [defaults | g | {"params": list(g["params"])}
                       for g in groups]
        check_groups(self.param_groups, defaults)
        self.memory: dict[int, dict[str, Tensor]] = {}
        self.steps: dict[int, int] = {}

    # chapters/gradients/optimizers.md:140
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        with no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        self.steps[id(p)] = self.steps.get(id(p), 0) + 1
                        self.update(p, p.grad, group)

    def update(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        raise NotImplementedError(
            f"{type(self).__name__} has no update: define one")

    def zero_grad(self) -> None:
        """Forget the gradients of the last step."""
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    def kept(self, p: Tensor, name: str) -> Tensor:
        """What is remembered of `p` under `name`; zeros at first."""
        own = self.memory.setdefault(id(p), {})
        if name not in own:
            own[name] = zeros_like(p)
        return own[name]

    # chapters/gradients/optimizers.md:453
    def parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def state_dict(self) -> dict[str, Tensor]:
        """What is remembered, as place.name, and the counts of steps."""
        state = {}
        for place, p in enumerate(self.parameters()):
            if id(p) in self.steps:
                state[f"{place}.steps"] = Tensor(self.steps[id(p)])
            for name, value in self.memory.get(id(p), {}).items():
                state[f"{place}.{name}"] = value
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state; the settings stay what they are."""
        memory: dict[int, dict[str, Tensor]] = {}
        steps: dict[int, int] = {}
        for key, value in state.items():
            place, name = key.split(".")
            p = self.at(int(place), name, value)
            if name == "steps":
                steps[id(p)] = int(value)
            else:
                memory.setdefault(id(p), {})[name] = value.clone()
        self.memory, self.steps = memory, steps

    # chapters/gradients/optimizers.md:484
    def at(self, place: int, name: str, value: Tensor) -> Tensor:
        """The parameter that a remembered value belongs to, checked."""
        shapes = [p.shape for p in self.parameters()]
        if place >= len(shapes) or name != "steps" \
                and shapes[place] != value.shape:
            raise ValueError(
                f"load_state_dict: place {place} remembers {value.shape}; "
                f"the parameters have shapes {shapes}")
        return self.parameters()[place]


# chapters/gradients/optimizers.md:97
LIMITS = {"lr": math.inf, "eps": math.inf, "weight_decay": math.inf,
          "momentum": 1.0, "alpha": 1.0, "betas": 1.0}


# chapters/gradients/optimizers.md:101
def check_groups(groups: list[dict[str, Any]],
                 defaults: Mapping[str, Any]) -> None:
    """Known settings within their limits, and each leaf once."""
    seen: set[int] = set()
    for group in groups:
        unknown = set(group) - set(defaults) - {"params"}
        if unknown:
            raise ValueError(
                f"optimizer: unknown setting {sorted(unknown)}; expected "
                f"{', '.join(defaults)}")
        for name in LIMITS.keys() & group:
            if not all(0 <= v < LIMITS[name] for v in listed(group[name])):
                raise ValueError(
                    f"optimizer: {name} is {group[name]}; expected at "
                    f"least 0 and less than {LIMITS[name]}")
        for p in group["params"]:
            if id(p) in seen or not p.is_leaf:
                raise ValueError(
                    f"optimizer: the parameter of shape {p.shape} "
                    f"{'comes twice' if p.is_leaf else 'is computed'}; "
                    f"expected each leaf once")
            seen.add(id(p))


# chapters/gradients/optimizers.md:125
def listed(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


# chapters/gradients/optimizers.md:189
class SGD(Optimizer):
    """p -= lr · v, where v = momentum · v + g (Polyak, 1964).

    `nesterov` uses g + momentum · v in place of v. `weight_decay` adds
    that multiple of p to the gradient.
    """

    def __init__(self, parameters: Iterable[Any], lr: float = 1e-3,
                 momentum: float = 0.0, nesterov: bool = False,
                 weight_decay: float = 0.0):
        super().__init__(parameters, lr=lr, momentum=momentum,
                         nesterov=nesterov, weight_decay=weight_decay)

    def update(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        if group["weight_decay"]:
            g = g + p * group["weight_decay"]
        if group["momentum"]:
            v = self.kept(p, "velocity")
            v.assign(v * group["momentum"] + g)
            g = g + v * group["momentum"] if group["nesterov"] else v
        p.assign(p - g * group["lr"])


# chapters/gradients/optimizers.md:305
class RMSprop(Optimizer):
    """p -= lr · g / (√s + eps), s a running mean of g² (Hinton, 2012)."""

    def __init__(self, parameters: Iterable[Any], lr: float = 1e-2,
                 alpha: float = 0.99, eps: float = 1e-8):
        super().__init__(parameters, lr=lr, alpha=alpha, eps=eps)

    def update(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        s, alpha = self.kept(p, "square"), group["alpha"]
        s.assign(s * alpha + g * g * (1 - alpha))
        p.assign(p - g / (s.sqrt() + group["eps"]) * group["lr"])


# chapters/gradients/optimizers.md:322
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
        g = g + p * group["weight_decay"] if group["weight_decay"] else g
        p.assign(p - self.direction(p, g, group) * group["lr"])

    def direction(self, p: Tensor, g: Tensor,
                  group: dict[str, Any]) -> Tensor:
        first, second = group["betas"]
        m, s = self.kept(p, "mean"), self.kept(p, "square")
        m.assign(m * first + g * (1 - first))
        s.assign(s * second + g * g * (1 - second))
        t = self.steps[id(p)]
        size = s.sqrt() / math.sqrt(1 - second ** t) + group["eps"]
        return m / size / (1 - first ** t)


# chapters/gradients/optimizers.md:380
class AdamW(Adam):
    """Adam, with p shrunk by lr · weight_decay beside it (2019)."""

    def __init__(self, parameters: Iterable[Any], lr: float = 1e-3,
                 betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 1e-2):
        super().__init__(parameters, lr, betas, eps, weight_decay)

    def update(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        kept = 1 - group["lr"] * group["weight_decay"]
        step = self.direction(p, g, group) * group["lr"]
        p.assign(p * kept - step)


# chapters/gradients/optimizers.md:423
def decay_groups(module: Module,
                 weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; vectors (biases, norms) do not."""
    matrices = [p for p in module.parameters() if p.ndim >= 2]
    vectors = [p for p in module.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay},
              {"params": vectors, "weight_decay": 0.0}]
    return [g for g in groups if g["params"]]
