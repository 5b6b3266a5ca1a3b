"""The built site in a real browser: what readers see, press and print."""

import re
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

from companion.literate.lint import measure
from companion.literate.source import read_book

pytestmark = [pytest.mark.slow, pytest.mark.needs("chromium")]

AXE = Path(__file__).parent / "vendor" / "axe.min.js"
ARRAYS = "chapters/tensors/arrays.html"
BLAS = "chapters/tensors/blas.html"
ATTENTION = "chapters/gradients/attention.html"
GRAPHS = "chapters/compiler/graphs.html"
REWRITING = "chapters/compiler/rewriting.html"
NOTATION = "chapters/front/notation.html"
USING = "chapters/front/using.html"
XOR = "chapters/gradients/xor.html"
LAYERS = "chapters/tensors/layers.html"
VIEW = "source/companion/view.html"
AXED = ("index.html", "search.html", NOTATION, USING, VIEW, ARRAYS, BLAS,
        ATTENTION)
LIMIT, LIMIT_WITH_MATH = 1.0e6, 2.2e6


def weight(page):
    """Bytes that the page and all it loads take, unpacked."""
    return page.evaluate("""() => performance.getEntries()
        .filter(({ entryType: t }) => t === "resource" || t === "navigation")
        .reduce((sum, entry) => sum + entry.decodedBodySize, 0)""")


def wider_than_window(page):
    """Elements that make the page scroll sideways."""
    return page.evaluate("""() => {
        const { scrollWidth } = document.documentElement;
        if (scrollWidth <= innerWidth) return [];
        return [...document.querySelectorAll("body *")]
            .filter((e) => e.getBoundingClientRect().right > innerWidth + 1)
            .map((e) => `${e.tagName}.${e.className} is too wide`)
            .slice(0, 5);
    }""")


def findings(page, rules=None):
    """What axe calls serious or critical, by all rules or only some."""
    page.evaluate(AXE.read_text())
    options = {"resultTypes": ["violations"]}  # and no report on the rest
    found = page.evaluate(
        "(options) => axe.run(options).then((result) => result.violations)",
        options | ({"runOnly": rules} if rules else {}),
    )
    return [
        f"{f['id']}: {node['target']}"
        for f in found
        if f["impact"] in ("serious", "critical")
        for node in f["nodes"]
    ]


def pages_of(site):
    """The pages to open: all that were written, and some of source.

    Pages of source have one template. Of each folder and language those
    are opened that strain it most, and all with an element of their own.
    """
    files = {f for f in site.rglob("*.html") if is_page(f, site)}
    source = sorted(f for f in files if site / "source" in f.parents)
    opened = files.difference(source)
    for _, alike in groupby(sorted(source, key=shelf), shelf):
        opened |= extremes([*alike])
    seen = set().union(*map(elements, opened))
    for file in source:
        if elements(file) - seen:
            opened.add(file)
            seen |= elements(file)
    return sorted(file.relative_to(site).as_posix() for file in opened)


def is_page(file, site):
    """Whether readers come to a file."""
    return file.relative_to(site).parts[0] not in ("_static", "_sources")


def shelf(file):
    """The folder and the language of a page of source, `gemm.c.html`."""
    return file.parent, Path(file.stem).suffix


def extremes(files):
    """The heaviest page, and those of the longest title and line."""
    weight = {file: file.stat().st_size for file in files}
    title = {file: len(file.name) for file in files}
    lines = {file: file.read_text("utf-8").split("\n") for file in files}
    width = {file: max(map(len, lines[file])) for file in files}
    return {max(files, key=m.get) for m in (weight, title, width)}


def elements(file):
    """The kinds of elements of a page, tags and classes."""
    return set(re.findall(r'<\w+|class="[^"]*"', file.read_text("utf-8")))


def test_pages_of_source_stand_for_others(tmp_path):
    wide, other = f"<p>{'x' * 50}", "<table>"
    texts = {
        "intro": "", "_static/page": "", "source/a": "\n".join("<p>" * 99),
        "source/b": wide, "source/c": "", "source/long": "", "source/d": other,
        "source/c.cu": "", "source/tests/a": "", "source/tests/b": "<p>",
    }  # fmt: skip
    for name, text in texts.items():
        file = tmp_path / f"{name}.html"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    opened = {name.removesuffix(".html") for name in pages_of(tmp_path)}
    assert texts.keys() - opened == {"_static/page", "source/c"}
    (tmp_path / "source/d.html").write_text("<p>")
    assert "source/d.html" not in pages_of(tmp_path)


