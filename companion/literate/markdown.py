# Tangled from record: edit there, `make tangle`. sha256:c24ccbfb2978
"""MyST as plain Markdown, for readers that know no directives."""

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import yaml
from pybtex.database import parse_file

from companion.literate.source import (
    FENCE,
    Book,
    Chapter,
    closing,
    load_yaml,
    split_options,
)


@dataclass(frozen=True)
class Block:
    """A run of prose (no name), a plain `fence`, or a directive."""

    name: str
    line: int  # of the body's first line
    body: str
    argument: str = ""
    options: dict = field(default_factory=dict)


def blocks(path: str, text: str, line: int = 1) -> Iterator[Block]:
    """Cut a page's text, which begins at `line`, into its blocks."""
    lines, begin, at = text.split("\n"), 0, 0
    while at < len(lines):
        if fence := FENCE.match(lines[at]):
            yield Block("", line + begin, "\n".join(lines[begin:at]))
            end = closing(path, lines, at, fence[1])
            yield fenced(path, lines[at : end + 1], line + at)
            at = begin = end + 1
        else:
            at += 1
    yield Block("", line + begin, "\n".join(lines[begin:]))


DIRECTIVE = re.compile(r"[`:~]{3,}\s*\{([^}]+)\}\s*(.*)")


def fenced(path: str, lines: list[str], line: int) -> Block:
    """The block that a fence and its body make."""
    head = DIRECTIVE.match(lines[0])
    if not head:
        return Block("fence", line, "\n".join(lines))
    inside = lines[1:-1]
    nested = (n for n, x in enumerate(inside) if x.startswith(":::"))
    text, taken = split_options(inside[: next(nested, len(inside))])
    body = "\n".join(inside[taken:])
    options = load_yaml(text, path, line + 1)
    return Block(head[1], line + 1 + taken, body, head[2], options)


UNSEEN = re.compile(r"\([^()\s]+\)=\s*$|%(\s|$)|\+\+\+|\{[.#][^}]*\}\s*$")
INLINE = re.compile(
    r"\{(?P<role>[a-zA-Z][\w:+.-]*)\}(?P<ticks>`+)(?P<content>.+?)(?P=ticks)"
    r"|(?P<code>`+)(?!`).+?(?<!`)(?P=code)(?!`)"
    r"|\$\$.+?\$\$|\$[^$\n]+\$"
    r"|(?P<bang>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)",
    re.S,
)


def text_and_target(content: str) -> tuple[str, str]:
    """`text <target>` as a pair; without a text, an empty one."""
    content = " ".join(content.split())
    found = re.fullmatch(r"(.*?)\s*<([^<>]+)>", content)
    return (found[1], found[2]) if found else ("", content)


@dataclass(frozen=True)
class Addresses:
    """Where the book's pages, labels and sources stand on the web."""

    site: str
    repository: str
    branch: str
    titles: dict[str, str]  # page -> title
    labels: dict[str, tuple[str, str]]  # label -> (page, text)
    sources: dict[str, str]  # key of the bibliography -> Author year

    def page(self, page: str, anchor: str = "") -> str:
        """The address of a page, or of a place on it."""
        address = f"{self.site}/{page}.html"
        return f"{address}#{anchor}" if anchor else address

    def file(self, path: str) -> str:
        """The address of a file of the repository."""
        return f"{self.repository}/raw/{self.branch}/{path}"

    def holding(self, directive: str) -> str:
        """The page that holds the glossary or the bibliography."""
        return self.labels.get("{" + directive + "}", ("intro", ""))[0]


def addresses(book: Book) -> Addresses:
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


def page_of(chapter: Chapter) -> str:
    """A chapter's page, as addresses name it."""
    return chapter.path.removesuffix(".md")


LABELLED = re.compile(r"^\(([^()\s]+)\)=\s*\n+(?:#+ +(.+))?", re.M)
NAMED = re.compile(r"^:(?:name|label): *(\S+)", re.M)
LISTING = re.compile(r"^[`:]{3,}(\{(?:glossary|bibliography)\})", re.M)


def find_labels(page: str, text: str) -> dict[str, tuple[str, str]]:
    """What a reference may name on this page, with its text."""
    found = {name: (page, name) for name in NAMED.findall(text)}
    for name, heading in LABELLED.findall(text):
        found[name] = (page, heading or name)
    return found | dict.fromkeys(LISTING.findall(text), (page, ""))


def cited_as(book: Book, files: list[str]) -> dict[str, str]:
    """`{key: "Knuth 1984"}` for every entry of the bibliography."""
    found = {}
    for file in files:
        for key, entry in parse_file(str(book.root / file)).entries.items():
            people = entry.persons.get("author", [])
            last = [" ".join(person.last_names) for person in people]
            who = " and ".join(last) or entry.fields.get("title", key)
            if len(last) > 2:
                who = f"{last[0]} et al."
            found[key] = f"{who} {entry.fields.get('year', '')}".strip()
    return found


