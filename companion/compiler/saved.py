# Tangled from capture: edit there, `make tangle`. sha256:b92b3e7b16fc
"""Captured calls in files."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from companion import ops
from companion.compiler.capture import (
    LOCK, NESTS, Capture, Jit, memory_of, name_of, replaced_in, tensors_in)
from companion.compiler.graph import OpNode, toposort
from companion.compiler.lazy import along
from companion.compiler.program import compile_graph
from companion.device import CPU
from companion.dtype import DTYPES, DType
from companion.ops import BUFFER, Window
from companion.tensor import Tensor, wrap
from companion.training import (
    packed, read_safetensors, unpacked, write_atomically)


def outline(value: Any) -> str:
    """Shapes and dtypes in a nest of tensors or nodes, and all else."""
    if isinstance(value, (Tensor, OpNode)):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, dict):
        return "{" + ", ".join([f"{key!r}: {outline(part)}"
                                for key, part in value.items()]) + "}"
    if not isinstance(value, NESTS):
        return repr(value)
    parts = ", ".join(map(outline, value))
    return f"[{parts}]" if isinstance(value, list) else f"({parts})"


def spelled(arg: Any) -> Any:
    """An operation's argument with dtypes by name."""
    if isinstance(arg, DType):
        return str(arg)
    return tuple(map(spelled, arg)) if isinstance(arg, tuple) else arg


def understood(arg: Any) -> Any:
    """The argument that `spelled` wrote: its only texts are dtypes."""
    if isinstance(arg, str):
        return DTYPES[arg]
    return tuple(map(understood, arg)) if isinstance(arg, tuple) else arg


# Arguments whose tuples have names, which a file does not keep.
READ: dict[str, Callable[[Any], Any]] = {
    "CONV": lambda windows: tuple(starmap(Window, windows))}


def save_program(step: Jit, path: str | Path) -> None:
    """Write the program of a captured function to a safetensors file.

    Its values go with it. ValueError: there is not exactly one program,
    or it asks for numbers at each call, as optimizers and dropout do.
    """
    name, calls = name_of(step.function), step.programs
    if len(calls) != 1:
        raise ValueError(f"save_program: {name} has {len(calls)} programs; "
                         f"expected one: jit a function of its own, and "
                         f"call it three times with arguments of one kind")
    (call,) = calls
    if any(places for _, places in call.fed):
        raise ValueError(f"save_program: {name} asks for numbers at each "
                         f"call, and a file has nobody to ask; save what "
                         f"neither draws numbers nor has an optimizer")
    arrays: dict[str, np.ndarray] = {}
    about = json.dumps(packed(written(call), "program", arrays))
    write_atomically(Path(path), save(arrays, {"program": about}))


def written(call: Capture) -> dict[str, Any]:
    """A captured call as names, numbers and arrays."""
    call.return_home()
    was: dict[Any, OpNode] = dict(call.kept)
    found: list[Any] = tensors_in(call.result)
    results = [along(was.get(x.buffer.storage, memory_of(x)),
                     x.buffer.moves)[-1] for x in found]
    changed = {call.before[p]: node for p, node in call.kept
               if p in call.before and call.before[p].op is BUFFER}
    order = toposort(*results, *changed.values(), *changed, *call.inputs)
    place = {node: i for i, node in enumerate(order)}
    marks = iter([Tensor(np.zeros(0)) for _ in results])
    return {
        "arguments": outline(call.arguments),
        "inputs": [place[x] for x in call.inputs],
        "result": replaced_in(call.result, marks),
        "results": [place[x] for x in results],
        "changed": [[place[x], place[y]] for x, y in changed.items()],
        "nodes": [[str(node.op), [place[x] for x in node.src],
                   value_of(node, call)] for node in order]}


def value_of(node: OpNode, call: Capture) -> Any:
    """What a node has besides its operands; of arguments, the kind."""
    if node.op is not BUFFER:
        return spelled(node.arg)
    if node in call.inputs:
        return str(node.dtype), node.shape
    return np.array(node.arg.array)


def read_nodes(nodes: Any) -> list[OpNode]:
    """The operations of a file, each on those before it."""
    made: list[OpNode] = []
    for i, (op, src, arg) in enumerate(nodes):
        if not all(0 <= j < i for j in src):
            raise ValueError(f"operation {i} reads {src}")
        if op != "BUFFER":
            made.append(OpNode(getattr(ops, op), tuple(
                [made[j] for j in src]), READ.get(op, understood)(arg)))
            continue
        array = arg if isinstance(arg, np.ndarray) else np.zeros(
            arg[1], DTYPES[arg[0]].numpy)
        made.append(OpNode(BUFFER, (), CPU.adopt(np.array(array))))
    return made


class SavedProgram:
    """A function out of a file: see `load_program`."""

    def __init__(self, about: dict[str, Any]):
        nodes = read_nodes(about["nodes"])
        changed = [(nodes[i], nodes[j]) for i, j in about["changed"]]
        roots = [nodes[i] for i in about["results"]]
        self.arguments, self.result = about["arguments"], about["result"]
        self.inputs = [nodes[i] for i in about["inputs"]]
        self.count = len(roots)
        self.program = compile_graph(
            [*roots, *[new for _, new in changed]],
            {len(roots) + i: old for i, (old, _) in enumerate(changed)})

    def __call__(self, *args: Any, **named: Any) -> Any:
        named = dict(sorted(named.items()))
        given = outline((args, named))
        if given != self.arguments:
            raise TypeError(f"a saved program takes {self.arguments}, "
                            f"got {given}")
        values = [x.device.host(x.buffer).dense()
                  for x in tensors_in([args, named])]
        with LOCK:
            found = self.program(dict(zip(self.inputs, values)),
                                 range(self.count))
        new = [wrap(x, CPU) for x in found[:self.count]]
        return replaced_in(self.result, iter(new))


def load_program(path: str | Path) -> SavedProgram:
    """What `save_program` wrote, compiled for this machine.

    It takes tensors of any device, and returns tensors of the CPU.
    ValueError: the file is damaged, or something else.
    """
    try:
        arrays, about = read_safetensors(Path(path))
        return SavedProgram(unpacked(json.loads(about["program"]), arrays))
    except (AttributeError, IndexError, KeyError, TypeError,
            ValueError) as error:
        raise ValueError(f"{path} is no program that save_program wrote "
                         f"({type(error).__name__}: {error})") from None
