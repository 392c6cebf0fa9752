"""The narrow panels beside a difference."""

import pytest
from matplotlib.figure import Figure

from moge_bench.publish import beside


@pytest.mark.parametrize(
    ("interval", "labels"),
    [((0.0, 0.1), ["0", "0.05", "0.1"]), ((0.99764, 0.99785), ["0.9977"]), ((0.9, 1.0), None)],
)
def test_labels_of_a_narrow_panel_do_not_meet(interval, labels):
    axes = Figure().subplots()
    axes.set_xlim(*interval)
    beside._two_ticks(axes.xaxis)
    found = [axes.xaxis.get_major_formatter()(tick) for tick in axes.xaxis.get_ticklocs()]
    assert found == labels or (labels is None and max(map(len, found)) <= 4)