def test_every_page_on_a_phone(site, address, visit):
    """While one page comes to rest, the next two are on their way."""
    faults = []
    first = visit("index.html", width=360)
    tabs = [first, first.context.new_page(), first.context.new_page()]
    paths = pages_of(site)
    for begin in range(0, len(paths), len(tabs)):
        opened = list(zip(tabs, paths[begin:]))
        for tab, path in opened:
            tab.goto(address + path, wait_until="commit")
        for tab, path in opened:
            tab.wait_for_load_state("networkidle")
            math = tab.locator("script[src*=mathjax]").count()
            if weight(tab) > (LIMIT_WITH_MATH if math else LIMIT):
                faults.append(f"{path}: {weight(tab) / 1e6:.2f} MB")
            faults += [f"{path}: {f}" for f in wider_than_window(tab)]
    assert faults + first.faults == []


def test_figures_stay_legible_on_a_phone(visit):
    page = visit("chapters/gradients/optimizers.html", width=360)
    figures = page.locator(".cell_output img").evaluate_all("""all =>
        all.map((img) => [img.clientWidth, img.naturalWidth,
                          getComputedStyle(img.closest(".cell_output"))
                              .overflowX])""")
    assert any(natural > 448 for _, natural, _ in figures)
    for shown, natural, overflow in figures:
        assert shown >= min(natural, 448) and overflow == "auto"


def test_figures_have_numbers_and_captions(visit):
    page = visit(LAYERS)
    captions = page.locator(".cell_output figcaption").all_inner_texts()
    assert len(captions) == page.locator(".cell_output img").count() > 3
    assert all(re.match(r"Fig\. \d+\.\d \S", text) for text in captions)


def test_text_and_code_share_a_width_on_a_tablet(visit):
    page = visit(LAYERS)
    for width in (768, 1024, 1100):
        page.set_viewport_size({"width": width, "height": 900})
        text, code = (
            page.locator(f".bd-article section section > {kind}").first
            for kind in ("p", "div.cell")
        )
        text, code = text.bounding_box(), code.bounding_box()
        assert (text["x"], text["width"]) == (code["x"], code["width"]), width


def covers(page, one, other):
    """Whether an element is what one sees in the middle of another."""
    return page.evaluate(
        """([one, other]) => {
            const box = document.querySelector(other).getBoundingClientRect();
            const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
            const seen = document.elementFromPoint(x, y);
            return Boolean(seen?.closest(one));
        }""",
        [one, other],
    )


def test_the_sidebar_opens_with_the_search_and_the_chapter_in_view(visit):
    page = visit("chapters/gradients/gpu.html")
    sidebar = ".bd-sidebar-primary"
    assert page.evaluate(f"document.querySelector('{sidebar}').scrollTop") > 0
    for shown in (".logo", ".search-button-field", "li.current > a"):
        assert covers(page, f"{sidebar} {shown}", f"{sidebar} {shown}")


@pytest.mark.parametrize("width", [360, 768, 975, 1280])
def test_every_head_finds_its_way_back(visit, width):
    page = visit(LAYERS, width=width)
    ways = page.locator(".tt-home:visible, .bd-sidebar-primary .logo:visible")
    boxes = [way.bounding_box() for way in ways.all()]
    seen = [n for n, box in enumerate(boxes) if 0 <= box["x"] < width]
    assert len(seen) == 1 and boxes[seen[0]]["width"] >= 44
    way = ways.nth(seen[0])
    assert way.inner_text() == "Tensors, Tangled" or (
        way.get_attribute("aria-label") == "Tensors, Tangled"
    )
    way.click()
    assert page.url.endswith("/index.html")
    assert page.faults == []


def test_the_landing_page_searches_on_a_phone(visit):
    page = visit("index.html", width=390)
    page.get_by_role("searchbox", name="Search this book").fill("stride")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li a")
    assert page.url.endswith("search.html?q=stride")


