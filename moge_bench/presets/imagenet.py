"""What the vision presets share: the recipe on ImageNet-1K, and the official group losses."""

from __future__ import annotations

from collections.abc import Mapping

from moge_bench.config import (
    GroupConfig,
    ImageDataConfig,
    MoEConfig,
    RunConfig,
    SigmaConfig,
    TrainingConfig,
)
from moge_bench.presets.preset import Preset
from moge_bench.presets.smoe import on_token_mean

NUM_IMAGES = 1_281_167  # in the training split of ImageNet-1K
SCALES = ("released", "submitted")

# The authors' augmentation. 1 % of the training images are held out for validation: the official
# validation split is the test split here.
IMAGENET = ImageDataConfig(
    name="imagenet-1k", validation_share=0.01, flip=True, resized_crop=0.08, rand_augment=9,
    mixup=0.8, cutmix=1.0, erasing=0.25,
)  # fmt: skip


def official_group(scale: str, released: float, submitted: float) -> GroupConfig:
    """Return an official group loss at the authors' scale, a sum over the tokens of a device."""
    if scale == "submitted":
        sigma = SigmaConfig(start=10, end=0.5, gamma=0.3)
        return GroupConfig(weight=submitted, reduction="official_image", sigma=sigma)
    return GroupConfig(weight=released, reduction="official_image")


def official_moe(blocks: tuple[int, ...], dropout: float = 0.0) -> MoEConfig:
    """Return the MoE layers of the authors' image models, without a group loss."""
    return MoEConfig(
        blocks=blocks, num_experts=32, top_k=1, balance="vmoe", noise=True, capacity_factor=4.0,
        batch_priority=True, dropout=dropout,
    )  # fmt: skip


def recipe(
    *, epochs: int, warmup_epochs: int, batch_size: int, learning_rate: float,
    final_learning_rate: float, weight_decay: float,
) -> TrainingConfig:  # fmt: skip
    """Return AdamW with a cosine over ``epochs`` of whole batches of ImageNet-1K."""
    per_epoch = NUM_IMAGES // batch_size
    return TrainingConfig(
        steps=epochs * per_epoch, warmup_steps=warmup_epochs * per_epoch, batch_size=batch_size,
        learning_rate=learning_rate, final_learning_rate=final_learning_rate,
        weight_decay=weight_decay, clip_norm=5.0, label_smoothing=0.1,
    )  # fmt: skip


# Of both systems that are trained from scratch.
FROM_SCRATCH = recipe(
    epochs=150,
    warmup_epochs=15,
    batch_size=1024,
    learning_rate=1e-3,
    final_learning_rate=1e-5,
    weight_decay=0.05,
)


def with_group(system: RunConfig, group: GroupConfig, tokens: int) -> RunConfig:
    """Return ``system`` with ``group`` on the mean over tokens, as strong as over ``tokens``."""
    assert system.moe is not None
    moe = system.moe.model_copy(update={"group": on_token_mean(group, tokens)})
    return system.model_copy(update={"moe": moe})


def at_official_scale(
    system: RunConfig, name: str, group: GroupConfig, images_per_device: int
) -> RunConfig:
    """Return ``system`` with ``group`` as it is: the authors' sum over the tokens of a device.

    A step is cut into micro-batches of ``images_per_device``, one for each device of theirs, so
    that one device computes the objective that they trained. With as many devices as theirs set
    ``training.gradient_accumulation`` to 1.
    """
    assert system.moe is not None
    training = system.training
    per_step = {"gradient_accumulation": training.batch_size // images_per_device}
    return system.model_copy(
        update={
            "preset": name,
            "moe": system.moe.model_copy(update={"group": group}),
            "training": training.model_copy(update=per_step),
        }
    )


def presets_of(
    system: RunConfig,
    groups: Mapping[str, GroupConfig],
    images_per_device: int,
    *,
    names: tuple[str, str, str],
    moe: str,
    dense: str,
    anchor: str,
    cost: str,
) -> list[Preset]:
    """Return ``system`` as MoE, as MoGE, as MoGE at each official scale, and its dense twin.

    ``names`` are those of MoE, MoGE and the twin; ``moe`` and ``dense`` say what they are, and
    ``anchor`` the nearest published result.
    """
    reaches = (
        "not known here: no run has been made, and no table of MoGE could be read; nearest "
        f"published: {anchor} (results/published_results.csv)"
    )
    plain, moge, twin = names
    official = [
        at_official_scale(system, f"{moge}-{scale}", group, images_per_device)
        for scale, group in groups.items()
    ]
    return [
        Preset(plain, system, "moe", moe, reaches, cost),
        Preset(moge, system, "moge", moe, reaches, cost),
        *[Preset(each.preset, each, "moge", moe, reaches, cost) for each in official],
        Preset(twin, system, "dense", dense, reaches, cost),
    ]