@dataclass(frozen=True)
class Page:
    """One page being rewritten, and what its text may refer to."""

    name: str
    web: Addresses
    glued: dict[str, str]

    def rewrite(self, text: str, line: int = 1) -> str:
        """MyST, from a line of the page on, as plain Markdown."""
        found = blocks(f"{self.name}.md", text, line)
        out = "\n\n".join(map(self.block, found))
        return re.sub(r"\n{3,}", "\n\n", out).strip()

    def block(self, block: Block) -> str:
        """Plain code stays, prose and directives are rewritten."""
        if block.name == "fence":
            return block.body
        if not block.name:
            return self.inline(block.body)
        other = partial(quote, title=block.name.title())
        return DIRECTIVES.get(block.name, other)(self, block)

    def inline(self, text: str) -> str:
        """A run of paragraphs with its roles and links rewritten."""
        lines = text.split("\n")
        kept = [line for line in lines if not UNSEEN.match(line)]
        return INLINE.sub(self.span, "\n".join(kept))

    def span(self, match: re.Match) -> str:
        """One role, link, code span or formula."""
        if match["role"]:
            rewrite = ROLES.get(match["role"], as_code)
            return rewrite(self, *text_and_target(match["content"]))
        if match["target"]:
            text = INLINE.sub(self.span, match["text"])
            return self.link(match["bang"], text, match["target"])
        return match[0]

    def link(self, bang: str, text: str, target: str) -> str:
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

    def resolve(self, path: str) -> str:
        """A path relative to this page, or absolute, from the root."""
        here = posixpath.join("/", posixpath.dirname(self.name))
        return posixpath.normpath(posixpath.join(here, path))[1:]


def reference(page: Page, text: str, label: str) -> str:
    where, title = page.web.labels.get(label, (page.name, label))
    text = re.sub(r"\s*(%s|\{number\})", "", text) or title
    anchor = label.lower().replace("_", "-")
    return f"[{text}]({page.web.page(where, anchor)})"


def document(page: Page, text: str, target: str) -> str:
    where = page.resolve(target)
    text = text or page.web.titles.get(where, target)
    return f"[{text}]({page.web.page(where)})"


def term(page: Page, text: str, target: str) -> str:
    anchor = "term-" + re.sub(r"[^a-zA-Z0-9._]+", "-", target)
    where = page.web.page(page.web.holding("glossary"), anchor)
    return f"[{text or target}]({where})"


def cite(page: Page, text: str, target: str) -> str:
    where = page.web.page(page.web.holding("bibliography"))
    keys = [key.strip() for key in target.split(",")]
    cited = [page.web.sources.get(key, key) for key in keys]
    return ", ".join(f"[{name}]({where})" for name in cited)


def glued(page: Page, text: str, target: str) -> str:
    return page.glued.get(target, f"`{target}`")


def as_code(page: Page, text: str, target: str) -> str:
    return f"`{text or target}`"


def wrapped(before: str, after: str):
    return lambda page, text, target: before + (text or target) + after


def nothing(page: Page, *ignored) -> str:
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


def quote(page: Page, block: Block, title: str = "") -> str:
    """A box of the page as a quotation with a bold title."""
    heading = page.inline(block.argument) or title
    text = f"**{heading}**\n\n" if heading else ""
    return quoted(text + page.rewrite(block.body, block.line))


def quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.split("\n"))


def figure(page: Page, block: Block) -> str:
    image = page.link("!", block.options.get("alt", ""), block.argument)
    caption = page.rewrite(block.body, block.line)
    return f"{image}\n\n{quoted(caption)}" if caption else image


def formula(page: Page, block: Block) -> str:
    return f"$$\n{(block.argument + block.body).strip()}\n$$"


def listing(page: Page, block: Block) -> str:
    return f"```{block.argument}\n{block.body.strip()}\n```"


def titled(page: Page, block: Block) -> str:
    """What the directive holds, under its title."""
    heading = page.inline(block.argument)
    title = f"**{heading}**\n\n" if heading else ""
    return title + page.rewrite(block.body, block.line)


def list_table(page: Page, block: Block) -> str:
    """Rows written as nested lists, as a Markdown table."""
    rows = re.split(r"^\* ", block.body, flags=re.M)[1:]
    grid = [[" ".join(x.split()) for x in list_items(row)] for row in rows]
    rule = ["---"] * len(grid[0])
    lines = [f"| {' | '.join(row)} |" for row in [grid[0], rule, *grid[1:]]]
    title = [f"**{block.argument}**", ""] if block.argument else []
    return page.inline("\n".join(title + lines))


def list_items(text: str) -> list[str]:
    return re.split(r"^ *- ?", text, flags=re.M)[1:]


def elsewhere(page: Page, block: Block) -> str:
    """What only a web page can show."""
    where = page.web.page(page.name)
    return f"*[This part is interactive: see it on the page]({where}).*"


DIRECTIVES = {
    **dict.fromkeys(["figure", "image"], figure),
    **dict.fromkeys(["code", "code-block", "sourcecode"], listing),
    **dict.fromkeys(["raw", "iframe"], elsewhere),
    **dict.fromkeys(["bibliography", "tableofcontents", "index"], nothing),
    **dict.fromkeys(["div", "container", "grid", "tab-set"], titled),
    **dict.fromkeys(["grid-item", "tab-item", "card", "table"], titled),
    **dict.fromkeys(["admonition", "margin", "sidebar", "epigraph"], quote),
    "list-table": list_table,
    "math": formula,
}
