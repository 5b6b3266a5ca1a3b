"""Programs of launches beside the interpreter, on the emulated card."""

import numpy as np
import pytest
import test_compiled as programs

import companion.compiler.launch  # noqa: F401
from companion.compiler import program as compiler
from companion.compiler.graph import OpNode, interpret, toposort
from companion.device import CPU, named
from companion.buffer import Buffer
from companion.ops import BUFFER
from companion.view import View

EXACT = "-ffp-contract=off"  # no multiplication and addition in one


def there(gpu, node):
    """A leaf in the card's memory, as it lies here."""
    x = node.arg
    memory = gpu.adopt(np.array(x.storage.bytes))
    return OpNode(BUFFER, (), Buffer(memory.storage, x.view, x.dtype))


def moved(gpu, roots):
    """The roots on leaves of the card, and what these are here."""
    new, known = {}, {}
    for node in toposort(*roots):
        if node.op is BUFFER:
            new[node] = there(gpu, node)
            known[new[node]] = node.arg
        else:
            new[node] = OpNode(
                node.op, tuple([new[x] for x in node.src]), node.arg)
    return [new[root] for root in roots], known


def check(gpu, roots, monkeypatch, *flags):
    """Each stored value is the interpreter's, of what it was made of."""
    monkeypatch.setattr(compiler, "Plan", programs.Apart)
    roots, known = moved(gpu, roots)
    program = compiler.compile_graph(roots, {}, *flags, device=gpu)
    program()
    values = {node: gpu.host(value)
              for node, value in programs.values_of(program).items()}
    for node, value in values.items():
        others = {x: v for x, v in values.items() if x is not node}
        (expected,) = interpret([node], CPU, known | others)
        programs.assert_close(value.array, expected.array, repr(node))
    return program


@pytest.fixture
def gpu():
    return named("emulated")


@pytest.mark.parametrize("start", range(0, 250, 25))
def test_random_programs(gpu, start, monkeypatch):
    roots = [root for seed in range(start, start + 25)
             for root in programs.random_roots(seed)]
    check(gpu, roots, monkeypatch, EXACT)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(24))
def test_every_operation(gpu, part, monkeypatch):
    names = sorted(programs.table.OPERATIONS)[part::24]
    roots = [root for name in names
             for root in programs.operation_roots(name, 3)]
    check(gpu, roots, monkeypatch, EXACT)
