"""The page of the history: what it draws by hand, and that a browser runs it."""

import re
import shutil
import subprocess

import pytest

from moge_bench.perf import history_page
from moge_bench.perf.chart import Point, chart, figure

EXACT = "instructions/avx2 forward N=64 k=2 h=3"
TIMED = "router/N64-k2-h3-T8192-uniform-fp32-valid-t2"
COMMITS = {
    "aaaaaaaaaaaa": (0, "first"),
    "bbbbbbbbbbbb": (1, "second <b>"),
    "cccccccccccc": (2, "x"),
}


def exact(commit, count, verdict="pass", machine="counts", **extra):
    return {
        "commit": commit, "case": EXACT, "machine": machine, "detector": "instructions",
        "instructions": count, "num_tokens": 320, "verdict": verdict, "ratio_to_base": 1.0,
        "base": "0" * 12, "reason": "why",
    } | extra  # fmt: skip


def timed(commit, low, middle, high, **extra):
    return {
        "commit": commit, "case": TIMED, "machine": "EPYC", "detector": "wall time",
        "verdict": "pass", "median_ms": middle, "lower_quartile_ms": low,
        "upper_quartile_ms": high,
    } | extra  # fmt: skip


def test_figures_are_per_token_or_in_ms():
    assert history_page.value(exact("a", 640)) == 2.0  # 640 / 320 tokens
    assert history_page.value(timed("a", 1, 2, 3)) == 2.0
    assert history_page.unit(timed("a", 1, 2, 3)) == "ms"


@pytest.mark.parametrize(
    ("series", "index"),
    [([exact("a", 100)], None),
     ([exact("a", 10000), exact("b", 10005)], None),  # 0.05 %
     ([exact("a", 10000), exact("b", 10011), exact("c", 10011)], 1),
     ([timed("a", 1, 2, 3), timed("b", 2, 3, 4)], None),  # the quartiles overlap
     ([timed("a", 1, 2, 3), timed("b", 4, 5, 6), timed("c", 4, 5, 6)], 1),
     ([timed("a", 4, 5, 6), timed("b", 1, 2, 3)], 1)],
)  # fmt: skip
def test_the_last_change(series, index):
    assert history_page.last_change(series) == index


def test_commits_stand_in_the_order_of_the_log_whenever_they_were_measured():
    late = [exact("bbbbbbbbbbbb", 2), exact("aaaaaaaaaaaa", 1), exact("gone", 3)]
    order = history_page.by_machine(late, COMMITS)["counts"][EXACT]
    assert [e["instructions"] for e in order] == [3, 1, 2]


def test_the_page_marks_and_tells():
    entries = [
        exact("aaaaaaaaaaaa", 1000), exact("bbbbbbbbbbbb", 1100, "regression"),
        exact("cccccccccccc", 1100, "accepted", reason="it buys time"),
        timed("aaaaaaaaaaaa", 1, 2, 3, cleared=1.2),
    ]  # fmt: skip
    text = history_page.page(entries, COMMITS)
    for mark in ("regression", "accepted", "cleared"):
        assert text.count(f"class='mark {mark}'") == 1
    assert "second &lt;b&gt;" in text and "<b>" not in text
    assert "+10.0 %" in text and "it buys time" in text
    assert "first looked 1.200, not when measured again" in text
    # That of most commits first.
    assert re.findall(r"<option>(.*?)</option>", text) == ["counts", "EPYC"]
    assert not re.search(r"(src|href)=|https?://|@import", text)  # self-contained
    with pytest.raises(ValueError, match="the history is empty"):
        history_page.page([], COMMITS)


def test_figures_have_no_exponent():
    assert [figure(v) for v in (0.24213, 185.449, 999.96, 13560.4, 2.5e7)] == [
        "0.2421", "185.4", "1000", "13,560", "25,000,000"]  # fmt: skip


def test_a_chart_by_hand():
    svg = chart(
        [Point(1.0, 1.0, 1.0, "pass", "one"), Point(3.0, 2.0, 4.0, "regression", "3")], "ms"
    )
    # Axis: 1 to 4, widened by 8 %: 2.5 +- 1.62. 1.0 stands at 8 + 94 * (1.62 + 1.5) / 3.24 = 98.5;
    # the two points at a quarter and three quarters of 214 from 8: 61.5 and 168.5.
    assert "points='61.5,98.5 168.5," in svg
    assert svg.count("class='interval'") == 1  # the first has none
    assert "<title>one</title>" in svg and ">4</text>" in svg
    # Equal values: +- 2 %, in the middle.
    assert "61.5,55.0" in chart([Point(5.0, 5.0, 5.0, "pass", "")] * 2, "ms")
    with pytest.raises(ValueError, match="at least one"):
        chart([], "ms")


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_menu_works_in_a_browser(tmp_path):
    entries = [exact("aaaaaaaaaaaa", 1000), timed("aaaaaaaaaaaa", 1, 2, 3)]
    choose = "<script>menu.selectedIndex = 1; menu.dispatchEvent(new Event('change'));</script>"
    for name, more, shown in (("first", "", "EPYC"), ("second", choose, "counts")):
        path = tmp_path / f"{name}.html"
        page = history_page.page(entries, COMMITS)
        path.write_text(page.replace("</body>", f"{more}</body>"), encoding="utf-8")
        dom = subprocess.run(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu",
             f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()],
            capture_output=True, text=True, timeout=120, check=True,
        ).stdout  # fmt: skip
        sections = re.findall(r"<section aria-label=\"(\w+)\"( hidden)?", dom)
        assert [label for label, hidden in sections if not hidden] == [shown]
