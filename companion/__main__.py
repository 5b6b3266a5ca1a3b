# Tangled from tangle, record: edit there, `make tangle`. sha256:c747b42613b8
"""The command line: `python -m companion COMMAND …`."""

import sys
from importlib import import_module

# chapters/appendix/tangle.md:2458
COMMANDS = {
    "tangle": "companion.literate.tangle",
    "stage": "companion.literate.stage",
    "notebook": "companion.literate.notebook",
    "lint": "companion.literate.lint",
}


# chapters/appendix/tangle.md:2466
def main(argv: list[str]) -> int:
    """Run the command that the first word names."""
    if not argv or argv[0] not in COMMANDS:
        wrong = f"no command {argv[0]!r}\n" if argv else ""
        print(wrong + usage(), file=sys.stderr)
        return 1
    return import_module(COMMANDS[argv[0]]).main(argv[1:])


# chapters/appendix/tangle.md:2479
def usage() -> str:
    """The table of commands."""
    lines = ["usage: python -m companion COMMAND …", ""]
    for name, module in COMMANDS.items():
        purpose = import_module(module).main.__doc__.split("\n")[0]
        lines.append(f"  {name:10} {purpose}")
    return "\n".join(lines)


# chapters/appendix/record.md:1032
COMMANDS["execute"] = "companion.literate.execute"
COMMANDS["serve"] = "companion.literate.serve"

# chapters/appendix/tangle.md:2488
if __name__ == "__main__" and __package__:
    raise SystemExit(main(sys.argv[1:]))
