# Tangled from vocabulary: edit there, `make tangle`. sha256:917b1fef3b9f
"""What users of PyTorch and NumPy type, beside the methods."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from companion.tensor import Tensor


def function(name: str) -> Callable[..., Any]:
    """A method as a function: m.exp(x) for x.exp()."""
    method = getattr(Tensor, name)

    @functools.wraps(method)
    def called(x: Any, *args: Any, **options: Any) -> Any:
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: expected a Tensor, got {x!r:.40}; wrap "
                            f"it in Tensor(…)")
        return method(x, *args, **options)
    return called


def __getattr__(name: str) -> Any:
    """A function for each method that has a name of its own here."""
    if name not in FUNCTIONS:
        raise AttributeError(f"there is no function {name}")
    return function(name)


FUNCTIONS = """
    abs absolute acos acosh add all allclose amax amin any arccos arcsin
    arctan argmax argmin argsort asin asinh atan atan2 atanh bitwise_and
    bitwise_not bitwise_or bitwise_xor bmm ceil chunk clamp clip clone
    copysign cos cosh count_nonzero cummax cummin cumprod cumsum detach diag
    diagonal diff div divide dot eq equal erf exp exp2 expm1 fix flatten flip
    floor floor_divide fmod frac gather ge gt hypot index_add index_select
    isclose isfinite isinf isnan kthvalue le lerp log log10 log1p log2
    log_softmax logaddexp logcumsumexp logical_and logical_not logical_or
    logical_xor logsumexp lt masked_fill masked_select matmul max maximum
    mean min minimum mm moveaxis movedim mul multiply nan_to_num narrow ne
    neg negative nonzero norm numel outer permute pow prod ravel reciprocal
    remainder repeat_interleave reshape roll round rsqrt scatter scatter_add
    select sigmoid sign sin sinh softmax sort split sqrt square squeeze std
    std_mean sub subtract sum swapaxes t take_along_axis take_along_dim tan
    tanh topk trace transpose tril triu true_divide trunc unflatten unique
    unsqueeze var var_mean""".split()
