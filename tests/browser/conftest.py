"""A browser, and the built site served to it."""

import functools
import http.server
import threading

import pytest


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and keeps no log."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Nothing: the tests say what is wrong."""


@pytest.fixture(scope="session")
def address(site):
    """Where the site is served while the tests run."""
    handler = functools.partial(Quiet, directory=site)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="session")
def chromium(need):
    """One Chromium for all tests."""
    path = need("chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox"]
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, address):
    """`visit("intro.html", width=360)` opens a page in a fresh profile.

    The page's `faults` collect script errors, failed and foreign requests,
    its own and those of other tabs of its context.
    """
    contexts = []

    def open_page(path, width=1280, scheme="light", **options):
        context = chromium.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,
            reduced_motion="reduce",
            **options,
        )
        contexts.append(context)
        page = context.new_page()
        page.faults = watch(context, address)
        page.goto(address + path, wait_until="networkidle")
        return page

    yield open_page
    for context in contexts:
        context.close()


def watch(context, address):
    """A list that fills with what goes wrong on the context's pages."""
    faults = []

    def foreign(request):
        if not request.url.startswith((address, "data:", "blob:")):
            faults.append(f"asks another server: {request.url}")

    def missing(response):
        if response.status >= 400:
            faults.append(f"{response.status}: {response.url}")

    context.on("request", foreign)
    context.on("response", missing)
    context.on("weberror", lambda e: faults.append(f"script: {e.error}"))
    return faults
