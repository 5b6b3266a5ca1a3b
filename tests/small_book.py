"""Books of a few lines, for the tests of the tools."""

from pathlib import Path

from companion.literate.source import read_book

FRONT = """\
---
jupytext: {{text_representation: {{extension: .md, format_name: myst}}}}
kernelspec: {{name: python3, display_name: Python 3}}
companion: {{module: {module}, outcomes: {{}}}}
---
# {title}

"""
CONFIG = """\
repository:
  url: https://github.com/someone/some-book
  branch: main
bibtex_bibfiles: [references.bib]
"""
BIB = """\
@book{knuth1992,
  author = {Donald E. Knuth}, title = {Literate Programming}, year = {1992}
}
"""


def cell(source, *tags, **options):
    """A code cell as a chapter writes it."""
    lines = [f":tags: [{', '.join(tags)}]"] if tags else []
    lines += [f":{key}: {value}" for key, value in options.items()]
    return "\n".join(["```{code-cell} python", *lines, source, "```", "", ""])


def page(name, *blocks):
    """A chapter; its module is one that stands on a floor."""
    module = {"first": "layers.py", "second": "losses.py"}.get(name, "data.py")
    front = FRONT.format(module=module, title=name.title())
    return front + "".join(f"{block}\n" for block in blocks)


def small_book(folder, **pages):
    """Write a book of the given chapters into `folder` and read it."""
    folder = Path(folder)
    (folder / "chapters").mkdir(parents=True, exist_ok=True)
    for old in (folder / "chapters").glob("*.md"):
        old.unlink()
    for name, text in pages.items():
        (folder / f"chapters/{name}.md").write_text(text, encoding="utf-8")
    files = "".join(f"- file: chapters/{name}\n" for name in pages)
    toc = f"format: jb-book\nroot: intro\nchapters:\n{files}"
    (folder / "_toc.yml").write_text(toc)
    (folder / "intro.md").write_text("# Intro\n")
    (folder / "_config.yml").write_text(CONFIG)
    (folder / "references.bib").write_text(BIB)
    return read_book(folder)
