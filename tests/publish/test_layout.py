"""Where arms stand in a table: `shown` and coordinates by hand."""

from types import SimpleNamespace

from moge_bench.publish.layout import axis_title, key_label, lay_out
from moge_bench.study.frame import ANY

AXES = {"method": ("dense", "moe"), "n": (16, 32), "h": (2, 3)}


def arm(coordinates, **shown):
    return SimpleNamespace(shown=shown, entry=SimpleNamespace(coordinates=coordinates))


def everywhere(method):
    return [{"method": method, "n": n, "h": h} for n in (16, 32) for h in (2, 3)]


def test_an_arm_that_an_axis_does_not_change_stands_in_every_row():
    dense = arm(everywhere("dense"), method="dense", n=ANY, h=ANY)
    moe = {n: arm([{"method": "moe", "n": n, "h": h} for h in (2, 3)], method="moe", n=n, h=ANY)
           for n in (16, 32)}  # fmt: skip
    layout = lay_out([dense, *moe.values()], AXES, ["n", "h"], ["method"])
    assert layout.rows == (("16", ANY), ("32", ANY))  # h changes nothing here
    assert layout.columns == (("dense",), ("moe",))
    assert layout.arms[("32", ANY), ("dense",)] is dense
    assert layout.arms[("32", ANY), ("moe",)] is moe[32]


def test_it_has_a_row_of_its_own_only_where_nothing_else_is():
    dense = arm(everywhere("dense"), method="dense", n=ANY, h=ANY)
    moe = arm([{"method": "moe", "n": 16, "h": h} for h in (2, 3)], method="moe", n=16, h=ANY)
    layout = lay_out([dense, moe], AXES, ["n", "method"], ["h"])
    assert layout.rows == ((ANY, "dense"), ("16", "moe"))
    assert layout.columns == ((ANY,),)
    assert len(layout.arms) == 2


def test_columns_keep_the_order_of_their_values():
    arms = [arm([{"method": "moe", "n": n, "h": 2}], method="moe", n=n, h=2) for n in (32, 16)]
    assert lay_out(arms, AXES, ["h"], ["n"]).columns == (("16",), ("32",))


def test_a_combination_that_was_skipped_is_empty():
    arms = [arm([{"method": "moe", "n": n, "h": h}], method="moe", n=n, h=h)
            for n, h in ((16, 2), (16, 3), (32, 2))]  # fmt: skip
    layout = lay_out(arms, AXES, ["n"], ["h"])
    assert (("32",), ("3",)) not in layout.arms
    assert len(layout.arms) == 3


def test_names_for_people():
    assert axis_title("moe.group.size") == "group size"
    assert axis_title("moe.group.weight") == "lambda"
    assert axis_title("method") == "method"
    assert key_label(["method", "moe.group.size"], ("moge", "2")) == "moge, group size 2"
    assert key_label(["moe.group.size", "method"], (ANY, "dense")) == "dense"
