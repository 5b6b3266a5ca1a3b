"""What a page promises at its opening is what the page prints at its end.

A listing of Python that stands directly before a listing of text is a
promise: no cell has run yet, so the text is written by hand.  Its lines
must stand among the recorded outputs of the same page.
"""

import json
import re

import pytest

PROMISE = re.compile(r"```python\n.+?\n```\n\n```text\n(.+?)\n```", re.S)


def printed(path):
    """Everything that the cells of a recorded notebook print."""
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        for output in cell.get("outputs", []):
            text = output.get("text", output.get("data", {}).get("text/plain"))
            parts.append("".join(text or "") + "\n")
            if output["output_type"] == "error":
                parts.append(f"{output['ename']}: {output['evalue']}\n")
    return re.sub(r"\n{2,}", "\n", "".join(parts))


def promises(root):
    for path in sorted((root / "chapters").glob("*/*.md")):
        for promise in PROMISE.findall(path.read_text()):
            yield path.stem, promise


def test_every_promise_is_kept(root):
    broken = [
        f"{name}: {line}"
        for name, promise in promises(root)
        for output in [printed(root / f"site/notebooks/{name}.ipynb")]
        for line in promise.splitlines()
        if line.strip() and line not in output
    ]
    assert broken == []


OPENED = ["arrays", "operations", "tensors", "indexing", "layers"]


@pytest.mark.parametrize("name", OPENED)
def test_pages_that_open_with_a_listing_are_seen(root, name):
    assert name in dict(promises(root))


def test_the_c_on_the_first_screen_is_what_the_compiler_writes(root):
    page = (root / "chapters/compiler/codegen.md").read_text()
    (text,) = re.findall(r"%%c opened.c .+?\) \{\n(.+?)\n\}\n", page, re.S)
    assert text in printed(root / "site/notebooks/codegen.ipynb")
