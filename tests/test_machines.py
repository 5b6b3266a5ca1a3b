"""The machines that are played differ in what they are meant to differ."""

import json
import os
import subprocess
import sys

import pytest
from machines import NO_TOOLS, PARTS, beyond, levels, machine, passes

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


def test_what_is_left_out_is_the_tools(root):
    left = {root / option.partition("=")[2] for option in NO_TOOLS}
    assert {path.stem for path in left if path.exists()} == {
        "test_tangle", "test_record", "test_weave"}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_an_older_machine_agrees(part):
    assert passes(machine(levels()[0]), [part, *NO_TOOLS])
