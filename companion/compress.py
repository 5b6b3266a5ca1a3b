# Tangled from compression: edit there, `make tangle`. sha256:bb1acfe801a2
from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
from safetensors.numpy import save

from companion.autograd import RECORDING
from companion.convolution import (
    AdaptiveAvgPool2d, AvgPool2d, BatchNorm1d, BatchNorm2d, Conv1d, Conv2d,
    Dropout2d, Flatten, MaxPool2d)
from companion.device import CPU
from companion.dtype import bool_, float32, int32, int64
from companion.layers import Dropout, Linear, Module, Sequential
from companion.losses import cross_entropy
from companion.native import POOL, kernel_or_tell
from companion.tensor import Tensor, from_numpy
from companion.tensor.operands import where
from companion.training import Observer, Trainer, evaluating


def largest(sizes: np.ndarray, keep: int) -> np.ndarray:
    """Bools (…, n): the `keep` largest numbers of each row of `sizes`.

    Of equal ones the first. ValueError: a size is not finite, or n < keep.
    """
    if not np.isfinite(sizes).all():
        raise ValueError("prune: a weight is not finite, and has no place "
                         "in an order; expected a model that is whole")
    n = sizes.shape[-1]
    if not 0 <= keep <= n:
        raise ValueError(f"prune: expected to keep 0 to {n}, got {keep}")
    kept = np.zeros(sizes.shape, bool)
    order = np.argsort(-sizes, kind="stable")
    np.put_along_axis(kept, order[..., :keep], True, -1)
    return kept


NamedMasks = dict[str, Tensor]  # bools, by the names of what they belong to


def prunable(model: Module) -> dict[str, Tensor]:
    """What is trained and has two axes or more, by name; each once."""
    return {name: p for name, p in model.named_parameters()
            if p.requires_grad and p.ndim >= 2}


def magnitude(weights: Mapping[str, Tensor], sparsity: float) -> NamedMasks:
    """Masks of the largest weights, all of them compared together."""
    if not 0 <= sparsity <= 1:
        raise ValueError(f"magnitude: expected a sparsity from 0 to 1, got "
                         f"{sparsity}: the share that is to be zero")
    if not weights:
        return {}
    sizes = [np.abs(w.numpy()).ravel() for w in weights.values()]
    total = sum(s.size for s in sizes)
    kept = largest(np.concatenate(sizes), total - round(sparsity * total))
    parts = np.split(kept, np.cumsum([s.size for s in sizes])[:-1])
    return {name: Tensor(part.reshape(w.shape))
            for (name, w), part in zip(weights.items(), parts)}


def layerwise(weights: Mapping[str, Tensor], sparsity: float) -> NamedMasks:
    """Masks of the largest weights, each matrix for itself."""
    return {name: mask for one in weights.items()
            for name, mask in magnitude(dict([one]), sparsity).items()}


