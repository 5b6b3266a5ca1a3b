"""The record: each chapter as a notebook that Colab opens, nbval checks."""

import argparse
import posixpath
import re
import sys
from dataclasses import dataclass
from functools import partial

import nbformat
import yaml
from nbformat.v4 import new_code_cell, new_notebook, new_output
from pybtex.database import parse_file

from companion.literate.execute import (
    RECORD,
    code_cells,
    execute,
    read_notebook,
    tagged,
)
from companion.literate.runtime import PREFIX
from companion.literate.source import (
    FENCE,
    SourceError,
    closing,
    read_book,
    split_options,
)
from companion.literate.stage import replace

INSTALL = """\
# On Colab: install the library. Where it is installed, do nothing.
from importlib.util import find_spec

if not all(map(find_spec, ["companion", "ml_dtypes", "hypothesis"])):
    %pip install --quiet "companion @ git+{url}@{branch}" hypothesis"""


# ------------------------------------------------------------ addresses


@dataclass(frozen=True)
class Addresses:
    """Where the book's pages, labels and sources stand on the web."""

    site: str
    repository: str
    branch: str
    titles: dict[str, str]  # page -> title
    labels: dict[str, tuple[str, str]]  # label -> (page, text)
    sources: dict[str, str]  # key of the bibliography -> Author year

    def page(self, page, anchor=""):
        address = f"{self.site}/{page}.html"
        return f"{address}#{anchor}" if anchor else address

    def file(self, path):
        return f"{self.repository}/raw/{self.branch}/{path}"

    def holding(self, directive):
        """The page that holds the glossary or the bibliography."""
        return self.labels.get("{" + directive + "}", ("intro", ""))[0]


def addresses(book):
    """Read `_config.yml`, every chapter's labels, and the sources."""
    text = (book.root / "_config.yml").read_text(encoding="utf-8")
    config = yaml.safe_load(text)
    repository = config["repository"]["url"].removesuffix("/")
    owner, name = repository.split("/")[-2:]
    labels = {}
    for chapter in book.chapters:
        labels.update(find_labels(page_of(chapter), chapter.text))
    return Addresses(
        site=f"https://{owner}.github.io/{name}",
        repository=repository,
        branch=config["repository"].get("branch", "main"),
        titles={page_of(c): c.title for c in book.chapters},
        labels=labels,
        sources=cited_as(book, config.get("bibtex_bibfiles", [])),
    )


def page_of(chapter):
    return chapter.path.removesuffix(".md")


TARGET = re.compile(r"\(([^()\s]+)\)=\s*$", re.M)
LABELLED = re.compile(r"^\(([^()\s]+)\)=\s*\n+(?:#+ +(.+))?", re.M)
NAMED = re.compile(r"^:(?:name|label): *(\S+)", re.M)
LISTING = re.compile(r"^[`:]{3,}(\{(?:glossary|bibliography)\})", re.M)


def find_labels(page, text):
    """What a reference may name on this page, with its text."""
    found = {name: (page, name) for name in NAMED.findall(text)}
    for name, heading in LABELLED.findall(text):
        found[name] = (page, heading or name)
    found.update({name: (page, "") for name in LISTING.findall(text)})
    return found


def cited_as(book, files):
    """`{key: "Knuth 1984"}` for every entry of the bibliography."""
    found = {}
    for file in files:
        entries = parse_file(str(book.root / file)).entries
        for key, entry in entries.items():
            people = entry.persons.get("author", [])
            names = [" ".join(person.last_names) for person in people]
            who = names[0] if names else entry.fields.get("title", key)
            more = " et al." if len(names) > 2 else ""
            both = f" and {names[1]}" if len(names) == 2 else more
            found[key] = f"{who}{both} {entry.fields.get('year', '')}".strip()
    return found


# ------------------------------------------------ MyST to plain Markdown


