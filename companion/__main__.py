# Tangled from tangle, record, blas, perceptron: edit there, `make tangle`. sha256:97949b79789e  # noqa: E501
"""The command line: `python -m companion COMMAND …`."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

# chapters/appendix/tangle.md:2590
COMMANDS = {
    "tangle": "companion.literate.tangle",
    "stage": "companion.literate.stage",
    "notebook": "companion.literate.notebook",
    "lint": "companion.literate.lint",
}


# chapters/appendix/tangle.md:2598
def main(argv: list[str]) -> int:
    """Run the command that the first word names."""
    if not argv or argv[0] not in COMMANDS:
        wrong = f"no command {argv[0]!r}\n" if argv else ""
        print(wrong + usage(), file=sys.stderr)
        return 1
    return import_module(COMMANDS[argv[0]]).main(argv[1:])


# chapters/appendix/tangle.md:2611
def usage() -> str:
    """The table of commands."""
    lines = ["usage: python -m companion COMMAND …", ""]
    lines += [f"  {n:10} {purpose(m)}" for n, m in COMMANDS.items()]
    return "\n".join(lines)


# chapters/appendix/tangle.md:2618
def purpose(module: str) -> str:
    """What a command does, read from its source and not imported."""
    found = find_spec(module)
    text = Path(found.origin).read_text() if found and found.origin else ""
    match = re.search(r'def main\(.*\n    """(.*?)("""|\n)', text)
    return match[1] if match else ""


# chapters/appendix/record.md:1132
COMMANDS["execute"] = "companion.literate.execute"
COMMANDS["serve"] = "companion.literate.serve"

# chapters/tensors/blas.md:2178
COMMANDS["bench"] = "companion.timing"

# chapters/tensors/perceptron.md:481
COMMANDS["milestone"] = "companion.milestones.report"

# chapters/appendix/tangle.md:2626
if __name__ == "__main__" and __package__:
    raise SystemExit(main(sys.argv[1:]))