class Masks(Observer):
    """Parts of a model that stay zero, while a Trainer trains it.

    `masks`: bools by the names of the model's state_dict, true where a
    number may be what it is. They hold at once, and after each step of a
    run that this observes; in a loop of your own, call `apply` after the
    optimizer's step.
    """

    def __init__(self, model: Module, masks: Mapping[str, Tensor]):
        self.model = model
        self.load_state_dict({"masks": masks})

    def apply(self) -> None:
        """Set to zero what is masked, wherever it is now."""
        state = self.model.state_dict()
        for name, mask in self.masks.items():
            x = state[name]
            # A choice, not a product: 0 * infinity is NaN.
            x.assign(where(mask.to(x.device), x, 0))

    def look(self, run: Trainer, row: dict[str, float]) -> None:
        self.apply()

    def end(self, run: Trainer) -> None:
        self.apply()  # a run may be interrupted between its step and a look

    def state_dict(self) -> dict[str, Any]:
        return {"masks": self.masks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over masks, and apply them; ValueError: they do not fit."""
        own = self.model.state_dict()
        for name, mask in state["masks"].items():
            if not isinstance(mask, Tensor) or mask.dtype is not bool_:
                raise ValueError(f"Masks: expected a Tensor of bools for "
                                 f"{name}, got a {type(mask).__name__} of "
                                 f"{getattr(mask, 'dtype', 'no dtype')}")
            if name not in own or own[name].shape != mask.shape:
                place = own[name].shape if name in own else "not there"
                raise ValueError(f"Masks: {name} is {place} in the model, "
                                 f"and the mask {mask.shape}; expected "
                                 f"masks made for this model")
        # Where the model is: a captured step may not bring them along.
        self.masks = {name: mask.to(own[name].device)
                      for name, mask in state["masks"].items()}
        self.apply()

    @property
    def sparsity(self) -> float:
        """The share that is masked, of all that has a mask."""
        kept = sum(int(mask.numpy().sum()) for mask in self.masks.values())
        total = sum(mask.size for mask in self.masks.values())
        return 1 - kept / total if total else 0.0


def two_of_four(weights: Mapping[str, Tensor]) -> NamedMasks:
    """Masks of the two largest in each four neighbours of a row.

    The axes behind the first count as one, and 4 has to divide it.
    """
    masks = {}
    for name, w in weights.items():
        if math.prod(w.shape[1:]) % 4:
            raise ValueError(f"two_of_four: {name} has rows of "
                             f"{math.prod(w.shape[1:])}; expected a multiple "
                             f"of 4; leave it out")
        fours = np.abs(w.numpy()).reshape(-1, 4)
        masks[name] = Tensor(largest(fours, 2).reshape(w.shape))
    return masks


def saved_bytes(model: Module) -> int:
    """The size of a safetensors file with all tensors of a model."""
    return len(save({name: np.asarray(tensor.numpy(), order="C")
                     for name, tensor in model.state_dict().items()}))


def strongest(layer: Any, keep: int) -> np.ndarray:
    """Bools (outputs,): the `keep` units with the largest Σ |weight|."""
    w = np.abs(np.asarray(layer.weight.numpy(), np.float64))
    return largest(w.reshape(len(w), -1).sum(1), keep)


# The attributes that count a layer's outputs and its inputs.
SIZES: dict[type, tuple[str, ...]] = {
    Linear: ("out_features", "in_features"),
    Conv1d: ("out_channels", "in_channels"),
    Conv2d: ("out_channels", "in_channels"),
    BatchNorm1d: ("num_features",), BatchNorm2d: ("num_features",)}
DROPS = Dropout, Dropout2d
POOLS = MaxPool2d, AvgPool2d, AdaptiveAvgPool2d  # of channels, each alone


def unit_by_unit(step: Any, units: int) -> bool:
    """Whether `step` keeps zeros, and no unit says a thing about another."""
    if type(step) in SIZES:
        return step.weight is not None and step.num_features == units
    if isinstance(step, Module) and step.state_dict():
        return False  # what its tensors mean is not known here
    x = Tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 2.0], [-1.0, 0.0]])
    try:
        y, alone = step(x).numpy(), step(x[:, :1]).numpy()
    except Exception:  # another number of axes: no function of one number
        return False
    return (y.shape == x.shape and alone.shape == (4, 1)
            and not y[x.numpy() == 0].any()
            and np.allclose(y[:, :1], alone, atol=1e-5))


def reads(step: Any, layer: Any, flat: bool) -> bool:
    """Whether `step` takes the units of `layer`, `flat` if all features
    are in one axis, as its inputs."""
    if getattr(step, "groups", 1) > 1 or (type(step) is Linear) != flat:
        return False
    inputs, units = getattr(step, SIZES[type(step)][1]), len(layer.weight)
    whole = flat and type(layer) is not Linear and inputs % units == 0
    return whole or inputs == units


def until_read(model: Sequential, place: int) -> list[tuple[int, Any]]:
    """The layer at `place` and those behind it, up to the one that reads
    its units; ValueError: units cannot be taken from there."""
    found: list[tuple[int, Any]] = []
    flat = False
    for i, step in enumerate(model.layers):
        if not 0 <= place <= i:
            continue
        found.append((i, step))
        weighs = len(SIZES.get(type(step), ())) == 2
        if i == place:
            fits = weighs and getattr(step, "groups", 1) == 1
        elif weighs:
            fits = reads(step, model[place], flat)
        else:
            fits = (type(step) in DROPS or type(step) in POOLS and not flat
                    or unit_by_unit(step, len(model[place].weight)))
        if not fits:
            raise ValueError(cannot_follow(i, place, step))
        if weighs and i > place:
            return found
        flat |= type(step) in (Linear, Flatten)
    raise ValueError(f"layers.{place} of {len(model)}: no layer behind it "
                     f"reads its units; those of the last are the answer")


def cannot_follow(i: int, place: int, step: Any) -> str:
    return (f"layers.{i}: a unit of layers.{place} cannot be followed "
            f"through {step!r}; expected a Linear or a Conv without groups, "
            f"one that reads as many units, and between two of them norms, "
            f"pools and functions that keep zero and take each unit alone")


def checked_units(layer: Any, kept: Any) -> np.ndarray:
    """Bools (outputs,) with one or more true; else ValueError."""
    kept, units = np.asarray(kept), len(layer.weight)
    if kept.shape != (units,) or kept.dtype != bool or not kept.any():
        raise ValueError(f"units: expected a bool for each of {units} "
                         f"units, one of them true, got {kept.dtype} "
                         f"{kept.shape} with {np.count_nonzero(kept)} true")
    return kept


def unit_masks(model: Sequential, place: int, kept: np.ndarray) -> NamedMasks:
    """Masks that silence all units of a layer that are not kept."""
    steps = until_read(model, place)[:-1]
    kept = checked_units(model[place], kept)
    return {f"layers.{i}.{name}": Tensor(np.broadcast_to(
                kept.reshape(-1, *[1] * (x.ndim - 1)), x.shape).copy())
            for i, step in steps if isinstance(step, Module)
            for name, x in step.parts((Tensor,))
            if name in ("weight", "bias")}


def cut(layer: Module, axis: int, kept: np.ndarray) -> None:
    """Drop outputs (axis 0) or inputs (axis 1) of a layer."""
    for name, x in list(layer.parts((Tensor,))):
        if x.ndim > axis:
            rows = Tensor(np.flatnonzero(kept), device=x.device)
            part = x.detach()[(slice(None),) * axis + (rows,)].clone()
            part.requires_grad = x.requires_grad
            setattr(layer, name, part)
    setattr(layer, SIZES[type(layer)][axis], int(kept.sum()))


def shrunk(model: Sequential, place: int, kept: np.ndarray) -> Sequential:
    """A copy without the units of a layer that are not kept, (outputs,).

    It says what the model says with `unit_masks`. An optimizer has to be
    made for it anew.
    """
    check_unshared(model)
    model = deepcopy(model)
    *before, (_, last) = until_read(model, place)
    kept = checked_units(model[place], kept)
    for _, step in before:
        if type(step) in SIZES:
            cut(step, 0, kept)
    # Behind a Flatten each channel has become several features.
    count = getattr(last, SIZES[type(last)][1]) // len(kept)
    cut(last, 1, np.repeat(kept, count))
    return model


def check_unshared(model: Module) -> None:
    """Refuse a tensor with two names: a cut would fit only one."""
    names: dict[int, str] = {}
    for name, x in model.named_tensors():
        if names.setdefault(id(x), name) != name:
            raise ValueError(f"shrunk: {name} is {names[id(x)]} as well; "
                             f"expected layers that share no tensor")


class CSR(Module):
    """A matrix (m, n) of float32 of which only what is not 0 is stored.

    values (k,) and columns (k,), row by row; starts (m + 1,) of the rows.
    For use, not for training: it has no parameters.
    """

    def __init__(self, matrix: Tensor):
        if matrix.ndim != 2:
            raise ValueError(f"CSR: expected a matrix, got {matrix.shape}")
        dense = np.asarray(matrix.numpy(), np.float32)
        rows, columns = np.nonzero(dense)
        self.shape = matrix.shape
        self.values = Tensor(dense[rows, columns])
        self.columns = Tensor(columns.astype(np.int32))
        self.starts = Tensor(np.searchsorted(
            rows, np.arange(len(dense) + 1)).astype(np.int64))

    @property
    def nbytes(self) -> int:
        return sum(x.size * x.dtype.itemsize
                   for _, x in self.parts((Tensor,)))

    def arrays(self) -> list[np.ndarray]:
        """values, columns, starts; ValueError: no three of this matrix."""
        three = self.values, self.columns, self.starts
        k, rows = self.values.shape, (self.shape[0] + 1,)
        if ([t.dtype for t in three] != [float32, int32, int64]
                or [t.shape for t in three] != [k, k, rows]):
            raise ValueError(
                f"CSR: expected float32 (k,), int32 (k,) and int64 {rows}, "
                f"got " + ", ".join(f"{t.dtype} {t.shape}" for t in three))
        return [np.ascontiguousarray(t.numpy()) for t in three]

    def dense(self) -> Tensor:
        """The matrix with its zeros."""
        values, columns, starts = self.arrays()
        counts, (m, n) = np.diff(starts), self.shape
        if (starts[0] != 0 or starts[-1] != len(columns)
                or (counts < 0).any() or (columns < 0).any()
                or (columns >= n).any()):
            raise ValueError(DAMAGED)
        matrix = np.zeros((m, n), np.float32)
        matrix[np.repeat(np.arange(m), counts), columns] = values
        return Tensor(matrix)

    def forward(self, x: Tensor) -> Tensor:
        """The product (m, …) with x (n,) or (n, B), on a processor."""
        m, n = self.shape
        if (x.shape[:1] != (n,) or x.ndim > 2 or x.device is not CPU
                or x.dtype is not float32):
            raise ValueError(f"CSR: expected float32 ({n}, …) on cpu, got "
                             f"{x.dtype} {x.shape} on {x.device}")
        if x.requires_grad and RECORDING.get():
            raise TypeError("CSR: passes no gradient on; run it under "
                            "no_grad(), or train a Linear with Masks")
        arrays = self.arrays()
        product = sparse_product()
        if product is None:
            return self.dense() @ x
        y = np.empty((m, *x.shape[1:]), np.float32)
        if product(*arrays, np.ascontiguousarray(x.numpy()), y, m, n,
                   math.prod(x.shape[1:]), len(arrays[0]), POOL.threads,
                   POOL.address):
            raise ValueError(DAMAGED)
        return from_numpy(y)

    __matmul__ = forward


DAMAGED = ("CSR: columns or starts lie outside of the matrix; the file it "
           "came from is damaged")


@functools.cache
def sparse_product() -> Callable[..., Any] | None:
    """The compiled `product`; None without a C compiler."""
    library = kernel_or_tell("sparse products are dense, by NumPy",
                             "kernels/sparse.c", "-O3")
    return None if library is None else library.product


class SparseLinear(Module):
    """What a Linear does on cpu, by its weights that are not zero.

    A copy: the layer may go on without it.
    """

    def __init__(self, layer: Linear):
        self.weight = CSR(layer.weight)
        self.bias = None if layer.bias is None else Tensor(
            layer.bias.numpy().copy())

    def forward(self, x: Tensor) -> Tensor:
        m, n = self.weight.shape
        if x.shape[-1:] != (n,):
            raise ValueError(f"SparseLinear: expected (…, {n}), got "
                             f"{x.shape}")
        rows = x.reshape(math.prod(x.shape[:-1]), n)
        y = (self.weight @ rows.T).T.reshape(*x.shape[:-1], m)
        return y if self.bias is None else y + self.bias


def rounds(n: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of an even number, in rounds in which each plays once."""
    order = np.arange(n)
    for _ in range(n - 1):
        yield order[:n // 2].copy(), order[:n // 2 - 1:-1].copy()
        order[1:] = np.roll(order[1:], 1)  # the first one stays


def turned(x: np.ndarray, y: np.ndarray, m: int, floor: float) -> float:
    """Rotate rows x and y (pairs, …), so that the first m numbers of each
    pair are orthogonal; the largest cosine that there was."""
    xx, yy, xy = [np.einsum("ij,ij->i", a[:, :m], b[:, :m])
                  for a, b in ((x, x), (y, y), (x, y))]
    xy[np.minimum(xx, yy) <= floor ** 2] = 0  # as good as zero
    apart = xx - yy
    angle = np.arctan2(2 * xy * np.where(apart < 0, -1, 1), abs(apart)) / 2
    c, s = np.cos(angle)[:, None], np.sin(angle)[:, None]
    x[:], y[:] = c * x + s * y, c * y - s * x
    length = np.sqrt(xx * yy)
    return float(np.divide(abs(xy), length, out=np.zeros_like(xy),
                           where=length > 0).max(initial=0))


SWEEPS = 60  # ten are enough; from then on only rounding errors turn


def turn_all(rows: np.ndarray, m: int, floor: float) -> float:
    """Rotate each pair once; the largest cosine that there was."""
    cosine = 0.0
    for p, q in rounds(len(rows)):
        x, y = rows[p], rows[q]
        cosine = max(cosine, turned(x, y, m, floor))
        rows[p], rows[q] = x, y
    return cosine


def svd(a: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """u (m, k), s (k,) falling, vt (k, n), k = min(m, n): a = u · s · vt.

    By one-sided Jacobi rotations, in float64. Singular values below the
    rounding errors of the largest are 0. ValueError: not finite, not real.
    """
    a = np.asarray(a)
    if a.ndim != 2 or a.dtype.kind not in "biuf" or not np.isfinite(a).all():
        raise ValueError(f"svd: expected a matrix of finite real numbers, "
                         f"got {a.dtype} {a.shape}")
    a, (m, n) = a.astype(np.float64), a.shape
    if m < n:
        u, s, vt = svd(a.T)
        return vt.T, s, u.T
    scale = np.abs(a).max(initial=0) or 1.0  # squares would overflow
    # Each row: a column of a, then what has been done to it.
    both = np.zeros((n + n % 2, m + n))
    both[:n, :m], both[:n, m:] = a.T / scale, np.eye(n)
    floor = 4 * max(m, 1) * np.finfo(float).eps * np.linalg.norm(both[:, :m])
    for _ in range(SWEEPS):
        if turn_all(both, m, floor) <= 1e-14:
            break
    return sorted_out(both[:n], m, scale, floor)


def sorted_out(rows: np.ndarray, m: int, scale: float, floor: float,
               ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """u, s and vt of rows that hold u · s and, behind m numbers, vt."""
    s = np.sqrt((rows[:, :m] ** 2).sum(1))
    s[s <= floor] = 0
    order = np.argsort(-s, kind="stable")
    s, rows = s[order], rows[order]
    rank = np.count_nonzero(s)
    u = np.zeros((m, len(rows)))
    u[:, :rank] = (rows[:rank, :m] / s[:rank, None]).T
    for i in range(rank, len(rows)):
        new = np.eye(m)[np.argmin((u ** 2).sum(1))]
        for _ in "twice, since once leaves rounding errors":
            new = new - u @ (u.T @ new)
            new /= np.linalg.norm(new)
        u[:, i] = new
    return u, s * scale, rows[:, m:]


def low_rank(layer: Linear, rank: int) -> Sequential:
    """Two Linears for one, by the largest `rank` singular values.

    rank · (inputs + outputs) weights; each takes the root of a value.
    """
    outputs, inputs = layer.weight.shape
    if not isinstance(rank, int) or not 1 <= rank <= min(outputs, inputs):
        raise ValueError(f"low_rank: expected a rank from 1 to "
                         f"{min(outputs, inputs)}, got {rank}")
    u, s, vt = svd(layer.weight.numpy())
    root = np.sqrt(s[:rank])
    at: dict[str, Any] = {"dtype": layer.weight.dtype,
                          "device": layer.weight.device}
    first = Linear(inputs, rank, bias=False, init=lambda *_, **at: Tensor(
        root[:, None] * vt[:rank], **at), **at)
    second = Linear(rank, outputs, bias=layer.bias is not None,
                    init=lambda *_, **at: Tensor(u[:, :rank] * root, **at),
                    **at)
    if layer.bias is not None:
        second.bias = layer.bias.detach().clone()
        second.bias.requires_grad = layer.bias.requires_grad
    for thin in first, second:
        thin.weight.requires_grad = layer.weight.requires_grad
    return Sequential(first, second)


def distilled(teacher: Module, temperature: float = 4.0,
              share: float = 0.9) -> Callable[..., Tensor]:
    """A loss_of(model, x, targets) for a Trainer (Hinton, 2015).

    `share` of it is T² · the cross entropy with softmax(teacher / T), at
    the temperature T; the rest is the targets' own.
    """
    if not (0 < temperature < math.inf and 0 <= share <= 1):
        raise ValueError(f"distilled: expected a finite temperature above 0 "
                         f"and a share from 0 to 1, got {temperature} and "
                         f"{share}")
    # A partial: a function made in here could not be sent to a process.
    return partial(taught_loss, teacher, temperature, share)


def taught_loss(teacher: Module, temperature: float, share: float,
                model: Module, x: Tensor, targets: Tensor) -> Tensor:
    with evaluating(teacher):
        hints = (teacher(x) / temperature).softmax(-1)
    y = model(x)
    soft = cross_entropy(y / temperature, hints) * temperature ** 2
    return soft * share + cross_entropy(y, targets) * (1 - share)


def pareto_front(costs: Any) -> np.ndarray:
    """Bools (n,): rows of costs (n, k) that no other row dominates.

    Lower is better. A row dominates another that is nowhere lower, and
    somewhere higher; equal rows do not dominate each other.
    """
    costs = np.asarray(costs, float)
    if costs.ndim != 2 or np.isnan(costs).any():
        raise ValueError(f"pareto_front: expected numbers (n, k), none of "
                         f"them NaN, got {costs.shape}")
    a, b = costs[:, None], costs[None]
    return ~((a <= b).all(2) & (a < b).any(2)).any(0)
