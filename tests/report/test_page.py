"""The page of a report in a real browser."""

import os
import re
import shutil

import pytest
from ended_search import make

from mbv3_jax.__main__ import main

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def page(sweep_folder, tmp_path_factory):
    """The file of a report with every section."""
    out = tmp_path_factory.mktemp("report") / "report.html"
    loose = str(sweep_folder / "each-seed0")
    assert main(["report", str(sweep_folder), loose, f"--out={out}", "--no-latency"]) == 0
    return out


@pytest.fixture(scope="module")
def search_page(tmp_path_factory):
    """The file of a search's report."""
    folder = make(tmp_path_factory.mktemp("searches") / "clutter")
    out = folder / "search.html"
    assert main(["report", str(folder), f"--out={out}", "--no-latency"]) == 0
    return out


@pytest.fixture(params=["page", "search_page"])
def any_page(request):
    return request.getfixturevalue(request.param)


def test_the_page_needs_nothing_else(page, search_page):
    for file in (page, search_page):
        text = file.read_text()
        assert not re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?(?!data:|#)[\w/.]+:', text)
    text = page.read_text()
    assert "http://www.w3.org" in text or "https://" not in text  # names of SVG, not addresses
    assert "&lt;no room&gt;" in text and "<no room>" not in text
    assert len(text) < 1_000_000


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    webdriver = None
    if chromium and driver:
        webdriver = pytest.importorskip("selenium.webdriver")
    elif not os.environ.get("MBV3_REQUIRE_BROWSER"):
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield opened
    opened.quit()


def view(browser, page, *, width=1200, theme="light"):
    """Opens the page."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page.as_uri())


def test_it_opens_without_an_error_or_a_request(browser, any_page):
    view(browser, any_page)
    assert browser.get_log("browser") == []
    asked = [
        url
        for entry in browser.get_log("performance")
        for url in re.findall(r'"requestWillBeSent".*?"url":"([^"]+)"', entry["message"])
    ]
    assert {url.split(":")[0] for url in asked} <= {"file", "data"}


def test_a_sweep_s_page_has_every_section(browser, page):
    view(browser, page)
    headings = browser.execute_script(
        "return [...document.querySelectorAll('h3')].map(h => h.textContent)"
    )
    assert headings[:4] == ["Trials", "Training", "Accuracy against cost", "Where the cost lies"]
    assert {"Confusions and mistakes", "Commands and versions"} <= set(headings)
    assert "interrupted, at step 12" in browser.execute_script(
        "return document.querySelector('.missing').textContent"
    )


def test_a_click_sorts(browser, page):
    view(browser, page)
    column = (
        "const table = document.querySelector('table.sortable');"
        "const heads = [...table.tHead.rows[0].cells];"
        "const at = heads.findIndex(h => h.textContent.startsWith(arguments[0]));"
        "if (arguments[1]) heads[at].querySelector('button').click();"
        "return [heads[at].ariaSort, [...table.tBodies[0].rows].map(r => r.cells[at].dataset.sort)]"
    )
    for click, order in ((1, "descending"), (2, "ascending")):
        said, values = browser.execute_script(column, "top-1", True)
        numbers = [float(v) for v in values if v]
        assert said == order and numbers == sorted(numbers, reverse=click == 1)
        assert values[len(numbers) :] == [""] * 3  # what has no figure stays last
    said, names = browser.execute_script(column, "trial", True)
    assert said == "ascending" and names == ["both", "cut", "each", "failed", "waiting"]


def test_headings_are_not_repeated_and_words_do_not_run_together(browser, page, search_page):
    headings = "return [...document.querySelectorAll('h1, h2')].map(h => h.textContent)"
    view(browser, search_page)
    assert browser.execute_script(headings) == ["clutter: a search in the space small"]
    view(browser, page)
    title, *sections = browser.execute_script(headings)
    assert len({title, *sections}) == 3 and sections[0].startswith("nonlinearity: ")
    text = browser.execute_script("return document.body.textContent")
    assert re.search(r"\w+ for \w+: \d+; ", text), "frequent confusions are listed"
    assert not re.search(r"\d\(|[a-z]\(what", text)


def test_text_columns_are_aligned_left_and_sort_from_a(browser, search_page):
    view(browser, search_page)
    align, order = browser.execute_script(
        "const head = [...document.querySelectorAll('table.sortable th')]"
        ".find(h => h.textContent === 'kind');"
        "head.querySelector('button').click();"
        "const body = head.closest('table').tBodies[0];"
        "return [getComputedStyle(body.rows[0].cells[1]).textAlign,"
        "[...body.rows].map(r => r.cells[1].textContent)]"
    )
    assert align == "left" and order == ["found"] * 2 + ["reference"] * 3


def test_numbers_of_an_axis_do_not_overlap(browser, page):
    view(browser, page)
    overlaps = browser.execute_script(
        "let count = 0;"
        "for (const axis of document.querySelectorAll('[id=matplotlib\\\\.axis_1]')) {"
        "  const boxes = [...axis.querySelectorAll('[id^=xtick] text')]"
        "    .map(t => t.getBoundingClientRect()).sort((a, b) => a.x - b.x);"
        "  for (let i = 1; i < boxes.length; i++) count += boxes[i].x < boxes[i - 1].right;"
        "}"
        "return count"
    )
    assert overlaps == 0


def luminance(colour: str) -> float:
    """Relative luminance of "rgb(r, g, b)" (WCAG 2.1)."""
    parts = [int(v) / 255 for v in re.findall(r"\d+", colour)[:3]]
    r, g, b = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_can_be_read_in_both_themes(browser, any_page, theme):
    view(browser, any_page, theme=theme)
    colours = browser.execute_script(
        "const of = (s, name) => getComputedStyle(document.querySelector(s))[name];"
        "return {page: of('body', 'backgroundColor'), text: of('body', 'color'),"
        "soft: of('.soft', 'color'), chart: of('figure svg text', 'fill')}"
    )
    ground = luminance(colours.pop("page"))
    assert (ground < 0.05) if theme == "dark" else (ground > 0.9)
    for name, colour in colours.items():
        lighter, darker = sorted((luminance(colour), ground), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, name
    browser.find_element("id", "theme").click()
    other = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (luminance(other) < 0.05) == (theme == "light")


def test_a_phone_needs_no_sideways_scrolling(browser, any_page):
    view(browser, any_page, width=360)
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    inside, wide = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert inside <= wide <= 360


def test_drawn_blocks_fit_a_phone_whole(browser, search_page):
    view(browser, search_page, width=360)
    fits = browser.execute_script(
        "return [...document.querySelectorAll('.blocks')].map("
        "t => t.parentNode.scrollWidth <= t.parentNode.clientWidth)"
    )
    assert fits == [True, True]
    shares = browser.execute_script(
        "const width = e => e.getBoundingClientRect().width;"
        "return [...document.querySelectorAll('.bar')].slice(0, 11).map("
        "e => width(e) / width(e.parentNode))"
    )
    assert max(shares) == shares[-1] > 0.85 and min(shares) == shares[0] < 0.03


def test_the_caption_of_a_small_matrix_is_one_line(browser, page):
    view(browser, page)
    heights = browser.execute_script(
        "document.querySelectorAll('details').forEach(d => { d.open = true });"
        "const table = document.querySelector('table.matrix');"
        "[...table.rows].forEach(r => [...r.cells].slice(3).forEach(c => c.remove()));"
        "const line = parseFloat(getComputedStyle(table.caption).lineHeight);"
        "return [table.caption.getClientRects()[0].height, line]"
    )
    assert heights[0] < 2 * heights[1]