def test_the_line_under_a_title(visit):
    page = visit("chapters/gradients/optimizers.html")
    line = page.locator("h1 + .tt-guide")
    assert re.match(r"\d½? hours · needs Autograd · ", line.inner_text())
    line.locator("a").last.click()
    target = page.evaluate("location.hash")
    assert page.locator(f"{target}.tag_exercise").count() == 1
    assert page.locator("h1 ~ p").nth(1).inner_text().endswith("?")


def test_the_map_by_keyboard(visit):
    page = visit(USING)
    chart = page.get_by_role("group", name=re.compile("^Which chapter needs"))
    links = chart.get_by_role("link")
    assert links.count() == page.locator("svg.tt-map circle").count() > 15
    links.first.focus()
    names = links.evaluate_all("xs => xs.map(x => x.ariaLabel)")
    place = [name.split(",")[0].split()[-1] for name in names]
    for _ in range(place.index("Autograd")):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**/autograd.html")


READ = "localStorage.getItem('read')"


def test_what_was_read_is_marked_once_the_reader_asks(visit):
    page = visit(LAYERS)
    button = page.get_by_role("button", name="I have read this chapter")
    assert page.evaluate(READ) is None
    assert button.get_attribute("aria-pressed") == "false"
    assert page.locator(".tt-read").count() == 0
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    assert page.evaluate(READ) == "chapters/tensors/layers.html"
    page.goto(page.url.replace(LAYERS, "intro.html"))
    for place in ("navigation", "article"):
        marked = page.get_by_role(place).get_by_role(
            "link", name=re.compile(r"^\d+ Layers")
        )
        assert marked.get_by_role("img", name="read").count() == 1
    assert page.locator(".tt-read").count() == 2
    assert findings(page) == []
    page.go_back()
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert page.evaluate(READ) is None
    assert page.locator(".tt-read").count() == 0
    assert page.faults == []


@pytest.mark.parametrize("path", [LAYERS, USING])
def test_pages_without_scripts_offer_nothing_they_cannot_do(visit, path):
    page = visit(path, java_script_enabled=False)
    assert page.locator(".tt-done").count() == 0
    assert page.locator(".tt-guide, .tt-map").first.is_visible()


def test_only_chapters_can_be_read(visit):
    assert visit(USING).locator(".tt-done").count() == 0


def test_landing_leads_into_the_book(visit):
    page = visit("index.html")
    assert page.locator("h1").inner_text() == "Tensors, Tangled"
    assert page.locator("figure svg path.code").count() > 100
    assert (
        page.locator("text=Open in Colab")
        .get_attribute("href")
        .endswith("/blob/main/site/notebooks/arrays.ipynb")
    )
    page.click("text=Start reading")
    assert page.locator("article h1").inner_text().startswith("1 Arrays")


def test_chapter_names_the_place_of_its_code(visit):
    page = visit(ARRAYS)
    caption = page.locator(".tt-place a:visible").first
    assert caption.inner_text().startswith("companion/")
    caption.click()
    page.wait_for_load_state("networkidle")
    assert "from __future__" in page.locator(".highlight").first.inner_text()
    assert page.faults == []


def test_chapter_offers_its_notebook(visit):
    page = visit(ARRAYS)
    links = page.locator("a").evaluate_all("all => all.map((a) => a.href)")
    for wanted in (
        r"colab\.research\.google\.com/.*/site/notebooks/arrays\.ipynb$",
        r"arrays\.ipynb$",
        r"arrays\.md$",
        r"/edit/main/chapters/tensors/arrays\.md$",
    ):
        assert any(re.search(wanted, link) for link in links), wanted


def test_mathematics_is_set_by_the_site_itself(visit):
    page = visit(NOTATION)
    page.wait_for_selector("mjx-container")
    assert page.locator("mjx-container").count() > 20
    assert page.faults == []


def test_search_finds_a_term(visit):
    page = visit("intro.html")
    page.keyboard.press("Control+k")
    page.keyboard.type("stride")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li a")
    found = page.locator("#search-results li > a").all_inner_texts()
    assert any("Arrays" in title for title in found)
    assert page.faults == []


