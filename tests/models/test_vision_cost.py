"""Parameters and FLOPs of the vision systems against counts by hand.

Legend: d width, h heads, w side of a window, T tokens of a block, N experts. A product of (l, m)
with (m, n) is 2 l m n FLOPs.
"""

import pytest

from moge_bench.models.cost import cost_of
from moge_bench.presets import resolve


def ffn(d):
    return 4 * d * d + 4 * d + 4 * d * d + d


def moe_of(d, num_experts):
    """More parameters than those of the FFN it replaces, and more of those a token meets."""
    gate = num_experts * d
    return (num_experts - 1) * ffn(d) + gate, gate


def vit(image, patch, d, depth, classes, moe_blocks, num_experts):
    """Return (parameters, active, FLOPs a token)."""
    tokens = (image // patch) ** 2 + 1
    pixels = 3 * patch * patch
    block = 2 * 2 * d + 4 * (d * d + d) + ffn(d)
    parameters = pixels * d + d + d + tokens * d + depth * block + 2 * d + d * classes + classes
    flops = (tokens - 1) * 2 * pixels * d + 2 * d * classes
    flops += depth * (tokens * (2 * 4 * d * d + 2 * 8 * d * d) + 2 * 2 * tokens * tokens * d)
    flops += moe_blocks * tokens * 2 * d * num_experts
    more, gate = moe_of(d, num_experts)
    total, active = parameters + moe_blocks * more, parameters + moe_blocks * gate
    return total, active, round(flops / tokens)


@pytest.mark.parametrize(
    ("preset", "sizes", "total", "active"),
    [
        ("vmoe-s16", (224, 16, 512, 8, 1000, 2, 32), 156_443_112, 26_260_968),
        ("vmoe-s16-dense", (224, 16, 512, 8, 1000, 0, 32), 26_228_200, 26_228_200),
        ("vit-s16-upcycled", (224, 16, 384, 12, 1000, 2, 32), 95_332_456, 22_075_240),
        # ViT-S/16 has 22,050,664 parameters in timm too.
        ("vit-s16-dense", (224, 16, 384, 12, 1000, 0, 32), 22_050_664, 22_050_664),
    ],
)
def test_vit_systems(preset, sizes, total, active):
    cost = cost_of(resolve(preset))
    assert (cost.parameters, cost.active_parameters, cost.flops_per_token) == vit(*sizes)
    assert (cost.parameters, cost.active_parameters) == (total, active)


def swin(version, side, channels, patch, embed, depths, heads, window, classes, moe, num_experts):
    """Return (parameters, active, FLOPs a token of the first stage). ``moe``: one a stage."""
    pixels = channels * patch * patch
    first = side * side
    parameters = pixels * embed + embed + 2 * embed
    flops = first * 2 * pixels * embed
    total = 0
    for stage, (depth, h) in enumerate(zip(depths, heads, strict=True)):
        d, tokens = embed * 2**stage, (side // 2**stage) ** 2
        w = min(window, side // 2**stage)
        table = (2 * w - 1) ** 2
        block = 2 * 2 * d + 4 * (d * d + d) + ffn(d)
        work = tokens * (2 * 4 * d * d + 2 * 8 * d * d) + 2 * 2 * tokens * w * w * d
        if version == 1:
            block += (2 * window - 1) ** 2 * h  # a bias per head and distance
        else:  # no bias of the key; a scale per head; a perceptron of 512 gives the biases
            block += -d + h + (2 * 512 + 512) + 512 * h
            work += 2 * table * (2 * 512 + 512 * h)
        parameters += depth * block
        flops += depth * work
        if moe[stage]:
            more, gate = moe_of(d, num_experts)
            total += more - gate
            parameters += gate
            flops += tokens * 2 * d * num_experts
        if stage + 1 < len(depths):  # four neighbours become one of twice the width
            parameters += 4 * d * 2 * d + 2 * (4 * d if version == 1 else 2 * d)
            flops += tokens // 4 * 2 * 4 * d * 2 * d
    parameters += 2 * d + d * classes + classes
    flops += 2 * d * classes
    return total + parameters, parameters, round(flops / first)


T = {"embed": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24), "channels": 3, "patch": 4,
     "classes": 1000, "num_experts": 32}  # fmt: skip
TINY = {"embed": 16, "depths": (2, 2), "heads": (1, 2), "channels": 1, "patch": 2, "classes": 10,
        "num_experts": 64, "side": 14, "window": 7}  # fmt: skip
LAST_TWO, NONE = (0, 0, 1, 1), (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("preset", "sizes", "total", "active"),
    [
        ("swinv2-moe-t12", {**T, "version": 2, "side": 48, "window": 12, "moe": LAST_TWO},
         211_408_018, 28_384_018),
        ("swinv2-t12-dense", {**T, "version": 2, "side": 48, "window": 12, "moe": NONE},
         28_347_154, 28_347_154),
        ("swin-t7-upcycled", {**T, "version": 1, "side": 56, "window": 7, "moe": LAST_TWO},
         211_349_218, 28_325_218),
        # Swin-T has 28,288,354 parameters and 4.5 G multiplications (arXiv 2103.14030, table 1).
        ("swin-t7-dense", {**T, "version": 1, "side": 56, "window": 7, "moe": NONE},
         28_288_354, 28_288_354),
        ("tiny-swin", {**TINY, "version": 1, "moe": (1, 1)}, 698_976, 38_736),
        ("tiny-swinv2", {**TINY, "version": 2, "moe": (1, 1)}, 707_024, 46_784),
    ],
)  # fmt: skip
def test_swin_systems(preset, sizes, total, active):
    cost = cost_of(resolve(preset))
    assert (cost.parameters, cost.active_parameters, cost.flops_per_token) == swin(**sizes)
    assert (cost.parameters, cost.active_parameters) == (total, active)
