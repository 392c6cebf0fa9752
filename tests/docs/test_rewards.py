"""The report's numbers of the loss are those of docs/method.md, which other tests compute again."""

import pages as page
import pytest

from moge_bench.publish.rewards import loss_numbers


@pytest.mark.parametrize(
    ("name", "title"), [("loss", "What the loss rewards"), ("unit_energy", "A repair: unit energy")]
)
def test_the_report_has_the_numbers_of_the_page(name, title):
    assert loss_numbers()[name] == page.table(title)
