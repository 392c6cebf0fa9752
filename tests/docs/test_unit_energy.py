"""The numbers of docs/method.md "A repair: unit energy": the formula, since no op has it yet.

Legend: z scores of tokens (T, N), on a torus, h = 3, sigma = 1.
"""

import math

import pages as page
import pytest
import torch

from moge_bench import group_norm
from moge_bench.ops.reference import group_norms
from moge_bench.ops.topography import EPS, Topography, gaussian_taps

TABLE = page.table("A repair: unit energy")


def unit_energy_loss(z, map_shape):
    """Mean of sqrt(sum G z^2 / sum_e z_e^2 + eps): the group norm of z scaled to energy 1."""
    unit = z / z.square().sum(dim=-1, keepdim=True).sqrt()
    return group_norm(unit, map_shape=map_shape, border="torus", backend="reference")


def even_on(cells, map_shape):
    z = torch.zeros(map_shape, dtype=torch.float64)
    for cell in cells:
        z[cell] = 1 / len(cells)
    return z.reshape(1, -1)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row["map"])
def test_table_of_unit_energy(row):
    rows, cols = map_shape = page.shape(row["map"])
    scores = {
        "one expert": [(0, 0)],
        "four adjacent": [(0, 0), (0, 1), (1, 0), (1, 1)],
        "four scattered": [(0, 0), (0, 2), (2, 0), (2, 2)],
        "uniform": [(i, j) for i in range(rows) for j in range(cols)],
    }
    values = []
    for name, cells in scores.items():
        value = unit_energy_loss(even_on(cells, map_shape), map_shape).item()
        assert value == pytest.approx(float(row[name]), abs=5.1e-5), name
        values.append(value)
    assert values == sorted(values)
    # Uniform: z_e^2 / sum = 1/N in every cell, so g = 1 / sqrt(N).
    assert values[-1] == pytest.approx(1 / math.sqrt(rows * cols), rel=1e-5)


@pytest.mark.parametrize("row", TABLE[:2], ids=lambda row: row["map"])
def test_descent_from_random_scores_ends_at_one_expert(row):
    map_shape = page.shape(row["map"])
    start = torch.Generator().manual_seed(0)
    x = torch.randn(4, math.prod(map_shape), generator=start, dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.3)
    for _ in range(150):
        optimizer.zero_grad()
        unit_energy_loss(torch.softmax(x, dim=-1), map_shape).backward()
        optimizer.step()
    z = torch.softmax(x.detach(), dim=-1)
    assert (z.max(dim=-1).values > 0.99).all()
    value = unit_energy_loss(z, map_shape).item()
    assert value == pytest.approx(float(row["one expert"]), abs=1e-4)


def test_gradient_by_unnormalised_scores_has_the_term_of_the_page():
    topo, taps = Topography(4, 4, 3, border="torus"), gaussian_taps(3, 1.0)
    x = torch.randn(1, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    e = torch.exp(x - x.max()).requires_grad_()
    total = e.square().sum()

    def energies(values):  # E_p: group_norms gives sqrt(E_p + eps)
        return group_norms(values, taps, topo).square() - EPS

    g = torch.sqrt(energies(e) / total + EPS)
    (wanted,) = torch.autograd.grad(g.mean(), e)
    # With S held fixed autograd gives the term that plain group norms have as well.
    held = torch.sqrt(energies(e) / total.detach() + EPS)
    (plain,) = torch.autograd.grad(held.mean(), e)
    grad_g, g, e, total = 1 / topo.num_groups, g.detach(), e.detach(), total.detach()
    gained = -2 * e * (grad_g * energies(e) / (2 * g * total**2)).sum()
    torch.testing.assert_close(plain + gained, wanted, rtol=1e-9, atol=1e-12)
    # The softmax's sum cancels: the same from e, from the scores, and as a loss.
    torch.testing.assert_close(g.mean(), unit_energy_loss(torch.softmax(x, dim=-1), (4, 4)))
