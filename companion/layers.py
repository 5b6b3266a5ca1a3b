# Tangled from layers, autograd: edit there, `make tangle`. sha256:b9eb8f2e7392
from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from companion.device import Device
from companion.dtype import DType, float32
from companion.tensor import Tensor, ones, rand, randn, wrap, zeros


# chapters/tensors/layers.md:75
def parameter(x: Tensor) -> Tensor:
    """Mark a tensor as one that training may change."""
    x.requires_grad = True
    return x


# chapters/tensors/layers.md:85
class Module:
    """Something with parts: tensors and other modules, by attribute."""

    training = True

    def parts(self) -> Iterator[tuple[str, Any]]:
        """Attributes that are tensors or modules, in order of arrival.

        The modules of a list stand under their places: layers.0, …
        """
        for name, value in vars(self).items():
            if isinstance(value, Tensor | Module):
                yield name, value
            elif isinstance(value, list | tuple):
                yield from ((f"{name}.{i}", part)
                            for i, part in enumerate(value)
                            if isinstance(part, Tensor | Module))

    # chapters/tensors/layers.md:108
    def named_tensors(self, prefix: str = "") -> Iterator[
            tuple[str, Tensor]]:
        """Every tensor below this module, with its path as its name."""
        for name, part in self.parts():
            if isinstance(part, Module):
                yield from part.named_tensors(f"{prefix}{name}.")
            else:
                yield prefix + name, part

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors that training may change; a shared one once."""
        seen: set[int] = set()
        for name, tensor in self.named_tensors():
            if tensor.requires_grad and id(tensor) not in seen:
                seen.add(id(tensor))
                yield name, tensor

    def parameters(self) -> list[Tensor]:
        return [tensor for _, tensor in self.named_parameters()]

    # chapters/tensors/layers.md:161
    def forward(self, *inputs: Any) -> Any:
        raise NotImplementedError(
            f"{type(self).__name__} has no forward: define one")

    def __call__(self, *inputs: Any) -> Any:
        return self.forward(*inputs)

    # chapters/tensors/layers.md:367
    def __repr__(self) -> str:
        count = sum(p.size for p in self.parameters())
        return "\n".join([f"{self.title()}  # {count:,} parameters",
                          *self.branches()])

    def title(self) -> str:
        """The class, and the numbers it was built from."""
        numbers = [f"{name}={value}" for name, value in vars(self).items()
                   if isinstance(value, int | float)
                   and name != "training"]
        return f"{type(self).__name__}({', '.join(numbers)})"

    def branches(self, indent: str = "  ") -> Iterator[str]:
        for name, part in self.parts():
            if isinstance(part, Module):
                yield f"{indent}{name}: {part.title()}"
                yield from part.branches(indent + "  ")

    # chapters/tensors/layers.md:420
    def train(self, on: bool = True) -> Module:
        """Put this module and all below it into training mode."""
        self.training = on
        for _, part in self.parts():
            if isinstance(part, Module):
                part.train(on)
        return self

    def eval(self) -> Module:
        return self.train(False)

    # chapters/tensors/layers.md:536
    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor by its path; they share memory with the module."""
        return dict(self.named_tensors())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Overwrite this module's tensors; all of them or none."""
        own = self.state_dict()
        problems = mismatches(own, state)
        if problems:
            raise ValueError(
                f"load_state_dict: {type(self).__name__} does not fit:\n"
                + "\n".join(f"  {p}" for p in problems))
        for name, tensor in own.items():
            value = bare(state[name]).to(tensor.device)
            bare(tensor).assign(value)

    # chapters/tensors/layers.md:604
    def to(self, target: Device | DType) -> Module:
        """Move every tensor to a device, or cast floats to a dtype."""
        for _, tensor in list(self.named_tensors()):
            if not isinstance(target, DType) or tensor.dtype.is_float:
                moved = tensor.to(target)
                tensor.buffer, tensor.device = moved.buffer, moved.device
        return self

    # chapters/gradients/autograd.md:881
    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for p in self.parameters():
            p.grad = None