@pytest.mark.parametrize("path", ["index.html", ARRAYS])
def test_dark_mode_is_kept(visit, path):
    page = visit(path)
    theme = "document.documentElement.dataset.theme"
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    for _ in range(3):
        if page.evaluate(theme) != "dark":
            page.click("#theme, .theme-switch-button >> visible=true")
    assert page.evaluate(theme) == "dark"
    assert page.evaluate(paper) != light
    page.goto(page.url.replace(path, "intro.html"))
    assert page.evaluate(theme) == "dark"


def test_dark_is_the_systems_choice_at_first(visit):
    page = visit(ARRAYS, scheme="dark")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_strides_explorer_by_keyboard(visit):
    page = visit(ARRAYS)
    explorer = page.locator(".tt-strides").first
    explorer.locator("input[name=offset]").wait_for()  # `all` does not wait
    fields = {
        i.get_attribute("name"): i for i in explorer.locator("input").all()
    }
    fields["shape"].fill("3, 4")
    fields["strides"].fill("4, 1")
    fields["offset"].fill("0")
    fields["offset"].press("Tab")
    explorer.locator("[role=gridcell][tabindex='0']").focus()
    for key in (
        "ArrowDown",
        "ArrowDown",
        "ArrowRight",
        "ArrowLeft",
        "ArrowRight",
    ):
        page.keyboard.press(key)
    formula = explorer.locator(".tt-formula").inner_text()
    assert formula == "offset + i·s0 + j·s1 = 0 + 2·4 + 1·1 = 9"
    assert explorer.locator(".tt-strip .tt-now").inner_text() == "9"
    explorer.locator("select").focus()
    page.keyboard.type("flip")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert fields["strides"].input_value() == "4, -1"
    assert fields["offset"].input_value() == "3"
    assert "No cell moved" in explorer.locator(".tt-status").inner_text()


def test_strides_explorer_says_what_is_wrong(visit):
    page = visit(ARRAYS)
    explorer = page.locator(".tt-strides").first
    explorer.locator("input[name=offset]").fill("99")
    explorer.locator("input[name=offset]").press("Tab")
    assert "would lie in cell" in explorer.locator(".tt-status").inner_text()
    for shape, told in (
        ("1000000000, 0", "up to 64 elements"),
        ("0, 4", "of 0"),
    ):
        explorer.locator("input[name=offset]").fill("0")
        explorer.locator("input[name=shape]").fill(shape)
        explorer.locator("input[name=shape]").press("Tab")
        assert told in explorer.locator(".tt-status").inner_text()
    label = explorer.locator(".tt-strip").get_attribute("aria-label")
    assert label == "Memory, 12 cells; none is lit"


def test_strides_explorer_agrees_with_numpy(visit):
    page = visit(ARRAYS)
    page.wait_for_function("window.tangled?.view")  # a busy machine is late
    memory = np.arange(24, dtype=np.int8)
    for start, name, text, want in (
        ((2, 3, 4), "permute", "2, 0, 1", lambda a: a.transpose(2, 0, 1)),
        ((2, 3, 4), "reshape", "6, 4", lambda a: a.reshape(6, 4)),
        ((6, 4), "reshape", "2, 3, 2, 2", lambda a: a.reshape(2, 3, 2, 2)),
        ((4, 6), "slice", "::-2, 1:5:3", lambda a: a[::-2, 1:5:3]),
        ((4, 6), "slice", "-1, 10::-4", lambda a: a[-1, 10::-4]),
        ((4, 6), "flip", "0", lambda a: a[::-1]),
        ((24, 1), "expand", "24, 2", lambda a: np.broadcast_to(a, (24, 2))),
    ):
        array = memory.reshape(start)
        made = page.evaluate(
            """([view, name, text]) =>
               tangled.view.OPERATIONS[name].apply(
                   view, text, (t) => t.split(",").map(Number))""",
            [
                {"shape": start, "strides": array.strides, "offset": 0},
                name,
                text,
            ],
        )
        got = as_strided(
            memory[made["offset"] :], made["shape"], made["strides"]
        )
        np.testing.assert_array_equal(got, want(array), f"{name} {text}")


def test_strides_explorer_without_scripts(visit):
    page = visit(ARRAYS, java_script_enabled=False)
    fallback = page.locator(".tt-strides").first
    assert fallback.locator("table, svg, p, img").count() > 0
    assert fallback.is_visible()


