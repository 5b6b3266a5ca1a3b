# Tangled from quantization: edit there, `make tangle`. sha256:51bf0ed701f6
"""Products of few bits, beside floats and beside PyTorch's int8."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from companion.native import set_threads
from companion.quantize import (
    HalfWeight, IntegerWeight, QuantizedWeight, Scheme)
from companion.tensor import Tensor, from_numpy
from companion.timing import MISSING, compare, stamp

SHAPES = {"512 rows, 768 to 3072": (512, 3072, 768),
          "512 rows, 3072 to 768": (512, 768, 3072),
          "1 row, 4096 to 4096": (1, 4096, 4096)}
KINDS: dict[str, Callable[[Tensor], Any]] = {
    "float32": lambda w: w,
    "bfloat16": HalfWeight,
    "int8": QuantizedWeight,
    "int4": lambda w: QuantizedWeight(w, Scheme(4, 64)),
    "whole numbers": IntegerWeight}


def drawn_pair(shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Rows and a weight, the same for all."""
    m, n, k = shape
    draw = np.random.default_rng(0)
    x = draw.standard_normal((m, k), dtype=np.float32)
    w = draw.standard_normal((n, k), dtype=np.float32) / k ** 0.5
    return from_numpy(x), from_numpy(w.astype(np.float32))


def ours(shape: tuple[int, int, int], kind: str,
         threads: int) -> Callable[[], np.ndarray]:
    """Our product with a weight of this kind."""
    set_threads(threads)
    x, weight = drawn_pair(shape)
    kept = KINDS[kind](weight)
    return lambda: (x @ kept.T).numpy()


def torchs(shape: tuple[int, int, int], kind: str,
           threads: int) -> Callable[[], np.ndarray]:
    """PyTorch's linear layer, of floats or dynamically quantized."""
    torch: Any = import_module("torch")
    torch.set_num_threads(threads)
    rows, weight = drawn_pair(shape)
    layer = torch.nn.Linear(shape[2], shape[1], bias=False)
    x = torch.from_numpy(rows.numpy())
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight.numpy()))
    if kind != "float32":
        with warnings.catch_warnings():
            # That its successor lies in another package.
            warnings.simplefilter("ignore")
            layer = torch.ao.quantization.quantize_dynamic(
                torch.nn.Sequential(layer), {torch.nn.Linear})

    @torch.inference_mode()
    def run() -> np.ndarray:
        return layer(x).numpy()
    return run


def agree(one: np.ndarray, other: np.ndarray) -> None:
    """Products of few bits are equal within a few per cent of their size."""
    away = float(np.sqrt(np.square(one - other).mean()) / one.std())
    if not away < 0.15:
        raise AssertionError(f"products differ by {away:.0%} of their size")


READ, TOKEN = "512 rows, 768 to 3072", "1 row, 4096 to 4096"
QUICK = ((READ, "whole numbers"), (TOKEN, "int8"))
RACES = (*QUICK, ("512 rows, 3072 to 768", "whole numbers"),
         (TOKEN, "bfloat16"), (TOKEN, "int4"))


def bench(threads: int, quick: bool) -> Iterator[dict]:
    """Milliseconds of products, beside floats and beside PyTorch's int8."""
    there = importlib.util.find_spec("torch") is not None
    about = stamp("torch")  # loads it, once for all that are forked below
    for case, kind in QUICK if quick else RACES:
        for peer, setup, other in (("our float32", ours, "float32"),
                                   ("torch int8", torchs, "int8")):
            found = compare(
                partial(ours, SHAPES[case], kind, threads),
                partial(setup, SHAPES[case], other, threads),
                rounds=5 if quick else 15, tries=1 if quick else 4,
                agree=agree) if there or setup is ours else None
            yield {"bench": "quantize", "case": f"{case}, {kind}",
                   "threads": threads, "unit": "ms", **about,
                   **(found.line(lambda s: 1e3 * s) if found else MISSING),
                   "peer_name": peer}
