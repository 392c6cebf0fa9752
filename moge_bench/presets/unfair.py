"""The official comparisons as they were, each with one setting that is not the method's.

docs/method.md "Official settings" has the list. A result of such a preset against its counterpart
is none of MoGE; no study uses them. Parameters are those of the fair presets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moge_bench.config import build_config, set_path
from moge_bench.presets import smoe, upcycled, vmoe
from moge_bench.presets.imagenet import NUM_IMAGES
from moge_bench.presets.preset import Preset

_RATE = {"training.learning_rate": 3e-5 * 256 / 512}
_RATE_TOLD = "a learning rate of 3e-5 for 512 images, the MoE has 2e-5"
_NO_BALANCE = {"moe.balance": "none"}
_NO_BALANCE_TOLD = "the group loss in the place of the balance loss, which the MoE has"
# Fair preset -> the one setting that the authors had otherwise there, and the difference told.
OFFICIALLY: dict[str, tuple[dict[str, Any], str]] = {
    "vmoe-s16": (
        {"training.warmup_steps": 20 * (NUM_IMAGES // 1024)}, "20 epochs of warm-up, MoGE has 15"
    ),
    "vit-s16-upcycled-moge": (_RATE, _RATE_TOLD),
    "swin-t7-upcycled-moge": (_RATE, _RATE_TOLD),
    **{
        preset.name: (_NO_BALANCE, _NO_BALANCE_TOLD)
        for preset in smoe.PRESETS
        if preset.method == "moge" and not preset.name.endswith(("-released", "-submitted"))
    },
}  # fmt: skip


def _unfair(fair: Preset, settings: dict[str, Any], told: str) -> Preset:
    name = f"{fair.name}-unfair"
    values = fair.system.model_dump(mode="json")
    for path, value in {"preset": name, **settings}.items():
        set_path(values, path, value)
    about = f"{fair.about}; unfair as the authors' configs are: {told}"
    return Preset(
        name, build_config(values), fair.method, about, fair.reaches, fair.cost, fair.tuned,
        for_one_method=True,
    )  # fmt: skip


_FAIR: Sequence[Preset] = (*vmoe.PRESETS, *upcycled.PRESETS, *smoe.PRESETS)
PRESETS = [_unfair(fair, *OFFICIALLY[fair.name]) for fair in _FAIR if fair.name in OFFICIALLY]
