"""The report in headless Chromium: it loads, sorts, shows the runs behind a number, fits a phone.

On Debian: apt-get install chromium chromium-driver; `.ci/run` does it. Without them these tests are
skipped, unless MOGE_REQUIRE_BROWSER is set.
"""

import os
import shutil

import pytest
from study_samples import make_study, read_answer

from moge_bench.publish.report import write_report

STUDY = """
name: golden
question: Does the group-sparse loss help, and at which of its strengths, if at all?
primary: {metric: top1_accuracy, contrast: [moge, moe], margin: 0.5}
base: {preset: tiny-vit, seeds: [0, 1, 2]}
axes:
  method: [moe, moge]
  moe.group.weight: [1.0, 4.0, 16.0]
table:
  rows: moe.group.weight
  columns: method
  metrics: [top1_accuracy, cross_entropy, dose, peak_memory_mib, tokens_per_second]
"""
PROGRAMS = {
    "chromium": shutil.which("chromium") or shutil.which("google-chrome"),
    "chromedriver": shutil.which("chromedriver"),
}
MISSING = [name for name, path in PROGRAMS.items() if path is None]
if MISSING and not os.environ.get("MOGE_REQUIRE_BROWSER"):
    pytest.skip(
        f"no {' and no '.join(MISSING)}: apt-get install chromium chromium-driver",
        allow_module_level=True,
    )


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    assert not MISSING, f"MOGE_REQUIRE_BROWSER is set and there is no {MISSING}"
    options = webdriver.ChromeOptions()
    options.binary_location = PROGRAMS["chromium"]
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(PROGRAMS["chromedriver"]))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("report") / "results"
    gain = {1.0: 0.0, 4.0: 3.0, 16.0: 1.0}
    make_study(
        root, STUDY,
        lambda c: 75.0 + c.seed + (gain[c.moe.group.weight] if c.method == "moge" else 0),
    )  # fmt: skip
    return write_report([read_answer(root)], root).as_uri()


def visit(browser, page, width=1100, scheme="light"):
    """Load the page at a width, in a colour scheme; return what the console said."""
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page)
    return browser.get_log("browser")


def test_nothing_is_wrong_and_every_picture_is_there(browser, page):
    assert visit(browser, page) == []
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('svg.figure')].map(s => {"
        "const box = s.getBoundingClientRect(); return [box.width, box.height]})"
    )
    assert len(sizes) == 2  # the answer; what the loss rewards
    assert all(width > 500 and height > 150 for width, height in sizes)
    assert browser.execute_script(
        "return performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:'))"
    ) == []  # fmt: skip


def column(browser, place):
    return browser.execute_script(
        "const t = [...document.querySelectorAll('#golden table.sortable')][1];"
        "return [...t.tBodies[0].rows].map(r => r.cells[arguments[0]].dataset.sort)", place
    )  # fmt: skip


def click_head(browser, place):
    browser.execute_script(
        "const t = [...document.querySelectorAll('#golden table.sortable')][1];"
        "t.tHead.rows[0].cells[arguments[0]].firstElementChild.click()", place
    )  # fmt: skip


def test_tables_sort_by_number_both_ways_with_gaps_last(browser, page):
    visit(browser, page)
    # lambda 1, 4, 16 of moge, moe without one; mean of seeds 0, 1, 2: 1 above the first.
    assert sorted(column(browser, 2)) == ["76.0", "76.0", "77.0", "79.0"]
    click_head(browser, 2)
    assert column(browser, 2) == ["76.0", "76.0", "77.0", "79.0"]
    click_head(browser, 2)
    assert column(browser, 2) == ["79.0", "77.0", "76.0", "76.0"]
    click_head(browser, 0)
    # "-" of moe is no number, so it is compared as text; 4 stands before 16.
    found = column(browser, 0)
    assert [each for each in found if each != "-"] == ["1.0", "4.0", "16.0"]
    click_head(browser, 3)  # differences: moe has none
    assert column(browser, 3) == ["0.0", "1.0", "3.0", ""]
    click_head(browser, 3)
    assert column(browser, 3) == ["3.0", "1.0", "0.0", ""]


def test_a_number_shows_its_runs_and_leads_to_a_record(browser, page):
    visit(browser, page)
    links = browser.execute_script(
        "const cell = document.querySelector('#golden td.right a.n'); cell.focus();"
        "const box = document.getElementById('source');"
        "return [box.hidden, [...box.querySelectorAll('a')].map(a => a.href)]"
    )
    hidden, found = links
    assert not hidden
    # Three places of moge and one of moe, three seeds each.
    assert len(found) == 12 and all("/runs/" in link for link in found)
    browser.get(found[0])
    assert '"run_id"' in browser.page_source


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_system_and_the_button(browser, page, scheme):
    visit(browser, page, scheme=scheme)
    browser.execute_script("localStorage.clear()")
    visit(browser, page, scheme=scheme)

    def dark():
        colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        return sum(map(int, colour[4:-1].split(","))) < 3 * 128

    def ink():
        return browser.execute_script(
            "return getComputedStyle(document.querySelector('svg.figure text')).fill"
        )

    assert dark() == (scheme == "dark")
    before = ink()
    browser.find_element("id", "theme").click()
    assert dark() != (scheme == "dark")
    assert ink() != before
    browser.get(page)
    assert dark() != (scheme == "dark")  # it is kept
    browser.execute_script("localStorage.clear()")


def test_nothing_overflows_a_phone(browser, page):
    assert visit(browser, page, width=380) == []
    widths = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert widths == [380, 380]
    out = browser.execute_script(
        "return [...document.querySelectorAll('body *')].filter(e => !e.closest('.wide *, svg')"
        " && e.getBoundingClientRect().right > 380.5).map(e => e.outerHTML.slice(0, 80))"
    )
    assert out == []
