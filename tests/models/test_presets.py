import pytest
import torch

from moge_bench import group_norm
from moge_bench.config import GroupConfig
from moge_bench.models.presets import (
    OFFICIAL_LANGUAGE,
    OFFICIAL_LANGUAGE_TOKENS,
    on_token_mean,
    resolve,
)

AUX_WEIGHT = 0.01


def test_language_coefficients_on_the_token_mean_are_the_published_ones():
    # METHOD.md: 3.1e-4 released, 3.1e-3 submitted, aux_weight included: 0.01 * 1e-5 * 3072.
    for name, published in (("released", 3.1e-4), ("submitted", 3.1e-3)):
        mean = on_token_mean(OFFICIAL_LANGUAGE[name], OFFICIAL_LANGUAGE_TOKENS)
        assert pytest.approx(published, rel=0.02) == AUX_WEIGHT * mean.weight
        assert mean.sigma == OFFICIAL_LANGUAGE[name].sigma


def test_image_coefficients_on_the_token_mean_are_the_published_ones():
    # V-MoGE-S/16, 256 images of 197 tokens a device: 0.01 * 0.003 * 256 * 197 / 9 = 0.168.
    for weight, published in ((0.003, 0.168), (0.005, 0.280)):
        official = GroupConfig(weight=weight, reduction="official_image")
        mean = on_token_mean(official, 256 * 197)
        assert pytest.approx(published, rel=0.01) == AUX_WEIGHT * mean.weight


@pytest.mark.parametrize("reduction", ["official_language", "official_image", "token_mean"])
def test_the_two_scales_are_the_same_loss(reduction):
    official = OFFICIAL_LANGUAGE["released"].model_copy(update={"reduction": reduction})
    scores = torch.softmax(torch.randn(50, 16, dtype=torch.float64), dim=-1)
    mean = on_token_mean(official, 50)

    def loss(settings):
        return settings.weight * group_norm(
            scores, group_size=settings.size, reduction=settings.reduction, backend="reference"
        )

    torch.testing.assert_close(loss(mean), loss(official))


def test_names_of_one_system_resolve_to_the_same_run():
    assert resolve("smoe-s", "moge") == resolve("smoge-s")
    assert resolve("smoge-s", "moe") == resolve("smoe-s")
    assert resolve("dense-s") == resolve("smoe-s", "dense")


def test_published_sizes():
    small, medium = resolve("momentum-smoge-s"), resolve("adam-smoge-m")
    assert (small.model.depth, small.model.hidden_size, small.model.context) == (3, 128, 256)
    assert (medium.model.depth, medium.model.hidden_size, medium.model.context) == (6, 352, 512)
    assert small.moe.residual.gamma1 == 0.8
    assert medium.moe.residual.kind == "adam"
    assert (small.moe.num_experts, small.moe.top_k, small.moe.blocks) == (16, 2, (0, 1, 2))
    assert (small.training.steps, medium.training.steps) == (60_000, 80_000)