# chapters/tensors/layers.md:175
class Linear(Module):
    """y = x Wᵀ + b for x of shape (…, inputs).

    Weights are drawn from `init`, by default Xavier's uniform; the bias
    starts at zero.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = True,
                 init: Any = None, dtype: DType = float32):
        self.inputs, self.outputs = inputs, outputs
        draw = init or xavier
        self.weight = parameter(draw(outputs, inputs, dtype=dtype))
        self.bias = parameter(zeros(outputs, dtype=dtype)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1:] != (self.inputs,):
            raise ValueError(
                f"Linear: expected (…, {self.inputs}), got {x.shape}")
        y = x @ self.weight.T
        return y if self.bias is None else y + self.bias


# chapters/tensors/layers.md:284
def xavier(outputs: int, inputs: int, dtype: DType = float32) -> Tensor:
    """Uniform with variance 2 / (inputs + outputs) (Glorot, 2010)."""
    bound = math.sqrt(6 / (inputs + outputs))
    return (rand(outputs, inputs, dtype=dtype) * 2 - 1) * bound


# chapters/tensors/layers.md:290
def he(outputs: int, inputs: int, dtype: DType = float32) -> Tensor:
    """Normal with variance 2 / inputs, for rectifiers (He, 2015)."""
    return randn(outputs, inputs, dtype=dtype) * math.sqrt(2 / inputs)


# chapters/tensors/layers.md:331
class Sequential(Module):
    """Modules, or plain functions, one after another."""

    def __init__(self, *layers: Any):
        self.layers = list(layers)

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x

    def __getitem__(self, index: int) -> Any:
        return self.layers[index]

    def __len__(self) -> int:
        return len(self.layers)


# chapters/tensors/layers.md:396
class Dropout(Module):
    """While training, zero each element with probability p.

    The others are divided by 1 - p (Srivastava et al., 2014).
    """

    def __init__(self, p: float = 0.5):
        if not 0 <= p < 1:
            raise ValueError(f"Dropout: expected 0 <= p < 1, got {p}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        kept = rand(*x.shape, device=x.device) >= self.p
        return x * kept / (1 - self.p)


# chapters/tensors/layers.md:464
class LayerNorm(Module):
    """Rows of mean 0 and variance 1, scaled and shifted (Ba, 2016).

    (x - mean) / sqrt(variance + eps) · weight + bias, over the last axis.
    """

    def __init__(self, size: int, eps: float = 1e-5,
                 dtype: DType = float32):
        self.size, self.eps = size, eps
        self.weight = parameter(ones(size, dtype=dtype))
        self.bias = parameter(zeros(size, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        variance = x.square().mean(-1, keepdim=True)
        return x * (variance + self.eps).rsqrt() * self.weight + self.bias


# chapters/tensors/layers.md:484
class RMSNorm(Module):
    """x / sqrt(mean(x²) + eps) · weight, over the last axis (Zhang, 2019)."""

    def __init__(self, size: int, eps: float = 1e-5,
                 dtype: DType = float32):
        self.size, self.eps = size, eps
        self.weight = parameter(ones(size, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        square = x.square().mean(-1, keepdim=True)
        return x * (square + self.eps).rsqrt() * self.weight


# chapters/tensors/layers.md:553
def bare(x: Tensor) -> Tensor:
    """The same memory under a tensor without marks."""
    return wrap(x.buffer, x.device)


# chapters/tensors/layers.md:560
def mismatches(own: Mapping[str, Tensor],
               state: Mapping[str, Tensor]) -> list[str]:
    """What keeps `state` from filling `own`, a line for each problem."""
    missing = [f"missing: {name} {own[name].shape}"
               for name in own if name not in state]
    extra = [f"not expected: {name} {tuple(state[name].shape)}"
             for name in state if name not in own]
    wrong = [f"{name}: expected {own[name].shape}, got "
             f"{tuple(state[name].shape)}"
             for name in own if name in state
             and own[name].shape != tuple(state[name].shape)]
    return missing + extra + wrong
