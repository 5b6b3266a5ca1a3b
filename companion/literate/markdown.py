# Tangled from record: edit there, `make tangle`. sha256:fe5b9a73dabe
"""MyST as plain Markdown, for readers that know no directives."""

import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, starmap

import yaml
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from pybtex.database import parse_file

from companion.literate.source import (
    MYST, NO_FRONT, Block, Book, Chapter, blocks)

LINKS = ("link_open", "image")


def spans(text: str) -> Iterator[tuple[str, Token]]:
    """Cut prose into its spans; yield each as it stands, and its token."""
    state = StateInline(text, MYST, {}, [])
    while (start := state.pos) < state.posMax:
        MYST.inline.skipToken(state)
        source = text[start : state.pos]
        yield source, MYST.inline.parse(source, MYST, {}, [])[0]


def link_parts(source: str) -> tuple[str, str, str]:
    """What `[text](target)` consists of: `!` of an image, text, target."""
    bang, _, rest = source.partition("[")
    text, _, target = rest[:-1].rpartition("](")
    return bang, text, target


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
        labels.update(find_labels(page_of(chapter), chapter.blocks))
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


def find_labels(page: str, found: Sequence[Block]) -> dict:
    """What a reference may name on this page: (page, its text)."""
    labels: dict = {}
    for block, after in pairwise([*found, NO_FRONT]):
        heading = re.match("#+ +(.+)", after.body)
        options = block.options.get("name"), block.options.get("label")
        labels |= {name: (page, name) for name in options if name}
        if block.name == "target":
            text = heading[1] if heading else block.body
            labels[block.body] = page, text
        elif block.name in ("glossary", "bibliography"):
            labels["{" + block.name + "}"] = page, ""
    return labels


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
        found = map(self.block, blocks(f"{self.name}.md", text, line))
        return "\n\n".join(part for part in found if part).strip()

    def block(self, block: Block) -> str:
        """Plain code stays, prose and directives are rewritten."""
        if block.name == "fence":
            return block.body
        if not block.name:
            return self.inline(block.body)
        other = partial(quote, title=block.name.title())
        return DIRECTIVES.get(block.name, other)(self, block)

    def inline(self, text: str) -> str:
        """A piece of prose with its roles and links rewritten."""
        return "".join(starmap(self.span, spans(text.rstrip())))

    def span(self, source: str, token: Token) -> str:
        """One span: roles and links are rewritten, the others stay."""
        if token.type == "myst_role":
            rewrite = ROLES.get(token.meta["name"], as_code)
            return rewrite(self, *text_and_target(token.content))
        if token.type in LINKS:
            bang, text, target = link_parts(source)
            return self.link(bang, self.inline(text), target)
        return source

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


def titled(page: Page, block: Block, title: str = "") -> str:
    """What the directive holds, under its title."""
    heading = page.inline(block.argument) or title
    head = f"**{heading}**\n\n" if heading else ""
    return head + page.rewrite(block.body, block.line)


def quote(page: Page, block: Block, title: str = "") -> str:
    """A box of the page as a quotation with a bold title."""
    return quoted(titled(page, block, title))


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
    **dict.fromkeys(["front", "target", "unseen"], nothing),
    **dict.fromkeys(["div", "container", "grid", "tab-set"], titled),
    **dict.fromkeys(["grid-item", "tab-item", "card", "table"], titled),
    **dict.fromkeys(["admonition", "margin", "sidebar", "epigraph"], quote),
    "list-table": list_table,
    "math": formula,
}
