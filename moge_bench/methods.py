"""Every method: what trains the router. The only list; what for: docs/method.md "Controls".

To add one, add an entry here. What it changes is written as settings: ``drops`` are sections that
a run of the method does not have, ``sets`` are settings that it fixes, ``derives`` those that
follow from others. A method that needs more than settings needs that setting first
(config/schema.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Method:
    """What a method is called, compared with, made of and drawn in.

    Attributes:
        name: as grids and records write it.
        title: one line for people.
        baselines: names of the methods it is compared with; the first that a study has.
        drops: dotted paths of optional sections that become None.
        sets: dotted path -> value, fixed by the method.
        derives: the same as a function of the resolved nested settings; None: nothing.
        colour: of its dots and lines, from the colour-blind-safe palette of Okabe and Ito.
    """

    name: str
    title: str
    baselines: tuple[str, ...] = ()
    drops: tuple[str, ...] = ()
    sets: dict[str, Any] = field(default_factory=dict)
    derives: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    colour: str = "#000000"

    def has(self, section: str) -> bool:
        """Return whether runs of the method have ``section``, a dotted path such as "moe.group"."""
        return not any(section == gone or section.startswith(f"{gone}.") for gone in self.drops)


def _as_wide_as_active(values: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of one expert as wide as the k that a token meets: a wider dense FFN."""
    moe = values["moe"]
    one = moe["expert_size"] or values["model"].get("ffn_size")
    if one is None and moe["top_k"] > 1:
        raise ValueError(
            f"method 'dense-wide' with moe.top_k={moe['top_k']} needs moe.expert_size where the "
            "width of an FFN depends on its stage (Swin)"
        )
    width = moe["top_k"] * one if one else None
    return {
        "moe.num_experts": 1, "moe.top_k": 1, "moe.expert_size": width, "moe.balance": "none",
        "moe.noise": False, "moe.renormalize": False, "moe.bias_update_rate": 0.0,
        "moe.z_loss_weight": 0.0, "moe.capacity_factor": None, "moe.batch_priority": False,
    }  # fmt: skip


def _grouped(*, shuffled: bool = False, unit_energy: bool = False) -> dict[str, Any]:
    group = {"moe.group.shuffled": shuffled, "moe.group.unit_energy": unit_energy}
    return {**_PLAIN, **group}


_PLAIN = {"moe.regularizer": "none", "moe.regularizer_weight": 0.0}
_NO_GROUP = ("moe.group",)

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("dense", "dense FFN, no experts", drops=("moe",), colour="#595959"),
        Method("dense-wide", "dense FFN with the active FLOPs of the MoE", ("dense",),
               drops=_NO_GROUP, sets=_PLAIN, derives=_as_wide_as_active, colour="#999999"),
        Method("moe", "mixture of experts", ("dense",), drops=_NO_GROUP, sets=_PLAIN,
               colour="#0072B2"),
        Method("moge", "MoE with the group-sparse loss", ("moe", "dense"), sets=_grouped(),
               colour="#D55E00"),
        Method("moge-shuffled", "MoGE with the map drawn anew at every step", ("moe", "dense"),
               sets=_grouped(shuffled=True), colour="#E69F00"),
        Method("moge-unit", "MoGE of scores of unit energy", ("moe", "dense"),
               sets=_grouped(unit_energy=True), colour="#009E73"),
        Method("moge-unit-shuffled", "unit energy, the map drawn anew at every step",
               ("moe", "dense"), sets=_grouped(shuffled=True, unit_energy=True), colour="#56B4E9"),
        Method("moe-entropy", "MoE rewarded for even scores", ("moe", "dense"), drops=_NO_GROUP,
               sets={"moe.regularizer": "entropy"}, colour="#CC79A7"),
        Method("simbal", "MoE with orthogonal router rows (SimBal)", ("moe", "dense"),
               drops=_NO_GROUP, sets={"moe.regularizer": "simbal"}, colour="#882255"),
        Method("orthogonality", "MoE with orthogonal outputs and varied scores", ("moe", "dense"),
               drops=_NO_GROUP, sets={"moe.regularizer": "orthogonality"}, colour="#44AA99"),
    )
}  # fmt: skip
