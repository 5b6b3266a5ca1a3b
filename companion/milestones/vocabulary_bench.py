# Tangled from vocabulary: edit there, `make tangle`. sha256:2c69c6f13c0c
from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from companion.timing import beside, stamp

CASES: dict[str, tuple[tuple[int, ...], Callable[..., Any]]] = {
    "topk 50 of 50,000": ((16, 50_000), lambda m, x: m.topk(x, 50)[0]),
    "sort rows of 1,000": ((1000, 1000), lambda m, x: m.sort(x)[0]),
    "cumsum along rows": ((1000, 1000), lambda m, x: m.cumsum(x, 1)),
    "cumsum along few rows": ((100, 1000), lambda m, x: m.cumsum(x, 1)),
    "cumsum along many rows": ((10_000, 1000), lambda m, x: m.cumsum(x, 1)),
    "cumsum along one row": ((1_000_000,), lambda m, x: m.cumsum(x, 0)),
    "cumsum down columns": ((1000, 1000), lambda m, x: m.cumsum(x, 0)),
    "gather along rows": ((1000, 1000), lambda m, x: m.gather(
        x, 1, places(m))),
    "einsum bik,bkj->bij": ((64, 64, 64), lambda m, x: m.einsum(
        "bik,bkj->bij", x, x)),
    "einsum ij,kj->ik": ((512, 512), lambda m, x: m.einsum(
        "ij,kj->ik", x, x)),
}
INDEX = np.random.default_rng(1).integers(0, 1000, (1000, 500))


def places(m: Any) -> Any:
    """Where to gather, as a tensor of either package."""
    return m.from_numpy(INDEX)


def ready(m: Any, case: str) -> Callable[[], np.ndarray]:
    """A case for one of the packages, ready to run."""
    shape, call = CASES[case]
    draw = np.random.default_rng(0)
    x = m.from_numpy(draw.standard_normal(shape, dtype=np.float32))
    return lambda: call(m, x).numpy()


def bench(threads: int, quick: bool) -> Iterator[dict]:
    """Words whose derivation is long, beside PyTorch's."""
    line = {"bench": "vocabulary", "threads": threads, "unit": "ms",
            **stamp("torch")}
    for case in CASES:
        yield {**line, "case": case, **beside(
            partial(ready, import_module("companion"), case),
            partial(peer, threads, case), quick, 1e-3,
            agree=partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3))}


def peer(threads: int, case: str) -> Callable[[], np.ndarray]:
    """PyTorch's side of a case."""
    torch: Any = import_module("torch")
    torch.set_num_threads(threads)
    return ready(torch, case)
