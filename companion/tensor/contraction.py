# Tangled from vocabulary: edit there, `make tangle`. sha256:f08f88179c1a
"""einsum: sums of products, told by letters."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence

from companion.tensor import Tensor
from companion.tensor.operands import same_dtype


def spelled_out(equation: str, tensors: Sequence[Tensor],
                ) -> tuple[list[str], str]:
    """The letters of each operand and of the result, without dots."""
    given, arrow, result = equation.replace(" ", "").partition("->")
    terms = given.split(",")
    if len(terms) != len(tensors):
        raise ValueError(f"einsum: {equation!r} speaks of {len(terms)} "
                         f"operands, {len(tensors)} are given")
    free = [c for c in string.ascii_letters if c not in equation]
    extra = [x.ndim - len(t.replace("...", "")) for t, x in zip(
        terms, tensors)]
    most = max([n for t, n in zip(terms, extra) if "..." in t], default=0)
    dots = "".join(free[:most])
    terms = [t.replace("...", dots[most - n:]) if n >= 0 else t
             for t, n in zip(terms, extra)]
    if not arrow:
        every = "".join(terms)
        result = "..." + "".join(sorted(
            {c for c in every if every.count(c) == 1} - set(dots)))
    return terms, result.replace("...", dots)


def axis_lengths(equation: str, terms: Sequence[str],
                 tensors: Sequence[Tensor]) -> dict[str, int]:
    """The length that each letter stands for; 1 gives way."""
    lengths: dict[str, int] = {}
    for letters, x in zip(terms, tensors):
        if len(letters) != x.ndim or not letters.isalpha() * x.ndim == x.ndim:
            raise ValueError(f"einsum: {equation!r} gives the operand of "
                             f"shape {x.shape} the axes {letters!r}")
        for letter, n in zip(letters, x.shape):
            have = lengths.get(letter, 1)
            if 1 not in (n, have) and n != have:
                raise ValueError(
                    f"einsum: in {equation!r} {letter} is {have} and {n}; "
                    f"expected one length for a letter")
            lengths[letter] = n if have == 1 else have
    return lengths


Term = tuple[str, Tensor]  # a letter for each axis


def once(term: Term) -> Term:
    """A letter that stands twice means the diagonal of its axes."""
    letters, x = term
    for letter in letters:
        while letters.count(letter) > 1:
            i = letters.index(letter)
            j = letters.index(letter, i + 1)
            x = x.diagonal(0, i, j)  # which becomes the last axis
            letters = "".join(c for k, c in enumerate(letters)
                              if k not in (i, j)) + letter
    return letters, x


def summed(term: Term, kept: str) -> Term:
    """Without the axes that nobody else wants."""
    letters, x = term
    gone = [i for i, c in enumerate(letters) if c not in kept]
    if gone:
        x = x.sum(gone)
    return "".join(c for c in letters if c in kept), x


def contracted(a: Term, b: Term, kept: str) -> Term:
    """Two operands as one: a product of stacks of matrices."""
    (p, x), (q, y) = summed(a, b[0] + kept), summed(b, a[0] + kept)
    both = "".join(c for c in p if c in q and c in kept)
    inner = "".join(c for c in p if c in q and c not in kept)
    left, right = ["".join(c for c in own if c not in other)
                   for own, other in ((p, q), (q, p))]
    length = dict(zip(p + q, x.shape + y.shape))
    stack, m, k, n = [[length[c] for c in group]
                      for group in (both, left, inner, right)]
    rows, columns = [math.prod(group) for group in (m, n)]
    x = x.permute([p.index(c) for c in both + left + inner]).reshape(
        *stack, rows, math.prod(k))
    y = y.permute([q.index(c) for c in both + inner + right]).reshape(
        *stack, math.prod(k), columns)
    product = x @ y if inner else x * y
    return both + left + right, product.reshape(*stack, *m, *n)


def einsum(equation: str, *tensors: Tensor) -> Tensor:
    """Sums of products: einsum("ik,kj->ij", a, b) is a @ b.

    Letters name axes. Those that the result does not name are summed; a
    letter that stands twice in an operand is its diagonal; `...` stands
    for all other axes. Operands are joined from the left.
    """
    terms, result = spelled_out(equation, tensors)
    lengths = axis_lengths(equation, terms, tensors)
    if len(set(result)) < len(result) or set(result) - set(lengths):
        raise ValueError(f"einsum: {equation!r}: the result {result!r} names "
                         f"an axis twice, or one of no operand")
    found = [once((t, x.broadcast(tuple([lengths[c] for c in t]))))
             for t, x in zip(terms, same_dtype(*tensors))]
    while len(found) > 1:
        a, b, *rest = found
        wanted = result + "".join(letters for letters, _ in rest)
        found = [contracted(a, b, wanted), *rest]
    letters, x = summed(found[0], result)
    return x.permute([letters.index(c) for c in result])
