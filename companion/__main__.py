# Tangled from tangle, record: edit there, then `make tangle`. sha256:16a33404b45d  # noqa: E501
"""The command line: `python -m companion COMMAND …`."""

import sys
from importlib import import_module

# chapters/appendix/tangle.md:2432
COMMANDS = {
    "tangle": "companion.literate.tangle",
    "stage": "companion.literate.stage",
    "notebook": "companion.literate.notebook",
    "lint": "companion.literate.lint",
}


# chapters/appendix/tangle.md:2440
def main(argv: list[str]) -> int:
    """Run the command that the first word names."""
    if not argv or argv[0] not in COMMANDS:
        wrong = f"no command {argv[0]!r}\n" if argv else ""
        print(wrong + usage(), file=sys.stderr)
        return 1
    return import_module(COMMANDS[argv[0]]).main(argv[1:])


# chapters/appendix/tangle.md:2453
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

# chapters/appendix/tangle.md:2462
if __name__ == "__main__" and __package__:
    raise SystemExit(main(sys.argv[1:]))
