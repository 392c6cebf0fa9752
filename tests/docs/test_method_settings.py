"""The settings that docs/method.md states: schedule, official strengths, what the code has."""

import inspect
import math
import re

import pages as page
import pytest

from moge_bench import SigmaSchedule, route
from moge_bench.config import GroupConfig
from moge_bench.methods import METHODS
from moge_bench.metrics import METRICS
from moge_bench.presets import PRESETS
from moge_bench.presets.smoe import OFFICIAL_LANGUAGE, on_token_mean
from moge_bench.routing.balance import BALANCE_LOSSES

AUX_WEIGHT = 0.01


def test_sigma_schedule():
    (row,) = page.table("Sigma schedule")
    schedule = SigmaSchedule(10.0, 1.0, 0.2, total_steps=100)
    assert row.pop("t/T") == "sigma"
    assert len(row) == 6
    for progress, sigma in row.items():  # 10 - 9 * 0.01^0.2 = 10 - 9 * 0.39811 = 6.417 at 1 %
        step = int(progress.removesuffix(" %"))
        assert schedule.sigma(step) == pytest.approx(float(sigma), abs=0.005)


def settings_of(system):
    """Return {"submitted": lambda, "released": lambda} of the first table."""
    (row,) = [
        row for row in page.tables("Official settings")[0] if system.startswith(row["system"])
    ]
    submitted, released = list(row.values())[1:]
    return {"submitted": submitted, "released": released}


STRENGTHS = page.tables("Official settings")[1]


@pytest.mark.parametrize("row", STRENGTHS, ids=lambda row: row["system"])
def test_official_strengths_on_the_token_mean(row):
    tokens = math.prod(int(n) for n in row["tokens on a device"].split(" * "))
    image = row["system"] != "language models"
    for name, text in settings_of(row["system"]).items():
        # aux_weight * lambda * T / h^2: 0.01 * 0.003 * 256 * 144 / 9 = 0.1229 for SwinV2 stage 3.
        official = GroupConfig(
            weight=float(text.split(";")[0]),
            reduction="official_image" if image else "official_language",
        )
        strength = AUX_WEIGHT * on_token_mean(official, tokens).weight
        assert strength == pytest.approx(float(row[name]), rel=0.013), name


def test_official_language_settings_are_those_of_the_presets():
    for name, text in settings_of("language models").items():
        weight, start, end, gamma = map(float, re.findall(r"[\d.]+(?:e-\d+)?", text))
        group = OFFICIAL_LANGUAGE[name]
        assert (group.weight, group.sigma.start, group.sigma.end) == (weight, start, end)
        assert group.sigma.gamma == gamma


def has(row):
    """Return what a row says of the code: True for yes, False for planned."""
    return {"yes": True, "planned": False}[row["in the code"]]


def test_the_page_speaks_of_every_argument_of_the_wider_routing():
    arguments = inspect.signature(route).parameters
    said = page.prose("Wider routing")
    for name in (
        "renormalize",
        "mask",
        "score_function",
        "bias",
        "num_groups",
        "top_groups",
        "scale",
    ):
        assert name in arguments and f"`{name}`" in said, name
    assert "unit_energy" in arguments and "`unit_energy`" in page.prose("A repair: unit energy")


def test_the_page_says_which_methods_are_there():
    said = {page.names(row["method"])[0]: has(row) for row in page.table("Controls")}
    assert METHODS.keys() <= said.keys()
    for name, there in said.items():
        assert (name in METHODS) == there, name


def test_the_page_says_which_systems_are_there():
    for row in page.table("Systems"):
        for name in page.names(row["presets"]):
            assert (name in PRESETS) == has(row), name


def test_the_page_names_every_balance_loss_and_points_to_the_metrics():
    balance = page.prose("Balance losses")
    for name in BALANCE_LOSSES.keys() - {"none"}:
        assert f'`balance="{name}"`' in balance
    for name in ("top1_accuracy", "top5_accuracy", "perplexity", "bits_per_byte"):
        assert METRICS[name].title.split()[0] in page.prose("Metrics")
