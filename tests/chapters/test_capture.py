# Tangled from capture: edit there, `make tangle`. sha256:a5684c899835
from __future__ import annotations

from functools import partial
from typing import Any

from companion.compiler.capture import jit, seen, surroundings
from companion.dtype import float32
from companion.layers import Dropout
from companion.literate import message
from companion.optim import SGD, AdamW
from companion.tensor import Tensor


def test_a_step_is_repeated():
    w = Tensor([1.0, 2.0], float32, "lazy").requires_grad_()
    optimizer = SGD([w], 0.5)

    @jit
    def step(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = (w * x).sum()
        loss.backward()
        optimizer.step()
        return loss.detach()
    one = Tensor([1.0, 1.0], float32)
    assert [step(one).item() for _ in range(4)] == [3, 2, 1, 0]
    assert w.tolist() == [-1, 0] and w.grad.tolist() == [1, 1]
    optimizer.param_groups[0]["lr"] = 1.0
    step(one)
    assert w.tolist() == [-2, -1] and len(step.programs) == 1


def test_what_would_be_frozen_is_told():
    w = Tensor([1.0, 2.0], float32, "lazy").requires_grad_()

    def brings(x: Tensor) -> Any:
        w.detach().assign(w.detach() + Tensor([1.0, 1.0], device="lazy"))

    once = partial(jit(brings), Tensor([1.0, 3.0], float32))
    once()
    before = w.tolist()
    assert "were brought" in message(once, ValueError)
    assert w.tolist() == before


def test_settings_that_change_are_seen():
    layer, factor = Dropout(0.5), 2.0
    w = Tensor([1.0], float32, "lazy").requires_grad_()
    optimizer = AdamW([w], betas=(0.9, 0.99))

    def reads(x: Tensor) -> Tensor:
        w.grad = x * factor
        optimizer.step()
        return layer(x) * factor
    around = surroundings(reads)
    kinds = [seen(around())]
    for change in (layer.eval, lambda: setattr(layer, "p", 0.25),
                   lambda: optimizer.param_groups[0].update(betas=(0, 0)),
                   lambda: optimizer.param_groups[0].update(eps=1.0)):
        change()
        kinds.append(seen(around()))
    factor = -0.0
    kinds.append(seen(around()))
    factor = 0.0
    kinds.append(seen(around()))
    assert len(set(kinds)) == 7
    optimizer.param_groups[0]["lr"] = 0.5
    assert seen(around()) == kinds[-1] and hash(kinds[-1])
