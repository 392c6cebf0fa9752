"""V-MoE-S/16 and V-MoGE-S/16 from scratch on ImageNet-1K (docs/method.md "Systems").

MoE and MoGE share every setting but the group loss: the authors warm their MoE up for 20 epochs and
their MoGE for 15, and here both have 15 (``vmoe-s16-unfair`` has 20: presets/unfair.py). Where this
differs from the authors' model: attention and dense FFNs have the biases and the initial values of
transformers' ViT, experts those of nn.Linear, which are larger (moe/experts.py), and so have the
FFNs of the dense twin in their place; position embeddings and the class token are decayed with the
other weights. The number of steps is that of the whole training split, of which 1 % is held out
here. Parameters in all and active, of one token: 156,443,112 and 26,260,968; dense 26,228,200.
"""

from __future__ import annotations

from moge_bench.config import RunConfig, VisionModelConfig
from moge_bench.presets.imagenet import (
    FROM_SCRATCH,
    IMAGENET,
    SCALES,
    official_group,
    official_moe,
    presets_of,
    with_group,
)
from moge_bench.presets.preset import counted

LAMBDAS = {"released": 0.003, "submitted": 0.005}
IMAGES_PER_DEVICE = 256

_MODEL = VisionModelConfig(
    image_size=224, patch_size=16, num_channels=3, num_classes=1000, hidden_size=512, depth=8,
    num_heads=8, ffn_size=2048,
)  # fmt: skip
_GROUPS = {scale: official_group(scale, **LAMBDAS) for scale in SCALES}
_SYSTEM = with_group(
    RunConfig(
        preset="vmoe-s16",
        method="moge",
        model=_MODEL,
        moe=official_moe((5, 7)).model_copy(update={"group": _GROUPS["released"]}),
        data=IMAGENET,
        training=FROM_SCRATCH,
    ),
    _GROUPS["released"],
    IMAGES_PER_DEVICE * _MODEL.tokens_per_example,
)  # fmt: skip

_ABOUT = "ViT, 8 layers, width 512, 8 heads, 16 x 16 patches of 224 x 224"
PRESETS = presets_of(
    _SYSTEM, _GROUPS, IMAGES_PER_DEVICE, names=("vmoe-s16", "vmoge-s16", "vmoe-s16-dense"),
    moe=f"{_ABOUT}; 32 experts, 1 active, in blocks 5 and 7",
    dense=f"{_ABOUT}, every FFN dense",
    anchor="V-MoE-S/32, 8 experts, 300 epochs, 73.1 % top-1",
    cost=counted("6.2e18", "5.8", "187,650 steps of 1,024 images"),
)  # fmt: skip