@dataclass(frozen=True)
class Page:
    """One page being rewritten, and what its text may refer to."""

    name: str
    web: Addresses
    glued: dict[str, str]

    def rewrite(self, text):
        """MyST as plain Markdown, block by block."""
        lines, out, prose, at = text.split("\n"), [], [], 0
        while at < len(lines):
            fence = FENCE.match(lines[at])
            if not fence:
                prose.append(lines[at])
                at += 1
                continue
            end = closing(self.name, lines, at, fence[1])
            out += [self.inline(prose), self.block(lines[at : end + 1])]
            prose, at = [], end + 1
        out.append(self.inline(prose))
        return re.sub(r"\n{3,}", "\n\n", "\n\n".join(out)).strip()

    def block(self, lines):
        """A fenced block: plain code stays, a directive is rewritten."""
        head = re.match(r"[`:~]{3,}\s*\{([^}]+)\}\s*(.*)", lines[0])
        if not head:
            return "\n".join(lines)
        name, argument = head.groups()
        text, taken = split_options(lines[1:-1])
        options = yaml.safe_load(text) or {}
        body = "\n".join(lines[1 + taken : -1]).strip("\n")
        rewrite = DIRECTIVES.get(name, partial(quote, title=name.title()))
        return rewrite(self, argument, options, body)

    def inline(self, lines):
        """A run of paragraphs with its roles and links rewritten."""
        kept = [line for line in lines if not UNSEEN.match(line)]
        return INLINE.sub(self.span, "\n".join(kept))

    def span(self, match):
        """One role, link, code span or formula."""
        if match["role"]:
            rewrite = ROLES.get(match["role"], code)
            return rewrite(self, *text_and_target(match["content"]))
        if match["target"]:
            text = INLINE.sub(self.span, match["text"])
            return self.link(match["bang"], text, match["target"])
        return match[0]

    def link(self, bang, text, target):
        """A Markdown link or image, made absolute."""
        if re.match(r"[a-z]+:", target):
            return f"{bang}[{text}]({target})"
        label = target.removeprefix("#")
        if label in self.web.labels:
            return reference(self, text, label)
        path, _, anchor = target.partition("#")
        path = self.resolve(path) if path else self.name + ".md"
        page = path.removesuffix(".md")
        if page in self.web.titles:
            text = text or self.web.titles[page]
            return f"{bang}[{text}]({self.web.page(page, anchor)})"
        return f"{bang}[{text}]({self.web.file(path)})"

    def resolve(self, path):
        """A path relative to this page, or absolute, from the root."""
        here = posixpath.dirname(self.name)
        return posixpath.normpath(posixpath.join("/", here, path))[1:]


UNSEEN = re.compile(r"\([^()\s]+\)=\s*$|%(\s|$)|\+\+\+|\{[.#][^}]*\}\s*$")
INLINE = re.compile(
    r"\{(?P<role>[a-zA-Z][\w:+.-]*)\}(?P<ticks>`+)(?P<content>.+?)(?P=ticks)"
    r"|(?P<code>`+)(?!`).+?(?<!`)(?P=code)(?!`)"
    r"|\$\$.+?\$\$|\$[^$\n]+\$"
    r"|(?P<bang>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)",
    re.S,
)


def text_and_target(content):
    """`text <target>` as a pair; without a text, an empty one."""
    content = " ".join(content.split())
    found = re.fullmatch(r"(.*?)\s*<([^<>]+)>", content)
    return found.groups() if found else ("", content)


# Roles: page, text, target -> Markdown.


def reference(page, text, label):
    where, title = page.web.labels.get(label, (page.name, label))
    text = re.sub(r"\s*(%s|\{number\})", "", text) or title
    anchor = label.lower().replace("_", "-")
    return f"[{text}]({page.web.page(where, anchor)})"


def document(page, text, target):
    where = page.resolve(target)
    text = text or page.web.titles.get(where, target)
    return f"[{text}]({page.web.page(where)})"


def term(page, text, target):
    anchor = "term-" + re.sub(r"[^a-zA-Z0-9._]+", "-", target)
    where = page.web.page(page.web.holding("glossary"), anchor)
    return f"[{text or target}]({where})"


def cite(page, text, target):
    where = page.web.page(page.web.holding("bibliography"))
    keys = [key.strip() for key in target.split(",")]
    return ", ".join(
        f"[{page.web.sources.get(key, key)}]({where})" for key in keys
    )


def glued(page, text, target):
    return page.glued.get(target, f"`{target}`")


def code(page, text, target):
    return f"`{text or target}`"


def wrapped(before, after):
    return lambda page, text, target: before + (text or target) + after


def nothing(page, *ignored):
    return ""


