# Tangled from autograd: edit there, `make tangle`. sha256:7035c9633a1c
"""Derivatives of tensors: grad, gradcheck, Hessian products."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from companion.autograd import RECORDING, check_unmodified, recording, sweep
from companion.dtype import float64
from companion.tensor import Tensor
from companion.tensor.creation import zeros_like
from companion.tensor.operands import as_tensor
from companion.tensor.random import rand


def grad(y: Tensor, inputs: Sequence[Tensor] | Tensor,
         gradient: Tensor | None = None, retain_graph: bool = False,
         create_graph: bool = False) -> list[Tensor | None]:
    """The gradients of `y` with respect to `inputs`; None if unrelated.

    `gradient`, of y's shape, weighs the elements of y; a y of one
    element needs none. With `create_graph` the gradients are recorded
    and can be differentiated again.
    """
    inputs = [inputs] if isinstance(inputs, Tensor) else inputs
    if not all(x.requires_grad for x in inputs):
        raise ValueError("grad: an input asks for no gradient; call its "
                         ".requires_grad_() before computing y")
    seed, wanted = initial_gradient(y, gradient), {id(x) for x in inputs}
    with recording(create_graph):
        found = {id(x): g for x, g in sweep(
            y, seed, retain_graph or create_graph) if id(x) in wanted}
    return [found.get(id(x)) for x in inputs]


def initial_gradient(y: Tensor, gradient: Tensor | None) -> Tensor:
    """The gradient to start from: the given one, or 1 for a number."""
    if not y.requires_grad:
        raise RuntimeError(
            "backward: nothing here asks for a gradient; call "
            ".requires_grad_() on an input before computing")
    check_unmodified(y)
    if gradient is None and y.size != 1:
        raise ValueError(
            f"backward: a gradient is defined for one number, this is "
            f"of shape {y.shape}; .sum() it, or pass gradient=")
    if gradient is None:
        return as_tensor(1, y.dtype, y.device, y.shape)
    if getattr(gradient, "shape", None) != y.shape:
        raise ValueError(f"backward: expected as gradient a tensor of "
                         f"shape {y.shape}, got {gradient!r:.60}")
    # A copy: where y is a leaf, this becomes its .grad, to be written to.
    return gradient.cast(y.dtype).clone()


def writable_gradient(g: Tensor, taken: set[int]) -> Tensor:
    """`g` dense, in memory to write to that none among `taken` uses."""
    view, storage = g.buffer.view, g.buffer.storage
    # ADD hands one gradient to two operands, and SUM a view of one number.
    if id(storage) in taken or not (storage.writable and view.is_dense):
        g = g.clone()
    taken.add(id(g.buffer.storage))
    return g


def check_overwrite(x: Tensor) -> None:
    """Refuse a write whose consequence no record could tell."""
    remedy = "write x = x + y for a new tensor, or work under no_grad()"
    if x.is_leaf and x.requires_grad:
        raise RuntimeError(f"in place: this leaf asks for a gradient, and "
                           f"would be no leaf any more; {remedy}")
    if x.size * x.dtype.itemsize != x.buffer.storage.nbytes:
        raise RuntimeError(f"in place: shape {x.shape} is a part of larger "
                           f"memory, whose record would not know; {remedy}")


def check_leaving(x: Tensor) -> None:
    """Refuse to drop a gradient in silence."""
    if x.requires_grad and RECORDING.get():
        raise TypeError(
            "NumPy and DLPack know no gradients, and this tensor asks for "
            "one: call the tensor's own method (x.exp() for np.exp(x)), or "
            "say .detach() to leave the gradient behind")


def hessian_product(f: Callable[[Tensor], Tensor], x: Tensor,
                    v: Tensor) -> Tensor:
    """H v for the Hessian H of `f` at `x`, without forming H.

    Pearlmutter (1994): differentiate the slope along v. Cost: a small
    multiple of f; memory: the graph of f and of its gradient.
    """
    at = x.detach().requires_grad_()
    (g,) = grad(f(at), [at], create_graph=True)
    along = zeros_like(x) if g is None else (g * v).sum()
    # The gradient of a linear f is a constant: there is no graph behind it.
    if not along.requires_grad:
        return zeros_like(x)
    (product,) = grad(along, [at])
    return zeros_like(x) if product is None else product


def gradcheck(f: Callable[..., Tensor], *inputs: Tensor,
              step: float = 1e-5, tolerance: float = 1e-6) -> None:
    """Compare the gradients of `f` with central differences (float64).

    Every input that requires a gradient is checked in every element,
    with a random weight on every element of the result. Raises
    AssertionError with the largest difference where they disagree.
    """
    wanted = [x for x in inputs if x.requires_grad]
    if not wanted:  # it would pass, whatever f is
        raise ValueError("gradcheck: no input asks for a gradient, so there "
                         "is nothing to check; call .requires_grad_()")
    if any(x.dtype is not float64 for x in wanted):
        raise TypeError("gradcheck: differences need float64; cast first")
    y = f(*inputs)
    weight = rand(*y.shape, dtype=float64, device=y.device) + 0.5
    total = (y * weight).sum()
    found = grad(total, wanted) if y.requires_grad else [None] * len(wanted)
    for x, g in zip(wanted, found):
        actual = np.zeros(x.shape) if g is None else g.numpy()
        expected = numerical_gradient(
            lambda: float((f(*inputs) * weight).sum()), x, step)
        worst = np.abs(actual - expected).max(initial=0)
        if not worst <= tolerance * (1 + np.abs(expected).max(initial=0)):
            raise AssertionError(f"gradcheck: the gradient of an input of "
                                 f"shape {x.shape} is off by {worst:.3g}")


def numerical_gradient(f: Callable[[], float], x: Tensor,
                       step: float) -> np.ndarray:
    """Central differences of `f` in each element of x, moved in place."""
    memory, slopes = x.detach(), np.zeros(x.shape)
    values = x.numpy().copy()
    try:
        for i in np.ndindex(*x.shape):
            moved = np.zeros(x.shape)
            moved[i] = step
            memory.assign(values + moved)
            above = f()
            # From the saved values: x + step - step is not x in floats.
            memory.assign(values - moved)
            slopes[i] = (above - f()) / (2 * step)
    finally:
        memory.assign(values)
    return slopes
