# Tangled from acceleration: edit there, `make tangle`. sha256:0c6f36f86627
from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from statistics import quantiles
from typing import Any, NamedTuple
from weakref import proxy, ref

import numpy as np

from companion.autograd import (
    GRADIENT, RECORDING, Record, check_rule, lineage, recording, version)
from companion.blas import NEVER, Blocking, plan, product
from companion.buffer import Buffer, Storage
from companion.compiler.capture import LOCK, Jit, name_of
from companion.compiler.lazy import Lazy
from companion.compiler.program import (
    TASKS, Code, Program, product_views, text_of)
from companion.compiler.schedule import Call
from companion.dtype import DType, bool_, float32
from companion.layers import Module, named_leaves
from companion.native import FLAGS, POOL, cache, key, march, tell
from companion.ops import MATMUL, Op
from companion.tensor import Tensor
from companion.tensor.creation import zeros_like
from companion.tensor.gradients import grad
from companion.tensor.random import KEYS, Key, feed, keys_from
from companion.timing import best
from companion.training import clip_grad_norm_, named_modules, write_atomically
from companion.view import View

Runs = Mapping[str, Callable[[], Any]]


def winner(times: Mapping[str, Sequence[float]],
           least: float = 1.02) -> str:
    """Of choices timed in the same rounds the first; or the one with the
    largest median gain over it, of those ahead by `least` in three
    rounds of four."""
    first, *others = times
    gains = {name: quantiles([a / b for a, b in zip(
        times[first], times[name])], n=4) for name in others}
    sure = {name: middle for name, (low, middle, _) in gains.items()
            if low >= least}
    return max(sure, key=lambda name: sure[name], default=first)


def fastest(runs: Runs, rounds: int = 9) -> str:
    """The first of some ways to do the same, unless another is faster.

    Of many one may be ahead by chance: who wins has to win again.
    """
    if rounds < 2:
        raise ValueError(f"fastest: expected 2 rounds or more, got {rounds}")
    won = winner(timed_rounds(runs, rounds))
    usual = next(iter(runs))
    final = {name: runs[name] for name in dict.fromkeys((usual, won))}
    return winner(timed_rounds(final, rounds))


def timed_rounds(runs: Runs, rounds: int,
                 burst: int = 3) -> dict[str, list[float]]:
    """Seconds of each in every round, the best of some runs; in turn.

    A round more than that warms up.
    """
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            found[name].append(best(run, burst))
    return {name: times[1:] for name, times in found.items()}


# What is tried for a product: settings of `Blocking`, and the threads.
# No depth exceeds the smallest KC of kernels/sgemm.c.
CHOICES: dict[str, dict[str, int]] = {
    "as ever": {},
    "depth 256": {"depth": 256}, "depth 512": {"depth": 512},
    "B packed": {"pack": 1}, "B in place": {"pack": NEVER},
    "A packed": {"copy": 1}, "A in place": {"copy": NEVER},
    "one thread": {"threads": 1}}


class Product(NamedTuple):
    """C = A B as the kernel walks it: the views, and the dtype."""

    a: View
    b: View
    c: View
    dtype: DType

    def job(self, choice: str) -> bytes:
        """What the kernel is told, by a choice of the table."""
        settings = {"threads": POOL.threads} | CHOICES[choice]
        threads = settings.pop("threads")
        return plan(self.a, self.b, self.c, 1.0, 0.0,
                    self.kernel[1]._replace(**settings), threads)

    @property
    def kernel(self) -> tuple[Callable[..., int], Blocking]:
        found = product(self.dtype)
        assert found, "there is a program, and so a compiler"
        return found

    def __str__(self) -> str:
        shapes = [f"{v.shape} by {v.strides}" for v in self[:3]]
        return f"{self.dtype} {', '.join(shapes)}, {POOL.threads} threads"

    def runs(self) -> dict[str, Callable[[], Any]]:
        """For each choice the product, ready to run."""
        a, b, c = [memory_for(view, self.dtype) for view in self[:3]]
        jobs: dict[bytes, str] = {}
        for name in CHOICES:
            jobs.setdefault(self.job(name), name)
        # The buffers go along, or their memory would not live as long.
        return {name: partial(self.multiply, job, a, b, c)
                for job, name in jobs.items()}

    def multiply(self, job: bytes, a: Buffer, b: Buffer, c: Buffer) -> None:
        if not self.kernel[0](job, a.address, b.address, c.address):
            raise MemoryError(f"tune: no memory to pack {self}")


