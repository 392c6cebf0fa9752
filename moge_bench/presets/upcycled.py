"""ViT-S/16 and Swin-T/7 on ImageNet-1K, upcycled from dense weights (docs/method.md "Systems").

MoE and MoGE share every setting but the group loss: the authors train their MoE with a rate of 2e-5
and their MoGE with 3e-5, and here both have 2e-5 for 512 images, scaled linearly to a batch of 256
(the authors' 64 images on each of 4 devices) as the code of Swin does. A weight is a token's
softmax score, so that k = 1 does not compute the dense function before training, as it did not for
the authors; ``moe.renormalize`` would, and would leave the router no gradient of the task loss.

Other deviations: the MoE dropout is on what the layer returns, theirs inside the experts; and the
checkpoints are those that the hub has in transformers' format: ViT-S/16 of ImageNet-21K already
tuned on 1K, Swin-T of 1K alone. The authors start from weights of ImageNet-22K: give a folder of
such as ``model.upcycled_from``.

Parameters in all and active, of one token: ViT-S/16 95,332,456 and 22,075,240, dense 22,050,664;
Swin-T/7 211,349,218 and 28,325,218, dense 28,288,354.
"""

from __future__ import annotations

from typing import Any

from moge_bench.config import RunConfig, SwinModelConfig, VisionModelConfig
from moge_bench.presets.imagenet import (
    IMAGENET,
    SCALES,
    official_group,
    official_moe,
    presets_of,
    recipe,
    with_group,
)
from moge_bench.presets.preset import Preset, counted

LAMBDAS = {"released": 3e-5, "submitted": 4e-5}
IMAGES_PER_DEVICE = 64
STAGE_3_TOKENS = 196  # of an image in Swin-T/7: 224 / 4 = 56 a side, halved twice

_GROUPS = {scale: official_group(scale, **LAMBDAS) for scale in SCALES}


def _system(
    name: str, model: VisionModelConfig | SwinModelConfig, tokens_per_image: int,
    pixels: dict[str, Any] | None = None,
) -> RunConfig:  # fmt: skip
    """Return a system whose group loss is as strong as the sum over ``tokens_per_image``.

    ``pixels``: mean and deviation that the checkpoint was trained with; None: the data set's.
    """
    system = RunConfig(
        preset=name,
        method="moge",
        model=model,
        moe=official_moe((9, 11), dropout=0.1).model_copy(update={"group": _GROUPS["released"]}),
        data=IMAGENET.model_copy(update=pixels or {}),
        training=recipe(
            epochs=30, warmup_epochs=5, batch_size=256, learning_rate=1e-5,
            final_learning_rate=1e-7, weight_decay=1e-8,
        ),
    )  # fmt: skip
    return with_group(system, _GROUPS["released"], IMAGES_PER_DEVICE * tokens_per_image)


_VIT = _system(
    "vit-s16-upcycled",
    VisionModelConfig(
        image_size=224, patch_size=16, num_channels=3, num_classes=1000, hidden_size=384, depth=12,
        num_heads=6, ffn_size=1536, upcycled_from="WinKawaks/vit-small-patch16-224",
    ),
    197,
    # As its preprocessor_config.json says, and unlike the set's own 0.485 and 0.229.
    pixels={"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
)  # fmt: skip
_SWIN = _system(
    "swin-t7-upcycled",
    SwinModelConfig(
        backbone="swin", image_size=224, patch_size=4, num_channels=3, num_classes=1000,
        embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), window_size=7, drop_path=0.1,
        upcycled_from="microsoft/swin-tiny-patch4-window7-224",
    ),
    STAGE_3_TOKENS,
)  # fmt: skip


def _presets(
    name: str, system: RunConfig, about: str, dense: str, anchor: str, flops: str, hours: str
) -> list[Preset]:
    return presets_of(
        system, _GROUPS, IMAGES_PER_DEVICE, names=(name, f"{name}-moge", dense),
        moe=f"{about}, upcycled: 32 experts, 1 active, in blocks 9 and 11",
        dense=f"{about}, dense, from the same weights", anchor=anchor,
        cost=counted(flops, hours, "150,120 steps of 256 images"),
    )  # fmt: skip


PRESETS = [
    *_presets(
        "vit-s16-upcycled", _VIT, "ViT-S/16, 12 layers, width 384, 6 heads, 224 x 224",
        "vit-s16-dense", "ViT-S/16 AugReg, dense, 81.4 % top-1", "1.1e18", "0.99",
    ),
    *_presets(
        "swin-t7-upcycled", _SWIN,
        "Swin-T, width 96 to 768, depths 2-2-6-2, windows of 7, 224 x 224",
        "swin-t7-dense", "Swin-T, dense, 81.2 % top-1", "1.0e18", "0.97",
    ),
]  # fmt: skip