def test_widgets_live_on_a_page_opened_as_a_file(site, chromium):
    page = chromium.new_page()
    page.goto((site / "chapters/tensors/arrays.html").as_uri())
    page.wait_for_selector(".tt-strides .tt-formula")
    page.goto((site / "chapters/tensors/blas.html").as_uri())
    page.wait_for_selector(".tt-roofline circle")
    page.close()


def test_attention_viewer_by_keyboard(visit):
    page = visit(ATTENTION)
    viewer = page.locator(".tt-attention")
    viewer.locator("input[type=range]").wait_for()
    rows = viewer.locator("[data-query]")
    asked, said = rows.last.inner_text().strip(), viewer.locator(".tt-status")
    assert said.inner_text().startswith(f"{asked} looks at ")
    viewer.locator("[data-query][tabindex='0']").focus()
    page.keyboard.press("Home")  # no key of ours
    for _ in range(rows.count()):
        page.keyboard.press("ArrowUp")
    first = rows.first.inner_text().strip()
    assert said.inner_text().startswith(f"{first} looks at ")
    viewer.locator("input[type=checkbox]").check()
    assert said.inner_text() == f"{first} looks at {first} (100 %)"
    viewer.locator("input[type=checkbox]").uncheck()
    viewer.locator("input[type=range]").focus()
    page.keyboard.press("Home")  # no sharpness: all keys alike
    share = round(100 / rows.count())
    assert said.inner_text().count(f"({share} %)") == 4


def test_attention_viewer_without_scripts(visit):
    page = visit(ATTENTION, java_script_enabled=False)
    assert page.locator(".tt-attention table").is_visible()


def test_graph_viewer_by_keyboard(visit):
    page = visit(GRAPHS)
    viewer = page.locator(".tt-graph").first
    said = viewer.locator(".tt-status")
    said.wait_for()
    circles = viewer.locator("[data-age]")
    assert "is read by nothing." in said.inner_text()
    viewer.locator("[data-age][tabindex='0']").focus()
    page.keyboard.press("Home")  # no key of ours
    before = said.inner_text()
    page.keyboard.press("ArrowUp")
    name = before.partition("reads ")[2].partition(",")[0].partition(";")[0]
    assert said.inner_text().startswith(name)
    for _ in range(circles.count()):
        page.keyboard.press("ArrowLeft")
    assert "reads nothing;" in said.inner_text()
    circles.last.locator("circle").click()
    assert viewer.locator("[aria-pressed='true']").count() == 1


def test_a_graph_folds_by_keyboard(visit):
    page = visit(REWRITING)
    viewer = page.locator(".tt-graph").first
    said = viewer.locator(".tt-status")
    said.wait_for()
    assert "as it was asked" in said.inner_text()
    before = viewer.locator("[data-age]").count()
    slider = viewer.locator("input[type='range']")
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert "→" in said.inner_text()
    page.keyboard.press("End")
    after = viewer.locator("[data-age]").count()
    assert after < before
    assert said.inner_text().startswith(f"{after} nodes")
    viewer.locator("[data-age][tabindex='0']").focus()
    page.keyboard.press("ArrowUp")
    assert viewer.locator("[aria-pressed='true']").count() == 1


def test_graph_viewer_without_scripts(visit):
    page = visit(GRAPHS, java_script_enabled=False)
    assert page.locator(".tt-graph svg").first.is_visible()


def test_roofline_by_keyboard(visit):
    page = visit(BLAS)
    roofline = page.locator(".tt-roofline").first
    before = roofline.locator(".tt-status").inner_text()
    assert "Bound by arithmetic" in before
    slider = roofline.get_by_label(re.compile("^M ="))
    slider.focus()
    page.keyboard.press("Home")
    after = roofline.locator(".tt-status").inner_text()
    assert "Bound by memory" in after
    assert slider.get_attribute("aria-valuetext") == "1"
    roofline.locator("summary").focus()
    page.keyboard.press("Enter")
    assert roofline.locator("table").is_visible()


@pytest.mark.parametrize("width", [360, 1280])
def test_sliders_are_as_large_as_a_thumb(visit, width):
    page = visit(BLAS, width=width)
    sliders = page.locator(".tt-widget input[type=range]")
    sliders.nth(2).wait_for()
    assert sliders.count() == 3
    for slider in sliders.all():
        box = slider.bounding_box()
        assert min(box["width"], box["height"]) >= 44


