"""Sphinx extension: a page loads what it uses, and no more."""

import re
from pathlib import Path

# The classes of Pygments that the book's stylesheet colours.
COLOURED = set(
    "k kc kd kn kr kt ow nf nc fm nd s s1 s2 sa sb sc sd se sh si sr ss dl"
    " m mb mf mh mi mo il c c1 cm ch cs cp cpf gi gd hll pre".split()
)
TOKEN = re.compile(r'<span class="([a-z0-9]{1,3})">([^<]*)</span>')
CODE = re.compile(
    r'<code class="docutils literal notranslate"><span class="pre">'
    r"([^<]*)</span></code>"
)
INDEX = "chapters/front/identifiers"  # its pages: links, and little else
FOLD = '<summary aria-label="Toggle hidden content">'
STYLES = (
    "basic.css",
    "styles/bootstrap.css",
    "styles/pydata-sphinx-theme.css",
)


def lighten(app, pagename, templatename, context, doctree):
    """Plain tokens without a span, folds by their own names, no idle MathJax.

    Sphinx gives MathJax to a page whose children in the table of contents
    have mathematics, and so to the contents page.
    """
    body = context.get("body", "")
    context["body"] = TOKEN.sub(plain, body).replace(FOLD, "<summary>")
    if pagename.startswith(INDEX):
        short = CODE.sub(r"<code>\1</code>", context["body"])
        context["body"] = short.replace(' class="reference internal"', "")
    if 'class="math' not in body:
        scripts = context.get("script_files", [])
        context["script_files"] = [s for s in scripts if not is_math(s)]


def plain(token):
    """A token's text, in its span only where that has a colour."""
    return token[0] if token[1] in COLOURED else token[2]


def is_math(script):
    """Whether a script is MathJax or its settings."""
    body = getattr(script, "attributes", {}).get("body") or ""
    name = getattr(script, "filename", script) or ""
    return "mathjax" in str(name) or body.startswith("window.MathJax")


def purge_styles(app, exception):
    """The theme's stylesheets without the rules that no page can use."""
    if exception or app.builder.format != "html":
        return
    words = words_of(Path(app.outdir))
    for name in STYLES:
        path = Path(app.outdir, "_static", name)
        path.write_text(purge(path.read_text("utf-8"), words), "utf-8")


def words_of(site):
    """Every class in a page, and every word in a script that may set one."""
    static = site / "_static"
    pages = (p for p in site.rglob("*.html") if static not in p.parents)
    scripts = (p for p in static.rglob("*.js") if "vendor" not in p.parts)
    words = set()
    for page in pages:
        for names in re.findall(r'class="([^"]*)"', page.read_text("utf-8")):
            words.update(names.split())
    for script in scripts:
        words.update(re.findall(r"[A-Za-z][\w-]*", script.read_text("utf-8")))
    return words


def purge(style, words):
    """The rules of a stylesheet whose classes are all among `words`."""
    kept = []
    for head, body in rules(style):
        if head.lstrip().startswith(("@media", "@supports")):
            body = purge(body, words)
        elif not head.lstrip().startswith("@"):
            head = ",".join(s for s in head.split(",") if used(s, words))
        if head and body:
            kept.append(f"{head}{{{body}}}")
    return "".join(kept)


def used(selector, words):
    """Whether all classes of a selector occur somewhere."""
    return words.issuperset(re.findall(r"\.([A-Za-z][\w-]*)", selector))


def rules(style):
    """Yield (selector or at-rule, body) of a stylesheet's outer blocks."""
    style = re.sub(r"/\*.*?\*/", "", style, flags=re.DOTALL)
    start = depth = opened = 0
    for brace in re.finditer(r"[{}]", style):
        depth += 1 if brace[0] == "{" else -1
        if brace[0] == "{" and depth == 1:
            opened = brace.start()
        elif depth == 0:
            yield style[start:opened], style[opened + 1 : brace.start()]
            start = brace.end()


def restyled(app, env, added, changed, removed):
    """A changed stylesheet or script is a reason to write the site again."""
    built = Path(app.outdir, "index.html")
    if not built.exists():
        return []
    when = built.stat().st_mtime
    static = Path(app.srcdir, "site", "static").rglob("*")
    newer = any(file.stat().st_mtime > when for file in static)
    return [app.config.root_doc] if newer else []


def setup(app):
    """Register with Sphinx."""
    app.connect("html-page-context", lighten, priority=900)
    app.connect("env-get-outdated", restyled)
    app.connect("build-finished", purge_styles)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
