"""SwinV2-MoE-T/12 and SwinV2-MoGE-T/12 from scratch on ImageNet-1K (docs/method.md "Systems").

MoE and MoGE share every setting but the group loss. The recipe is that of V-MoE-S/16. Where this
differs from the authors' model: it is transformers' SwinV2, whose blocks normalise what a branch
returns; the second linear map of an FFN has its bias; the MoE dropout is on what the layer returns,
theirs inside the experts; what makes the biases of attention is decayed with the other weights.

The two MoE layers see 144 and 36 tokens an image, so the authors' sum over tokens weighs them 4 to
1; the token mean weighs them alike, with the strength that the sum has in stage 3. ``-released``
and ``-submitted`` have the authors' sum itself.

Parameters in all and active, of one token: 211,408,018 and 28,384,018, dense 28,347,154; tiny-swin
698,976 and 38,736, tiny-swinv2 707,024 and 46,784.
"""

from __future__ import annotations

from typing import Literal

from moge_bench.config import (
    GroupConfig,
    ImageDataConfig,
    MoEConfig,
    RunConfig,
    SwinModelConfig,
    TrainingConfig,
)
from moge_bench.presets.imagenet import (
    FROM_SCRATCH,
    IMAGENET,
    SCALES,
    official_group,
    official_moe,
    presets_of,
    with_group,
)
from moge_bench.presets.preset import Preset, counted

LAMBDAS = {"released": 0.003, "submitted": 0.4}
IMAGES_PER_DEVICE = 256
STAGE_3_TOKENS = 144  # of an image: 192 / 4 = 48 a side, halved twice

_GROUPS = {scale: official_group(scale, **LAMBDAS) for scale in SCALES}
_SYSTEM = with_group(
    RunConfig(
        preset="swinv2-moe-t12",
        method="moge",
        model=SwinModelConfig(
            backbone="swinv2", image_size=192, patch_size=4, num_channels=3, num_classes=1000,
            embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), window_size=12,
            drop_path=0.2,
        ),
        moe=official_moe((9, 11), dropout=0.1).model_copy(update={"group": _GROUPS["released"]}),
        data=IMAGENET,
        training=FROM_SCRATCH,
    ),
    _GROUPS["released"],
    IMAGES_PER_DEVICE * STAGE_3_TOKENS,
)  # fmt: skip

_ABOUT = "SwinV2-T, width 96 to 768, depths 2-2-6-2, windows of 12, 192 x 192"


def _tiny(name: str, backbone: Literal["swin", "swinv2"]) -> Preset:
    """Return a Swin for a laptop: the experts and the map of ``tiny-vit``, one MoE layer a stage.

    1,400 steps are 10 epochs.
    """
    system = RunConfig(
        preset=name,
        method="moge",
        model=SwinModelConfig(
            backbone=backbone, image_size=28, patch_size=2, num_channels=1, num_classes=10,
            embed_dim=16, depths=(2, 2), num_heads=(1, 2), window_size=7, drop_path=0.1,
        ),
        moe=MoEConfig(
            blocks=(1, 3), num_experts=64, group=GroupConfig(weight=1000.0, border="torus")
        ),
        data=ImageDataConfig(flip=True, crop_padding=2),
        training=TrainingConfig(
            steps=1400, batch_size=64, learning_rate=2e-3, warmup_steps=140, label_smoothing=0.1
        ),
    )  # fmt: skip
    title = {"swin": "Swin", "swinv2": "SwinV2"}[backbone]
    reached = {
        "swin": "75.6 % as moe, 70.9 % as dense",
        "swinv2": "75.3 % as moe, 74.1 % as dense",
    }[backbone]
    took = {
        "swin": "178 to 615 s on one of two shared cores, 622 to 1,018 MiB",
        "swinv2": "190 to 992 s on one of two shared cores, 652 to 959 MiB",
    }[backbone]
    return Preset(
        name, system, "moge",
        f"{title}, 2 stages of 2 layers, width 16 and 32, 196 patches an image; 64 experts, 1 "
        "active",
        f"test top-1 {reached} (n = 5, results/studies/vision); too small for the task: logistic "
        "regression on pixels reaches 84 % on validation (results/anchors.json)",
        f"{took} (results/studies/vision)",
    )  # fmt: skip


PRESETS = [
    _tiny("tiny-swin", "swin"),
    _tiny("tiny-swinv2", "swinv2"),
    *presets_of(
        _SYSTEM, _GROUPS, IMAGES_PER_DEVICE,
        names=("swinv2-moe-t12", "swinv2-moge-t12", "swinv2-t12-dense"),
        moe=f"{_ABOUT}; 32 experts, 1 active, in the last block of stages 3 and 4",
        dense=f"{_ABOUT}, every FFN dense",
        anchor="SwinV2-T dense, 256 px, window 8, 300 epochs, 81.8 % top-1",
        cost=counted("4.1e18", "3.8", "187,650 steps of 1,024 images"),
    ),
]  # fmt: skip
