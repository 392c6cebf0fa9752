"""CUDA kernels of the wider routing on the CPU, against the float64 reference.

Of every size class, under schedules that must agree to the bit.
"""

import pytest
import torch

from moge_bench.ops import reference
from moge_bench.ops.choice import Choice
from moge_bench.ops.topography import Topography, gaussian_taps
from tools.simt import launch
from tools.simt.cases import DTYPES
from tools.simt.kernels import Kernels
from tools.simt.wider import Wider
from tools.simt.wider_checks import CASES, check_unit_norm, check_wider


@pytest.fixture(scope="module")
def kernels():
    return Kernels("plain")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_routing(kernels, dtype, case):
    check_wider(kernels, case, dtype, launch.SCHEDULES[:2])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_access(case):
    """In the traced build, which checks bounds, alignment and races."""
    check_wider(Kernels("trace"), case, torch.bfloat16, launch.SCHEDULES[:1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_experts", [12, 300])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reduction", ["token_mean", "official_image"])
def test_group_norm_of_unit_energy(kernels, dtype, num_experts, masked, reduction):
    check_unit_norm(kernels, num_experts, reduction, dtype, masked)


def test_not_finite(kernels):
    logits = torch.randn(6, 64)
    logits[1, 3], logits[2, 4], logits[4] = torch.nan, torch.inf, -torch.inf
    wider = Wider(Choice(64, 2, score_function="sigmoid"))
    ours = kernels.route(logits, 2, strict=True, wider=wider)
    assert ours["bad_rows"].tolist() == [1, -1]
    assert ours["weights"][1:3].isnan().all() and ours["weights"][[0, 3, 4, 5]].isfinite().all()
    truth = reference.route(logits.double(), None, None, None, wider.choice)
    assert torch.equal(ours["experts"], truth[1])


def test_no_token_that_counts(kernels):
    mask, topo = torch.zeros(6, dtype=torch.bool), Topography(8, 8, 3)
    settings = {"taps": gaussian_taps(3, 1.0), "topo": topo, "wider": Wider(mask=mask)}
    ours = kernels.route(torch.randn(6, 64), 2, **settings)
    assert float(ours["group_loss"]) == 0.0
    assert torch.count_nonzero(ours["importance"]) == torch.count_nonzero(ours["load"]) == 0


def test_settings_that_do_not_fit(kernels):
    with pytest.raises(RuntimeError, match="num_groups must divide num_experts"):
        kernels.route(torch.zeros(1, 64), 1, wider=Wider(Choice(9, 1, num_groups=3)))
    with pytest.raises(RuntimeError, match="top_groups must divide top_k"):
        kernels.route(torch.zeros(1, 64), 3, wider=Wider(Choice(64, 4, num_groups=4, top_groups=2)))
