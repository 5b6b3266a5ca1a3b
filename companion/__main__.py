"""The command line: `python -m companion COMMAND …`."""

import sys
from importlib import import_module

COMMANDS = {
    "tangle": "companion.literate.tangle",
    "stage": "companion.literate.stage",
    "notebook": "companion.literate.notebook",
    "lint": "companion.literate.lint",
}


def main(argv: list[str]) -> int:
    """Run the command that the first word names."""
    if not argv or argv[0] not in COMMANDS:
        wrong = f"no command {argv[0]!r}\n" if argv else ""
        print(wrong + usage(), file=sys.stderr)
        return 1
    return import_module(COMMANDS[argv[0]]).main(argv[1:])


def usage() -> str:
    """The table of commands."""
    lines = ["usage: python -m companion COMMAND …", ""]
    for name, module in COMMANDS.items():
        purpose = import_module(module).main.__doc__.split("\n")[0]
        lines.append(f"  {name:10} {purpose}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
