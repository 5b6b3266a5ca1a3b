# Tangled from arrays: edit there, `make tangle`. sha256:ddaf75468024
"""What one element is: its name, its width, and how two kinds meet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np


# eq=False: a dtype equals itself alone, so `is` compares, and a look-up
# in a table needs no more than its identity.
@dataclass(frozen=True, eq=False)
class DType:
    """One element type: `kind` is b, i, u or f; `itemsize` in bytes."""

    name: str
    kind: str
    itemsize: int
    numpy: np.dtype

    def __repr__(self) -> str:
        return self.name

    @property
    def is_float(self) -> bool:
        return self.kind == "f"

    def __reduce__(self) -> str:
        """By name: a copied dtype is the dtype itself."""
        # pickle looks for a variable of this name in the dtype's module.
        return "bool_" if self.name == "bool" else self.name


def define(name: str, scalar: type) -> DType:
    numpy = np.dtype(scalar)
    # NumPy files bfloat16, a type that ml_dtypes registers, as void: V.
    kind = "f" if numpy.kind in "fV" else numpy.kind
    return DType(name, kind, numpy.itemsize, numpy)


bool_ = define("bool", np.bool_)
uint8 = define("uint8", np.uint8)
int8 = define("int8", np.int8)
int32 = define("int32", np.int32)
int64 = define("int64", np.int64)
float16 = define("float16", np.float16)
bfloat16 = define("bfloat16", ml_dtypes.bfloat16)
float32 = define("float32", np.float32)
float64 = define("float64", np.float64)

DTYPES = {
    d.name: d
    for d in (bool_, uint8, int8, int32, int64,
              float16, bfloat16, float32, float64)
}

WIDER = {
    bool_: (uint8, int8),
    # No int16 here, so int32 is the next that holds uint8 and int8.
    uint8: (int32,),
    int8: (int32,),
    int32: (int64,),
    # Not by width: an integer beside a float, even a half, takes its dtype.
    int64: (float16, bfloat16),
    float16: (float32,),
    bfloat16: (float32,),
    float32: (float64,),
    float64: (),
}


def above(dtype: DType) -> Iterator[DType]:
    """The dtypes that hold `dtype`, nearest first, itself included."""
    level = [dtype]
    while level:
        yield from level
        level = list(dict.fromkeys(w for d in level for w in WIDER[d]))


PROMOTE = {
    (a, b): next(d for d in above(a) if d in set(above(b)))
    for a in DTYPES.values() for b in DTYPES.values()
}


def promote(*dtypes: DType) -> DType:
    """The smallest dtype that every one of `dtypes` widens to."""
    result = dtypes[0]
    for dtype in dtypes[1:]:
        result = PROMOTE[result, dtype]
    return result


def scalar_dtype(value: object, beside: DType | None = None) -> DType:
    """The dtype a Python number takes beside a tensor of `beside`."""
    # First: to Python, a bool is an int.
    if isinstance(value, bool):
        return beside or bool_
    if isinstance(value, int):
        return beside if beside not in (None, bool_) else int64
    return beside if beside is not None and beside.is_float else float32


FROM_NUMPY = {d.numpy: d for d in DTYPES.values()}


def as_dtype(array: np.ndarray) -> DType:
    """Our dtype for a NumPy array's, or one clear error."""
    if array.dtype in FROM_NUMPY:
        return FROM_NUMPY[array.dtype]
    raise TypeError(
        f"{array.dtype} has no dtype here; expected one of "
        f"{', '.join(DTYPES)}; convert with .astype first")