def memory_for(view: View, dtype: DType) -> Buffer:
    """Ones, lying as a view says."""
    room = view.offset + 1 + sum(
        [max(n - 1, 0) * max(s, 0)
         for n, s in zip(view.shape, view.strides)])
    return Buffer(Storage(np.ones(room, dtype.numpy)), view, dtype)


def products_of(program: Program) -> Iterator[tuple[int, Product]]:
    """The matrix products of a program for the CPU, and their tasks."""
    calls = [step for step in program.steps if isinstance(step, Call)]
    told = [step for step in calls if TASKS[step.node.op](*step).function]
    for i, (node, operands) in enumerate(told):
        if node.op is MATMUL:
            a, b, c, _ = product_views(node, operands)
            yield i, Product(a, b, c, node.dtype)


def winners_file() -> Path:
    """What was measured for this machine, compiler and kernel."""
    made = key(text_of("kernels/sgemm.c"), (march(), *FLAGS))
    return cache() / f"tuned-{made}.json"


def read_winners(path: Path) -> dict[str, str]:
    """The choice for each product; none, and a line, if it is damaged."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
        if any(name not in CHOICES for name in found.values()):
            raise ValueError("a choice that is unknown")
        return found
    except (AttributeError, OSError, RecursionError, TypeError,
            ValueError) as error:
        tell(f"tune: {path} is ignored, and written anew: {error}")
        return {}


def keep_winners(path: Path, new: Mapping[str, str]) -> None:
    """Add to what is there by now."""
    text = json.dumps(read_winners(path) | dict(new), indent=1)
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        tell(f"tune: nothing is kept for the next time: {error}")


def tune(step: Jit, rounds: int = 9) -> dict[str, str]:
    """Let each matrix product of a captured function go the fastest way.

    Measured here, now or earlier (see `winners_file`), for as many
    threads as are set. Results may differ in their last digits. Gives
    the choice for each product, by its views.
    """
    path, found = winners_file(), dict[str, str]()
    known = read_winners(path)
    with LOCK:
        for program in tunable(step):
            for i, one in products_of(program):
                name = str(one)
                if name not in found:
                    found[name] = known.get(name) or fastest(
                        one.runs(), rounds)
                tasks = program.code.tasks
                tasks[i] = tasks[i]._replace(job=partial(chosen, one, found))
            program.threads = 0  # to be told at the next call
    if not found.items() <= known.items():
        keep_winners(path, found)
    return found


def chosen(one: Product, found: Mapping[str, str]) -> bytes:
    """As was measured; with other threads than then, as ever."""
    return one.job(found.get(str(one), "as ever"))


def tunable(step: Jit) -> list[Program]:
    """Its programs, if there are any, and their products are ours."""
    if not isinstance(step, Jit):
        raise TypeError(f"tune: expected what jit returns, got a "
                        f"{type(step).__name__}")
    found = [call.program for call in step.programs]
    if not found:
        raise ValueError(
            f"tune: {name_of(step.function)} is no program yet; call it "
            f"three times with arguments of one kind (and have a C compiler)")
    for program in found:
        if not isinstance(program.code, Code):
            raise TypeError(f"tune: the products of {program.device} are "
                            f"not ours to tune; expected a program of the "
                            f"device lazy")
    return found


def noting(kept: list[Tensor]) -> Callable[[Key], Tensor]:
    """A giver of keys that lists those that the one before it gives."""
    outer = KEYS.get()

    def answer(draw: Key) -> Tensor:
        kept.append(outer(draw))
        return kept[-1]
    return answer


@contextmanager
def repeating(kept: Sequence[Tensor]) -> Iterator[None]:
    """Inside the block generators are given these keys, all of them."""
    rest = [*reversed(kept)]

    def answer(draw: Key) -> Tensor:
        if not rest:
            raise otherwise("draws more numbers")
        return rest.pop()
    with keys_from(answer):
        yield
    if rest:
        raise otherwise("draws fewer numbers")


def otherwise(what: str) -> RuntimeError:
    return RuntimeError(f"checkpoint: run again, the function {what} than "
                        f"the first time; expected one that does the same "
                        f"at every call (train() or eval(), too)")


CHECKPOINT = Op("CHECKPOINT", 0)


def as_leaf(x: Tensor) -> Tensor:
    """The same memory, and no past."""
    return x.detach().requires_grad_() if x.requires_grad else x


def leaves_behind(y: Tensor, given: Iterable[Tensor]) -> list[Tensor]:
    """What y was computed from and asks for a gradient, but `given`."""
    read = [y, *[x for _, record in lineage(y) for x in record.src]]
    known = set(map(id, given))
    return list(dict.fromkeys([
        x for x in read if x.requires_grad and x.record is None
        and id(x) not in known]))


def checkpoint(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """function(*inputs), of which only the inputs are kept.

    For its gradient it runs again, with the same random numbers; what it
    writes to (BatchNorm does) is written to twice. Weights and other
    leaves that it reads have gradients too; what was computed from
    them must be an input. There is no second derivative. A program of a
    lazy device computes again as well. (Griewank, 1992)
    """
    check_inputs(inputs)
    if not RECORDING.get():
        return function(*inputs)
    kept, own = list[Tensor](), [as_leaf(x) for x in inputs]
    with keys_from(noting(kept)):
        result = outcome(function, own)
    if not result.requires_grad:
        return result
    src = (*inputs, *leaves_behind(result, own))
    inside = [ref(value) for value, _ in lineage(result)]
    y = result.detach()
    del result
    check_forgotten(inside)
    check_rule(CHECKPOINT, src)
    y.requires_grad = True
    y.record = Record(CHECKPOINT, src, (function, len(inputs), kept), [
        (i, version(x)) for i, x in enumerate(src)], version(y))
    return y


class Rules:
    """An entry of GRADIENT for any number of operands: see Jointly."""

    def __init__(self, rule: Callable[..., Sequence[Any]]):
        self.rule = rule

    def __iter__(self) -> Iterator[Callable[..., Any]]:
        found: list[Any] = []

        def share(i: int, *values: Any) -> Any:
            found[:] = found or self.rule(*values)
            return found[i]
        return (partial(share, i) for i in count())


def gradients_again(g: Tensor, y: Tensor, *rest: Any) -> list[Any]:
    """Of all operands: run the function again, and go backward."""
    *src, (function, n, kept) = rest
    if RECORDING.get():
        raise RuntimeError("checkpoint: there is no second derivative "
                           "(create_graph); call the function itself where "
                           "you need one")
    own = [as_leaf(x) for x in src[:n]]
    with recording(True), repeating(kept):
        new = outcome(function, [unforeseen(x) for x in own])
    if (new.shape, new.dtype, new.requires_grad) != (y.shape, y.dtype, True):
        raise otherwise(f"gives something else ({new.shape}, {new.dtype})")
    operands = [*own, *src[n:]]
    wanted = [x for x in operands if x.requires_grad]
    found = dict(zip(map(id, wanted), grad(new, wanted, g)))
    slopes = [found.get(id(x)) for x in operands]
    # Zeros, and not x * 0: of an infinity that would not be a number.
    return [zeros_like(x) if g is None else g
            for x, g in zip(operands, slopes)]


def outcome(function: Callable[..., Any], inputs: list[Tensor]) -> Tensor:
    """One tensor, by a function that leaves its inputs as they are."""
    before = [version(x) for x in inputs]
    y = function(*inputs)
    if not isinstance(y, Tensor):
        raise TypeError(f"checkpoint: expected a function that returns one "
                        f"tensor, got a {type(y).__name__}; cat or stack "
                        f"what it returns")
    if [version(x) for x in inputs] != before:
        raise ValueError("checkpoint: the function writes to an input, and "
                         "would find it changed when it runs again; "
                         ".clone() it inside")
    return y


def unforeseen(x: Tensor) -> Tensor:
    """The same numbers; to a compiler they might be others."""
    if not isinstance(x.device, Lazy):
        return x
    one = feed(lambda: {"one": np.ones((), x.dtype.numpy)}, x.device)["one"]
    return x & one if x.dtype is bool_ else x * one


GRADIENT[CHECKPOINT] = Rules(gradients_again)


def check_inputs(inputs: Iterable[Any]) -> None:
    for x in inputs:
        if not isinstance(x, Tensor):
            raise TypeError(f"checkpoint: expected tensors as inputs, got a "
                            f"{type(x).__name__}; give the function what "
                            f"else it needs by functools.partial")


def check_forgotten(inside: Sequence[ref[Tensor]]) -> None:
    """Refuse a function of which somebody holds more than the result."""
    if any(weak() is not None for weak in inside):
        gc.collect()  # what was written in place is its own operand
    held = [x.shape for x in (weak() for weak in inside) if x is not None]
    if held:
        raise ValueError(
            f"checkpoint: a value of shape {held[0]} with a record is held "
            f"by others than the function: pass as an input what it reads, "
            f"and .detach() what it keeps")


def accumulate(loss_of: Callable[..., Tensor],
               batches: Sequence[Sequence[Any]],
               counts: Sequence[float]) -> Tensor:
    """Add to .grad what one large batch would add; its loss, detached.

    `loss_of(*batch)` is a mean over as many as its entry in `counts`
    says: examples, or tokens that are not ignored. Only one part's
    records are there at a time.
    """
    whole = sum(counts)
    if len(counts) != len(batches) or min(counts, default=0) < 0 or not (
            0 < whole < math.inf):
        raise ValueError(f"accumulate: expected for each of {len(batches)} "
                         f"batches how many it is the mean of, got "
                         f"{list(counts)}")
    parts = []
    for batch, n in zip(batches, counts):
        # A mean over nothing is 0 / 0, and would be so after the product.
        if n:
            part = loss_of(*batch) * (n / whole)
            part.backward()
            parts.append(part.detach())
    return sum(parts[1:], parts[0])


@contextmanager
def computing_in(dtype: DType, model: Module) -> Iterator[None]:
    """Inside the block the model's weights are copies in `dtype`.

    Their gradients reach the weights themselves, which are as wide as
    before: hand these to the optimizer. Call backward() behind it. What
    asks for no gradient (a frozen weight, a statistic) stays as it is.
    """
    if not (isinstance(dtype, DType) and dtype.is_float
            and isinstance(model, Module)):
        raise TypeError(f"computing_in: expected a dtype of floats and a "
                        f"Module, got {dtype} and a {type(model).__name__}")
    copies = {id(x): x.cast(dtype) for x in model.parameters()}
    places = [(vars(module), name, value) for _, module in named_modules(model)
              for name, value in vars(module).items()
              if any(id(x) in copies
                     for _, x in named_leaves(name, value, Tensor))]
    try:
        for own, name, value in places:
            own[name] = exchanged(value, copies)
        yield
    finally:
        for own, name, value in places:
            own[name] = value


def exchanged(value: Any, copies: Mapping[int, Tensor]) -> Any:
    """What a module holds by a name, its weights replaced by copies."""
    if isinstance(value, dict):
        return {key: exchanged(x, copies) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([exchanged(x, copies) for x in value])
    return copies.get(id(value), value)


class GradScaler:
    """A factor on the loss that keeps small gradients alive in float16.

    Names and numbers are PyTorch's; `step` does what its `unscale_`,
    `step` and `update` do.
    """

    def __init__(self, init_scale: float = 2.0 ** 16,
                 growth_factor: float = 2.0, backoff_factor: float = 0.5,
                 growth_interval: int = 2000):
        if not (math.inf > init_scale > 0 and growth_interval > 0
                and math.inf > growth_factor > 1 > backoff_factor > 0):
            raise ValueError(
                f"GradScaler: expected a scale and an interval above 0, "
                f"finite growth above 1 and backoff between 0 and 1; got "
                f"{init_scale}, {growth_interval}, {growth_factor} and "
                f"{backoff_factor}")
        self.value, self.good = float(init_scale), 0
        self.growth, self.backoff = growth_factor, backoff_factor
        self.interval = growth_interval

    def scale(self, loss: Tensor) -> Tensor:
        """The loss in float32, times the factor of this moment."""
        # Fed, so that a captured step asks for it again.
        mine = proxy(self)
        fed = feed(lambda: {"scale": np.array(mine.value, np.float32)},
                   loss.device)
        return loss.cast(float32) * fed["scale"]

    def step(self, optimizer: Any, max_norm: float = math.inf) -> bool:
        """Divide the gradients, clip them and move, if all are finite.

        Whether it has moved. Outside of captured functions: it looks.
        """
        moving = [p for p in optimizer.parameters() if p.grad is not None]
        for p in moving:
            p.grad = p.grad.detach() / self.value
        sound = math.isfinite(clip_grad_norm_(moving, max_norm).item())
        if sound:
            optimizer.step()
        self.good = self.good + 1 if sound else 0
        if not sound:
            self.value *= self.backoff
        elif self.good % self.interval == 0:
            self.value *= self.growth
        return sound