ROLES = {
    **dict.fromkeys(["ref", "numref", "eq", "any"], reference),
    **dict.fromkeys(["cite", "cite:p", "cite:t"], cite),
    **dict.fromkeys(["glue", "glue:text", "glue:md"], glued),
    "abbr": lambda page, text, target: re.sub(r" *\(.*\)", "", target),
    "doc": document,
    "index": nothing,
    "kbd": wrapped("<kbd>", "</kbd>"),
    "math": wrapped("$", "$"),
    "sub": wrapped("<sub>", "</sub>"),
    "sup": wrapped("<sup>", "</sup>"),
    "term": term,
}


# Directives: page, argument, options, body -> Markdown.


def quote(page, argument, options, body, title=""):
    """A box of the page as a quotation with a bold title."""
    heading = page.inline([argument]) or title
    text = f"**{heading}**\n\n" if heading else ""
    return quoted(text + page.rewrite(body))


def quoted(text):
    return "\n".join(f"> {line}".rstrip() for line in text.split("\n"))


def figure(page, argument, options, body):
    alt = options.get("alt", "")
    image = page.link("!", alt, argument)
    return f"{image}\n\n{quoted(page.rewrite(body))}" if body else image


def formula(page, argument, options, body):
    return f"$$\n{(argument + body).strip()}\n$$"


def listing(page, argument, options, body):
    return f"```{argument}\n{body}\n```"


def content(page, argument, options, body):
    heading = f"**{page.inline([argument])}**\n\n" if argument else ""
    return heading + page.rewrite(body)


def list_table(page, argument, options, body):
    """Rows written as nested lists, as a Markdown table."""
    rows = [
        [cell.strip() for cell in re.split(r"^ {2}- ?", row, flags=re.M)[1:]]
        for row in re.split(r"^\* ", body.replace("\n* -", "\n*   -"), flags=re.M)
    ]
    rows = [[" ".join(c.split()) for c in row] for row in rows if row]
    rule = ["---"] * len(rows[0])
    lines = [f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]]]
    return page.inline([f"**{argument}**\n\n" * bool(argument), *lines])


def elsewhere(page, argument, options, body):
    """What only a web page can show."""
    where = page.web.page(page.name)
    return f"*[This part is interactive: see it on the page]({where}).*"


DIRECTIVES = {
    **dict.fromkeys(["figure", "image"], figure),
    **dict.fromkeys(["code", "code-block", "sourcecode"], listing),
    **dict.fromkeys(["raw", "iframe"], elsewhere),
    **dict.fromkeys(["bibliography", "tableofcontents", "index"], nothing),
    **dict.fromkeys(["div", "container", "grid", "tab-set"], content),
    **dict.fromkeys(["grid-item", "tab-item", "card", "table"], content),
    **dict.fromkeys(["admonition", "margin", "sidebar", "epigraph"], quote),
    "list-table": list_table,
    "math": formula,
}


# ----------------------------------------------------------- the record


def assemble(book, name, values, web=None):
    """The chapter's notebook without outputs; `values` for its glue."""
    chapter = book.chapter(name)
    web = web or addresses(book)
    page = Page(page_of(chapter), web, values)
    source = read_notebook(chapter)
    for cell in source.cells:
        if cell.cell_type == "markdown":
            cell.source = page.rewrite(cell.source)
    install = INSTALL.format(url=web.repository, branch=web.branch)
    first = new_code_cell(install, id="install", execution_count=1)
    kept = [c for c in source.cells if c.source]
    return new_notebook(cells=[first, *kept], metadata=about(source))


def about(source):
    """The notebook's metadata: its kernel, and what tangle reads."""
    kernel = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    if "companion" in source.metadata:
        metadata["companion"] = source.metadata["companion"]
    if any(tagged(cell, "gpu") for cell in code_cells(source)):
        metadata["accelerator"] = "GPU"
    return metadata


def record(book, name, web=None):
    """The chapter's notebook with its outputs, as text."""
    chapter, done = book.chapter(name), execute(book, name)
    outputs = [kept_outputs(cell) for cell in code_cells(done)]
    for cell, kept in zip(chapter.cells, outputs, strict=True):
        check_outputs(cell, kept, book.root)
    notebook = assemble(book, name, glue_values(outputs), web)
    cells = zip(
        code_cells(notebook)[1:], code_cells(done), outputs, strict=True
    )
    for count, (cell, ran, kept) in enumerate(cells, 2):
        compared = ran.execution_count and not tagged(cell, "timing")
        cell.execution_count = count if compared else None
        cell.outputs = kept
        if "recorded" in ran.metadata:
            cell.metadata["recorded"] = ran.metadata["recorded"]
        for output in kept:
            if output.output_type == "execute_result":
                output.execution_count = cell.execution_count
    return notebook


