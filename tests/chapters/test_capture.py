# Tangled from capture: edit there, `make tangle`. sha256:09ae6771decc
from __future__ import annotations

from companion.compiler.capture import jit
from companion.dtype import float32
from companion.optim import SGD
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
    assert w.tolist() == [-2, -1] and len(step.captures) == 1