def test_wide_code_is_reached_by_keyboard(visit):
    """At once, and again when the fonts have come."""
    page = visit("index.html", width=390)
    held = []
    page.route("**/*.woff2", lambda route: held.append(route))
    page.goto(page.url.replace("index.html", ATTENTION), wait_until="commit")
    reached = """() => {
        const wide = [...document.querySelectorAll(".bd-article pre")]
            .filter((block) => block.scrollWidth > block.clientWidth);
        return wide.length > 9 && wide.every((block) => block.tabIndex === 0);
    }"""
    page.wait_for_function(reached)
    for route in held:
        route.continue_()
    page.unroute("**/*.woff2")
    page.wait_for_load_state("networkidle")
    page.wait_for_function(reached)


def test_axe_finds_nothing_serious(visit):
    """By day, and in what is not the same by night, the colours."""
    found = {}
    for path in AXED:
        page = visit(path)
        found[path, "light"] = findings(page)
        page.emulate_media(color_scheme="dark")
        page.reload(wait_until="networkidle")
        found[path, "dark"] = findings(page, ["color-contrast"])
    assert {which: faults for which, faults in found.items() if faults} == {}


def test_a_link_opens_the_folds_around_a_cell(visit):
    """As the page opens, and on the page; the next one by keyboard."""
    page = visit(XOR)
    ids = page.evaluate("""() => [...document.querySelectorAll(
        ".tt-folds div.cell[id]")].map(({ id }) => id)""")
    fold = page.locator(f"#{ids[0]} > details")
    assert not fold.is_visible()
    page.goto(f"{page.url}#{ids[0]}", wait_until="networkidle")
    assert fold.locator("pre").first.is_visible()
    page.reload(wait_until="networkidle")
    assert fold.locator("pre").first.is_visible()
    assert 0 <= fold.bounding_box()["y"] < 900
    other = page.locator(f"#{ids[1]} > details")
    other.locator("summary").focus()
    page.keyboard.press("Enter")
    assert other.locator("pre").first.is_visible()
    assert page.faults == []


def test_axe_finds_nothing_serious_in_open_folds(visit):
    page = visit(XOR)
    opened = page.evaluate("""() => {
        const folds = document.querySelectorAll("details.hide");
        for (const fold of folds) fold.open = true;
        return folds.length;
    }""")
    assert opened > 9
    assert findings(page) == []


def test_a_pages_screens_are_about_what_lint_reckons(root, visit):
    """Of every fourth chapter: beside each other, where one is far off."""
    book, far = read_book(root), []
    chapters = [chapter for chapter in book.chapters if chapter.cells]
    for chapter in chapters[::4]:
        page = visit(chapter.path.replace(".md", ".html"), width=1440)
        height = page.evaluate("document.documentElement.scrollHeight") / 900
        reckoned = measure(book, chapter).screens
        if not 0.85 < reckoned / height < 1.15:
            far.append(f"{chapter.name}: {height:.1f}, not {reckoned:.1f}")
    assert far == []


def test_print_shows_the_text_and_nothing_else(visit):
    page = visit(ARRAYS)
    page.emulate_media(media="print")
    for hidden in (
        ".bd-sidebar-primary",
        ".bd-header-article",
        ".prev-next-footer",
        ".tt-widget-controls",
        ".tt-done",
    ):
        assert not page.locator(hidden).first.is_visible(), hidden
    assert page.locator("article h1").is_visible()
    assert page.locator("article pre").first.is_visible()
    assert page.locator("details.hide details.hide pre").last.is_visible()
    assert page.locator("details.hide summary:visible").count() == 0
    assert wider_than_window(page) == []


def test_the_gates_can_fail(visit):
    page = visit("intro.html", width=360)
    page.evaluate("""() => {
        const image = document.createElement("img");
        image.src = "https://example.org/pixel.png";
        const wide = document.createElement("div");
        wide.style.cssText = "width: 900px; height: 1px";
        document.body.append(image, wide);
        setTimeout(() => { throw new Error("planted"); });
    }""")
    page.wait_for_timeout(100)
    assert any("example.org" in fault for fault in page.faults)
    assert any("planted" in fault for fault in page.faults)
    assert wider_than_window(page) != []
    assert any("image-alt" in finding for finding in findings(page))
