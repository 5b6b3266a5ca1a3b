"""Ten training scripts of PyTorch's users, with only the imports changed.

The files in `scripts` are run twice: as they are, with PyTorch, and with
our imports in the place of theirs.  A line that does not run here says in
its error what to type, and runs with that.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent / "scripts"
IMPORTS = {
    "import torch\n": "import companion as torch\n",
    "import torch.nn.functional as F": "F = torch.nn.functional",
    "from torch import nn": "from companion import nn",
    "from torch.utils.data import": "from companion import",
}
# A line, what its error says to type, and the line with that.
TYPED = {
    "residual": ("values, predicted = torch.max(model(x).data, 1)",
                 r"max: .*type x.max\(1\), x.argmax\(1\)",
                 "predicted = torch.argmax(model(x).data, 1)"),
    "patches": ("conf, pred = probs.max(dim=-1)",
                r"max: .*type x.max\(1\), x.argmax\(1\)",
                "conf, pred = probs.max(dim=-1), probs.argmax(dim=-1)"),
    "schedules": ("cycle = torch.optim.lr_scheduler.OneCycleLR(",
                  r"type LambdaLR\(optimizer, one_cycle\(steps\)\)",
                  "cycle = one_cycle("),
}
NAMES = sorted(path.stem for path in SCRIPTS.glob("*.py"))
pytestmark = [pytest.mark.filterwarnings("ignore")]


def run(text, name, **names):
    exec(compile(text, f"{name}.py", "exec"), names)
    return names


def translated(name):
    text = (SCRIPTS / f"{name}.py").read_text()
    for theirs, ours in IMPORTS.items():
        text = text.replace(theirs, ours)
    assert not re.search(r"^(from|import) torch", text, re.M)
    return text


def one_cycle(optimizer, max_lr, total_steps):
    """What the error says, in the place of OneCycleLR."""
    from companion import one_cycle as factors
    from companion.lr_scheduler import LambdaLR

    return LambdaLR(optimizer, factors(total_steps))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.needs("torch")
def test_a_script_is_one_of_pytorch(name):
    assert run((SCRIPTS / f"{name}.py").read_text(), name)["result"]


@pytest.mark.parametrize("name", NAMES)
def test_a_script_runs_here_by_its_imports_alone(name):
    text = translated(name)
    if name in TYPED:
        line, said, instead = TYPED[name]
        with pytest.raises((ValueError, AttributeError), match=said):
            run(text, name)
        assert line in text
        text = text.replace(line, instead)
    assert run(text, name, one_cycle=one_cycle)["result"]


def test_there_are_ten():
    assert len(NAMES) == 10 and {*TYPED} < {*NAMES}


def test_nn_is_there_before_anybody_imports_it():
    """In a process of its own: here others have imported it."""
    text = "import companion as torch; print(torch.nn.functional.relu)"
    found = subprocess.run([sys.executable, "-c", text], text=True,
                           capture_output=True, cwd=SCRIPTS.parents[1])
    assert "function relu" in found.stdout, found.stderr
