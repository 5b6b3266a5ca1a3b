"""Sphinx extension: a page loads what it uses, and shows what is current."""

from pathlib import Path


def drop_math(app, pagename, templatename, context, doctree):
    """No MathJax without mathematics.

    Sphinx gives it to a page whose children in the table of contents have
    some, and so to the contents page.
    """
    if 'class="math' in context.get("body", ""):
        return
    scripts = context.get("script_files", [])
    context["script_files"] = [s for s in scripts if not is_math(s)]


def is_math(script):
    """Whether a script is MathJax or its settings."""
    body = getattr(script, "attributes", {}).get("body") or ""
    name = getattr(script, "filename", script) or ""
    return "mathjax" in str(name) or body.startswith("window.MathJax")


FOLD = '<summary aria-label="Toggle hidden content">'


def name_folds(app, pagename, templatename, context, doctree):
    """A fold is called what it says: MyST-NB calls all of them the same."""
    if "body" in context:
        context["body"] = context["body"].replace(FOLD, "<summary>")


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
    app.connect("html-page-context", drop_math, priority=900)
    app.connect("html-page-context", name_folds)
    app.connect("env-get-outdated", restyled)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
