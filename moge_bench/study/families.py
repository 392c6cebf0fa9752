"""The systems that the paper and its code evaluate, by family, each with what is published of it.

docs/method.md "Systems" describes them. Of MoGE itself no number could be read; beside a system
stand the published results of the nearest one, under their own names.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class System:
    """A system: its preset's name, or what it is; ``beside`` are names of published results."""

    name: str
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """Systems that share a table. ``metric`` is what they are judged by."""

    title: str
    metric: str
    systems: tuple[System, ...]


_MOGE = ("MoGE (all models), any",)
_SWIN_MOE = tuple(
    f"Swin-MoE-{size}, {setting}"
    for size, settings in (
        ("S", ("dense", *(f"{n} experts k=1" for n in (8, 16, 32, 64, 128)),
               "32 experts k=1 cosine router")),
        ("B", ("dense", "8 experts k=1", "16 experts k=1", "32 experts k=1", "32 experts k=2")),
    )
    for setting in settings
)  # fmt: skip


def _with_moge(plain: tuple[str, ...], moge: tuple[str, ...]) -> tuple[System, ...]:
    return (*map(System, plain), *(System(name, _MOGE) for name in moge))


FAMILIES = (
    Family(
        "V-MoE, from scratch", "top1_accuracy",
        (
            System("vmoe-s16-dense"),
            System(
                "vmoe-s16",
                ("V-MoE-S/32, 8 experts k=2 last-2 300 epochs from scratch",
                 "V-MoE-S/32, same at 384 px"),
            ),
            System("vmoge-s16", _MOGE),
        ),
    ),
    Family(
        "SwinV2-MoE, from scratch", "top1_accuracy",
        (
            System(
                "swinv2-t12-dense",
                ("SwinV2-T dense, 256 px window 8", "SwinV2-T dense, 256 px window 16"),
            ),
            System("swinv2-moe-t12", _SWIN_MOE),
            System("swinv2-moge-t12", _MOGE),
        ),
    ),
    Family(
        "ViT-S/16, upcycled", "top1_accuracy",
        (
            System(
                "vit-s16-dense",
                ("ViT-S/16 AugReg, 21k pretrain then 1K, 224 px",
                 "ViT-S/16 AugReg, 1K from scratch, 224 px"),
            ),
            *_with_moge(("vit-s16-upcycled",), ("vit-s16-upcycled-moge",)),
        ),
    ),
    Family(
        "SwinV1-T/7, upcycled", "top1_accuracy",
        (
            System(
                "swin-t7-dense",
                ("Swin-T dense, 224 px 1K", "Swin-T dense, 22K pretrain then 1K",
                 "Swin-T, 22K pretrain then 1K, 224 px"),
            ),
            *_with_moge(("swin-t7-upcycled",), ("swin-t7-upcycled-moge",)),
        ),
    ),
    Family(
        "SMoE", "perplexity",
        (
            System("dense-s"),
            System("dense-m"),
            System("smoe-s"),
            System("smoe-m", ("MoE routing topologies, linear router, 76-84M, 50k steps",)),
            *_with_moge((), ("smoge-s", "smoge-m")),
        ),
    ),
    Family(
        "MomentumSMoE", "perplexity",
        _with_moge(
            ("momentum-smoe-s", "momentum-smoe-m"), ("momentum-smoge-s", "momentum-smoge-m")
        ),
    ),
    Family("AdamSMoE", "perplexity", _with_moge(("adam-smoe-m",), ("adam-smoge-m",))),
    Family(
        "Vision and language", "top1_accuracy",
        (
            System(
                "MoE-LLaVA", tuple(f"MoE-LLaVA-{b}Bx4-Top2, baseline" for b in (1.6, 1.8, 2.7))
            ),
            System("MoE-LLaVA with MoGE", _MOGE),
        ),
    ),
)  # fmt: skip