def kept_outputs(cell):
    """A cell's outputs as text; none of a cell that tells the time."""
    if tagged(cell, "timing") and not tagged(cell, "gpu"):
        return []
    outputs = [as_text(output) for output in cell.outputs]
    return [output for output in outputs if output is not None]


def as_text(output):
    """An output without images; None if it is the label of a recording."""
    if "data" not in output:
        return output
    if output.metadata.get("companion") == "label":
        return None
    data = {
        kind: text
        for kind, text in output.data.items()
        if kind.startswith(("text/", PREFIX + "text/"))
    }
    names = {k: v for k, v in output.metadata.items() if k == "scrapbook"}
    extra = {"execution_count": None}
    if output.output_type != "execute_result":
        extra = {}
    return new_output(output.output_type, data, metadata=names, **extra)


def glue_values(outputs):
    """What the cells glued, by name."""
    return {
        output.metadata["scrapbook"]["name"]: text
        for kept in outputs
        for output in kept
        if "scrapbook" in output.get("metadata", {})
        for kind, text in output.data.items()
        if kind.endswith("text/plain")
    }


ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{8,}\b")


def check_outputs(cell, outputs, root):
    """Refuse what could not be the same on another machine."""
    for output in outputs:
        data = output.get("data", {})
        text = "\n".join(map(str, [output.get("text", ""), *data.values()]))
        address = ADDRESS.search(text)
        if address:
            raise cell.error(
                1,
                f"the output shows a memory address ({address[0]}): "
                "print something that stays the same",
            )
        if str(root.resolve()) in text or "/ipykernel_" in text:
            raise cell.error(
                1,
                "the output shows a path of this machine: "
                "print something that stays the same",
            )


def has_notebook(chapter):
    return bool(chapter.cells)


def notebook_path(book, name):
    return book.root / RECORD / f"{name}.ipynb"


def stale(book, name, web=None):
    """Why the record is not the chapter's, or None if it is."""
    path = notebook_path(book, name)
    if not path.exists():
        return "is missing"
    old = nbformat.read(path, as_version=4)
    values = glue_values([cell.outputs for cell in code_cells(old)])
    new = assemble(book, name, values, web)
    if [cell.id for cell in old.cells] != [cell.id for cell in new.cells]:
        return "has other cells than the chapter"
    for number, pair in enumerate(zip(old.cells, new.cells, strict=True), 1):
        if pair[0].source != pair[1].source:
            return f"differs from the chapter in cell {number}"
    return None


def write_notebook(book, name, web):
    """Record one chapter; say whether the file changed."""
    path = notebook_path(book, name)
    text = nbformat.writes(record(book, name, web), indent=1) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    replace(path, text)
    return True


def strays(book):
    """Notebooks in the record that no chapter has."""
    names = {c.name for c in book.chapters if has_notebook(c)}
    found = sorted((book.root / RECORD).glob("*.ipynb"))
    return [path for path in found if path.stem not in names]


def check(book, names):
    """Print what is not fresh; return how many."""
    web, count = addresses(book), 0
    reasons = {name: stale(book, name, web) for name in names}
    reasons |= {path.stem: "has no chapter" for path in strays(book)}
    for name, reason in reasons.items():
        if reason:
            count += 1
            print(
                f"{RECORD}/{name}.ipynb {reason}: run `make notebooks`",
                file=sys.stderr,
            )
    return count


def write(book, names):
    """Record the chapters; drop notebooks that no chapter has."""
    web = addresses(book)
    for name in names:
        changed = write_notebook(book, name, web)
        print(f"{RECORD}/{name}.ipynb", "" if changed else "(unchanged)")
    for path in strays(book):
        path.unlink()
        print(f"{RECORD}/{path.name} removed: no chapter has it")


def main(argv):
    """Record the named chapters (default: all) in site/notebooks."""
    parser = argparse.ArgumentParser(
        prog="companion notebook", description=main.__doc__
    )
    parser.add_argument("chapters", nargs="*", metavar="CHAPTER")
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; fail if the record is not fresh",
    )
    options = parser.parse_args(argv)
    try:
        book = read_book()
        every = [c.name for c in book.chapters if has_notebook(c)]
        names = [book.chapter(n).name for n in options.chapters] or every
        if options.check:
            return 1 if check(book, names) else 0
        write(book, names)
    except SourceError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
