# Tangled from layers, autograd, vocabulary: edit there, `make tangle`. sha256:cb4e419731b5  # noqa: E501
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from companion.device import CPU, Device
from companion.dtype import DType, bfloat16, float16, float32, float64
from companion.tensor import Tensor, unpack_ints
from companion.tensor.creation import ones, zeros, zeros_like
from companion.tensor.operands import narrowed, where, widened
from companion.tensor.random import GENERATOR, Generator, rand, randn
from companion.tensor.reductions import detached


class Module:
    """Something with parts: tensors and other modules, by attribute."""

    training = True

    def parts(self, kinds: Any = None) -> Iterator[tuple[str, Any]]:
        """Attributes that are tensors or modules, in order of arrival.

        What stands in a list or a dictionary is named by its place:
        layers.0, heads.left.
        """
        for name, value in vars(self).items():
            yield from named_leaves(name, value, kinds or (Tensor, Module))

    def named_tensors(self, prefix: str = "") -> Iterator[
            tuple[str, Tensor]]:
        """Every tensor below this module, with its path as its name."""
        for name, part in self.parts():
            if isinstance(part, Module):
                yield from part.named_tensors(f"{prefix}{name}.")
            else:
                yield prefix + name, part

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors for training, frozen or not; a shared one once."""
        # By identity: a shared weight has two names and one update.
        seen: set[int] = set()
        for name, tensor in self.named_tensors():
            if is_parameter(tensor) and id(tensor) not in seen:
                seen.add(id(tensor))
                yield name, tensor

    def parameters(self) -> list[Tensor]:
        return [tensor for _, tensor in self.named_parameters()]

    def forward(self, *inputs: Any, **options: Any) -> Any:
        raise NotImplementedError(
            f"{type(self).__name__} has no forward: define one")

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        return self.forward(*inputs, **options)

    def title(self) -> str:
        """The class, and the settings it was built from."""
        settings = [f"{name}={value!r}" for name, value in
                    vars(self).items() if is_repr_value(value)
                    and name != "training"]
        return f"{type(self).__name__}({', '.join(settings)})"

    def count(self) -> int:
        """How many numbers training may change."""
        return sum(p.size for p in self.parameters() if p.requires_grad)

    def __repr__(self) -> str:
        places = {f", {p.dtype} on {p.device}" for p in self.parameters()}
        return "\n".join([
            f"{self.title()}  # {self.count():,} parameters"
            + "".join(sorted(places)), *self.branches("  ")])

    def branches(self, indent: str) -> Iterator[str]:
        """A line for each module below this one, and each function."""
        for name, part in self.parts((Module, Callable)):
            if not isinstance(part, Module):
                function = getattr(part, "func", part)  # of a partial
                kind = type(function).__name__
                yield f"{indent}{name}: {getattr(function, '__name__', kind)}"
                continue
            count = f"  # {part.count():,}" if part.count() else ""
            yield f"{indent}{name}: {part.title()}{count}"
            yield from part.branches(indent + "  ")

    def train(self, mode: bool = True) -> Module:
        """Put this module and all below it into training mode."""
        self.training = mode
        for _, part in self.parts((Module,)):
            part.train(mode)
        return self

    def eval(self) -> Module:
        """The end of training mode, for this module and all below it."""
        return self.train(False)

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor by its path; they share memory with the module."""
        found: dict[str, Tensor] = {}
        for name, tensor in self.named_tensors():
            if name in found:
                raise ValueError(f"state_dict: two tensors are called "
                                 f"{name}; rename one's attribute or key")
            found[name] = detached(tensor)
        return found

    def load_state_dict(self, state: Mapping[str, Any],
                        strict: bool = True) -> Loaded:
        """Overwrite this module's tensors; all of them or none.

        Values are tensors, of any device and dtype, or NumPy arrays.
        Unless `strict`, names on one side only are left out.
        """
        own, state = self.state_dict(), ours(self, state)
        lost = Loaded([name for name in own if name not in state],
                      [name for name in state if name not in own])
        if not strict:
            own, state = [{name: part[name] for name in own if name in state}
                          for part in (own, state)]
        problems = mismatches(own, state)
        if problems:
            raise ValueError(
                f"load_state_dict: {type(self).__name__} does not fit:\n"
                + "\n".join(f"  {p}" for p in problems))
        # All copied before any is written: a state may hold the memory of
        # this very module, with its names exchanged.
        values = [detached(v).clone() if isinstance(v, Tensor) else Tensor(v)
                  for v in map(state.__getitem__, own)]
        for tensor, value in zip(own.values(), values):
            tensor.assign(value.to(tensor.device))
        return lost

    def to(self, target: Device | DType | str) -> Module:
        """Move all tensors and gradients, or cast floats to a dtype."""
        check_float_dtype(target)
        for _, tensor in list(self.named_tensors()):
            for x in (tensor, tensor.grad):
                if x is not None and (
                        x.dtype.is_float or not isinstance(target, DType)):
                    moved = x.to(target)
                    # The tensor stays, with new memory: optimizers and
                    # shared weights hold the tensor itself.
                    x.buffer, x.device = moved.buffer, moved.device
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters, or fill in zeros."""
        for p in self.parameters():
            p.grad = cleared(p.grad, set_to_none)

    def register_buffer(self, name: str, tensor: Tensor | None,
                        persistent: bool = True) -> None:
        """An attribute that is a tensor: here every one is kept."""
        if not persistent:
            raise ValueError("register_buffer: every tensor is part of the "
                             "state here; keep this one as a NumPy array")
        setattr(self, name, tensor)

    def register_parameter(self, name: str, param: Tensor | None) -> None:
        setattr(self, name, param)

    def add_module(self, name: str, module: Module | None) -> None:
        setattr(self, name, module)

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors that training does not change, with their names."""
        return ((name, t) for name, t in self.named_tensors()
                if not is_parameter(t))

    def buffers(self) -> list[Tensor]:
        return [t for _, t in self.named_buffers()]

    def named_children(self) -> Iterator[tuple[str, Module]]:
        return self.parts((Module,))

    def children(self) -> Iterator[Module]:
        return (part for _, part in self.named_children())

    def named_modules(self, prefix: str = "") -> Iterator[
            tuple[str, Module]]:
        """This module, and all below it, each once, with its path."""
        seen: set[int] = set()
        waiting = [(prefix, self)]
        while waiting:
            path, module = waiting.pop(0)
            if id(module) in seen:
                continue
            seen.add(id(module))
            yield path, module
            below = [(f"{path}.{name}".lstrip("."), part)
                     for name, part in module.named_children()]
            waiting = below + waiting

    def modules(self) -> Iterator[Module]:
        return (module for _, module in self.named_modules())

    def apply(self, function: Callable[[Module], Any]) -> Module:
        """`function` of every module, the lowest first."""
        for part in self.children():
            part.apply(function)
        function(self)
        return self

    def requires_grad_(self, on: bool = True) -> Module:
        """Whether training may change the parameters below."""
        for p in self.parameters():
            p.requires_grad_(on)
        return self

    def cpu(self) -> Module:
        return self.to("cpu")

    def cuda(self) -> Module:
        return self.to("cuda")

    def double(self) -> Module:
        return self.to(float64)

    def half(self) -> Module:
        return self.to(float16)

    def bfloat16(self) -> Module:
        return self.to(bfloat16)

    def float(self) -> Module:
        return self.to(float32)


