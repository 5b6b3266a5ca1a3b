"""MyST as plain Markdown, for readers that know no directives."""

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import yaml
from pybtex.database import parse_file

from companion.literate.source import FENCE, closing, split_options

# --------------------------------------------------------------- blocks


@dataclass(frozen=True)
class Block:
    """A run of prose (no name), a plain fence (`code`), a directive."""

    name: str
    line: int  # of the body's first line
    body: str
    argument: str = ""
    options: dict = field(default_factory=dict)


def blocks(path, text, line=1) -> Iterator[Block]:
    """Cut a page's text, which begins at `line`, into its blocks."""
    lines, prose, at = text.split("\n"), 0, 0
    while at < len(lines):
        fence = FENCE.match(lines[at])
        if fence:
            yield Block("", line + prose, "\n".join(lines[prose:at]))
            end = closing(path, lines, at, fence[1])
            yield fenced(lines[at : end + 1], line + at)
            at = prose = end + 1
        else:
            at += 1
    yield Block("", line + prose, "\n".join(lines[prose:]))


def fenced(lines, line):
    """The block that a fence and its body make."""
    head = re.match(r"[`:~]{3,}\s*\{([^}]+)\}\s*(.*)", lines[0])
    if not head:
        return Block("fence", line, "\n".join(lines))
    text, taken = split_options(lines[1:-1])
    body = "\n".join(lines[1 + taken : -1])
    options = yaml.safe_load(text) or {}
    return Block(head[1], line + 1 + taken, body, head[2], options)


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
    return found | dict.fromkeys(LISTING.findall(text), (page, ""))


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
        out = "\n\n".join(self.block(b) for b in blocks(self.name, text))
        return re.sub(r"\n{3,}", "\n\n", out).strip()

    def block(self, block):
        """Plain code stays, prose and directives are rewritten."""
        if block.name == "fence":
            return block.body
        if not block.name:
            return self.inline(block.body)
        other = partial(quote, title=block.name.title())
        return DIRECTIVES.get(block.name, other)(self, block)

    def inline(self, text):
        """A run of paragraphs with its roles and links rewritten."""
        lines = text.split("\n")
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


# Directives: page, block -> Markdown.


def quote(page, block, title=""):
    """A box of the page as a quotation with a bold title."""
    heading = page.inline(block.argument) or title
    text = f"**{heading}**\n\n" if heading else ""
    return quoted(text + page.rewrite(block.body))


def quoted(text):
    return "\n".join(f"> {line}".rstrip() for line in text.split("\n"))


def figure(page, block):
    image = page.link("!", block.options.get("alt", ""), block.argument)
    caption = page.rewrite(block.body)
    return f"{image}\n\n{quoted(caption)}" if caption else image


def formula(page, block):
    return f"$$\n{(block.argument + block.body).strip()}\n$$"


def listing(page, block):
    return f"```{block.argument}\n{block.body.strip()}\n```"


def content(page, block):
    """What the directive holds, under its title."""
    heading = page.inline(block.argument)
    title = f"**{heading}**\n\n" if heading else ""
    return title + page.rewrite(block.body)


def list_table(page, block):
    """Rows written as nested lists, as a Markdown table."""
    rows = re.split(r"^\* ", block.body, flags=re.M)[1:]
    table = [[" ".join(cell.split()) for cell in items(row)] for row in rows]
    rule = ["---"] * len(table[0])
    lines = [f"| {' | '.join(row)} |" for row in [table[0], rule, *table[1:]]]
    title = [f"**{block.argument}**", ""] if block.argument else []
    return page.inline("\n".join(title + lines))


def items(text):
    """The items of a Markdown list."""
    return re.split(r"^ *- ?", text, flags=re.M)[1:]


def elsewhere(page, block):
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
