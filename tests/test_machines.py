"""The machines that are played differ in what they are meant to differ."""

import json
import os
import subprocess
import sys

import pytest
from machines import beyond, elsewhere, levels, machine

from companion.native import instruction_sets

ASK = """
import json
from numpy._core._multiarray_umath import __cpu_features__ as has
from companion.native import POOL, march
print(json.dumps([march(), POOL.threads, [f for f in has if has[f]]]))
"""


@pytest.mark.parametrize("level", levels())
def test_a_machine_is_what_it_plays(level):
    told = machine(level)
    shown = subprocess.check_output(
        [sys.executable, "-c", ASK], env=os.environ | told, text=True
    )
    flag, threads, has = json.loads(shown)
    assert flag.endswith(f"={level}") and not {*has} & {*beyond(level)}
    assert threads == int(told["COMPANION_THREADS"])


SOURCES = """
from companion import mnist, names, shakespeare
print(mnist("test").source, len(names()), len(shakespeare()))
"""


def test_elsewhere_there_are_no_data():
    shown = subprocess.run(
        [sys.executable, "-c", SOURCES],
        env=os.environ | elsewhere(), text=True, capture_output=True,
    )  # fmt: skip
    source, *sizes = shown.stdout.split()
    assert source == "drawn" and all(int(n) < 30_000 for n in sizes)
    assert "stand in for MNIST" in shown.stderr


PROGRAM = """
import numpy as np
from companion import GPT, AdamW, GPTConfig, jit, next_token_loss, randint

net = GPT(GPTConfig(16, 31, 2, 2, 32)).to("lazy")
x, y = [randint(0, 31, (4, 16)).to("lazy") for _ in "xy"]
optimizer = AdamW(net.parameters())


@jit
def step(x, y):
    optimizer.zero_grad()
    loss = next_token_loss(net, x, y)
    loss.backward()
    optimizer.step()
    return loss.detach()


for _ in range(4):
    step(x, y).item()
assert len(step.programs) == 1 and np.longdouble(2) * 3 == 6
"""


@pytest.mark.parametrize("level", instruction_sets())
def test_a_program_leaves_the_processor_as_it_was(level):
    """Long doubles live in registers that MMX uses, too."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True,
        env=os.environ | {"COMPANION_MARCH": level}, timeout=300)
    assert run.returncode == 0, run.stderr