def named_leaves(name: str, value: Any,
                 kinds: Any) -> Iterator[tuple[str, Any]]:
    """`value` if it is of these kinds, or what it contains of them."""
    if isinstance(value, kinds):
        yield name, value
    elif isinstance(value, list | tuple | dict):
        pairs = value.items() if isinstance(value, dict) \
            else enumerate(value)
        for key, part in pairs:
            yield from named_leaves(f"{name}.{key}", part, kinds)


def parameter(x: Tensor) -> Tensor:
    """Mark a tensor as one that training may change."""
    x.requires_grad = True
    return x


def xavier(outputs: int, inputs: int, **options: Any) -> Tensor:
    """Uniform with variance 2 / (inputs + outputs) (Glorot, 2010).

    `options` (dtype, device, generator) are those of rand.
    """
    # Even numbers on (-b, b) have the variance b * b / 3.
    bound = math.sqrt(6 / (inputs + outputs))
    return (rand(outputs, inputs, **options) * 2 - 1) * bound


def he(outputs: int, inputs: int, **options: Any) -> Tensor:
    """Normal with variance 2 / inputs, for rectifiers (He, 2015)."""
    return randn(outputs, inputs, **options) * math.sqrt(2 / inputs)


class Linear(Module):
    """y = x Wᵀ + b for x of shape (…, in_features).

    Weights are drawn by `init(out_features, in_features, dtype=dtype,
    device=device)`, by default Xavier's; the bias starts at zero.
    """

    def __init__(self, in_features: int, out_features: int,
                 bias: bool = True, init: Callable[..., Tensor] = xavier,
                 dtype: DType = float32, device: Device | str = CPU):
        self.in_features, self.out_features = in_features, out_features
        at: dict[str, Any] = {"dtype": dtype, "device": device}
        self.weight = parameter(init(out_features, in_features, **at))
        self.bias = parameter(zeros(out_features, **at)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        check_features(self, x, (self.in_features,))
        y = x @ self.weight.T
        return y if self.bias is None else y + self.bias


def check_features(layer: Module, x: Tensor,
                   shape: tuple[int, ...]) -> None:
    """The last axes of `x` must be those the layer was built for."""
    # A single feature would be stretched over all weights in silence.
    if not isinstance(x, Tensor):
        raise TypeError(f"{type(layer).__name__}: expected a Tensor, got a "
                        f"{type(x).__name__}; wrap it in Tensor(…)")
    if x.shape[-len(shape):] != shape:
        wanted = ", ".join(map(str, shape))
        raise ValueError(
            f"{type(layer).__name__}: expected (…, {wanted}), got "
            f"{x.shape}; reshape the input, or build the layer for it")


class Sequential(Module):
    """Modules, or plain functions, one after another."""

    def __init__(self, *layers: Any):
        for layer in layers:
            if not callable(layer):
                raise TypeError(
                    f"Sequential: expected modules and functions, got a "
                    f"{type(layer).__name__}; unpack a list with *")
        self.layers = list(layers)

    def forward(self, x: Any) -> Any:
        for place, layer in enumerate(self.layers):
            try:
                x = layer(x)
            # Whatever went wrong goes on, with its place written on it.
            except Exception as error:
                error.add_note(f"in layers.{place} of {len(self)}")
                raise
        return x

    def __getitem__(self, index: int | slice) -> Any:
        found = self.layers[index]
        return Sequential(*found) if isinstance(index, slice) else found

    def __len__(self) -> int:
        return len(self.layers)


def is_repr_value(value: Any) -> bool:
    """Whether a value is a setting that a line of text can show."""
    if isinstance(value, tuple):
        return all(map(is_repr_value, value))
    return value is None or isinstance(value, int | float | str)


class Dropout(Module):
    """While training, zero each element with probability p.

    The others are divided by 1 - p (Srivastava et al., 2014). Random
    numbers come from `generator`, by default the one of manual_seed.
    """

    def __init__(self, p: float = 0.5, generator: Generator = GENERATOR):
        if not 0 <= p < 1:
            raise ValueError(f"Dropout: expected 0 <= p < 1, got {p}; p is "
                             f"the part that is dropped")
        self.p, self.generator = p, generator

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        draw = rand(*x.shape, device=x.device, generator=self.generator)
        # A choice, not a product with a mask: 0 * infinity is NaN.
        return where(draw < self.p, 0, x * (1 / (1 - self.p)))


class LayerNorm(Module):
    """Rows of mean 0 and variance 1, scaled and shifted (Ba, 2016).

    (x - mean) / sqrt(variance + eps) · weight + bias, over as many last
    axes as `normalized_shape` has. Halves are computed in float32.
    """

    def __init__(self, normalized_shape: int | Sequence[int],
                 eps: float = 1e-5, bias: bool = True,
                 dtype: DType = float32, device: Device | str = CPU):
        shape = unpack_ints([normalized_shape])
        self.normalized_shape, self.eps = shape, eps
        at: dict[str, Any] = {"dtype": dtype, "device": device}
        self.weight = parameter(ones(shape, **at))
        self.bias = parameter(zeros(shape, **at)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        check_features(self, x, self.normalized_shape)
        axes = range(-len(self.normalized_shape), 0)
        wide = widened(x)
        # Centred first: mean square less squared mean loses all digits
        # where the mean is large.
        # And by an addition, whose gradient negates no whole array.
        centred = wide + -wide.mean(axes, keepdim=True)
        variance = centred.square().mean(axes, keepdim=True)
        y = centred * (variance + self.eps).rsqrt() * self.weight
        return narrowed(y if self.bias is None else y + self.bias, x)


class RMSNorm(Module):
    """x / sqrt(mean(x²) + eps) · weight (Zhang & Sennrich, 2019).

    Over as many last axes as `normalized_shape` has. PyTorch's default
    for eps is the machine precision of the dtype; name it to compare.
    """

    def __init__(self, normalized_shape: int | Sequence[int],
                 eps: float = 1e-5, dtype: DType = float32,
                 device: Device | str = CPU):
        self.normalized_shape = unpack_ints([normalized_shape])
        self.eps = eps
        self.weight = parameter(
            ones(self.normalized_shape, dtype=dtype, device=device))

    def forward(self, x: Tensor) -> Tensor:
        check_features(self, x, self.normalized_shape)
        axes, wide = range(-len(self.normalized_shape), 0), widened(x)
        square = wide.square().mean(axes, keepdim=True)
        y = wide * (square + self.eps).rsqrt() * self.weight
        return narrowed(y, x)


def mismatches(own: Mapping[str, Tensor],
               state: Mapping[str, Any]) -> list[str]:
    """What keeps `state` from filling `own`, a line for each problem."""
    missing = [f"missing: {name} {own[name].shape}"
               for name in own if name not in state]
    extra = [f"not expected: {name} {np.shape(state[name])}"
             for name in state if name not in own]
    wrong = [f"{name}: expected {own[name].shape}, got "
             f"{np.shape(state[name])}"
             for name in own if name in state
             and own[name].shape != np.shape(state[name])]
    return missing + extra + wrong


def check_float_dtype(target: Device | DType | str) -> None:
    """Weights of another dtype must be floats still."""
    if isinstance(target, DType) and not target.is_float:
        raise TypeError(f"Module.to: expected a float dtype or a device, "
                        f"got {target}; {target} has no fractions")


def cleared(g: Tensor | None, set_to_none: bool) -> Tensor | None:
    """Nothing, or zeros in the place of a gradient."""
    return None if set_to_none or g is None else zeros_like(g)


def is_parameter(x: Tensor) -> bool:
    """Whether a tensor was ever told if it wants a gradient."""
    return "requires_grad" in vars(x)


class Loaded(NamedTuple):
    """What a state did not have, and what nobody asked for."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def ours(module: Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """A state whose layers of a Sequential are named as here."""
    prefixes = [f"{path}.layers.".lstrip(".") for path, part in
                module.named_modules() if isinstance(part, Sequential)]
    known = {}
    for name in module.state_dict():
        theirs = name
        for prefix in sorted(prefixes, key=len, reverse=True):
            if theirs.startswith(prefix):
                theirs = (prefix.removesuffix("layers.")
                          + theirs.removeprefix(prefix))
        known[theirs] = name
    return {known.get(name, name): value for name, value in state.items()}
