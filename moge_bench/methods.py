"""Every method: what trains the router. The only list; what for: docs/method.md "Controls".

To add one, add an entry here. What it changes is written as settings: ``drops`` are sections that
a run of the method does not have, ``sets`` are settings that it fixes. A method that needs more
than settings needs that setting first (config/schema.py).
"""

from __future__ import annotations

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
        colour: of its dots and lines, from the colour-blind-safe palette of Okabe and Ito.
    """

    name: str
    title: str
    baselines: tuple[str, ...] = ()
    drops: tuple[str, ...] = ()
    sets: dict[str, Any] = field(default_factory=dict)
    colour: str = "#000000"

    def has(self, section: str) -> bool:
        """Return whether runs of the method have ``section``, a dotted path such as "moe.group"."""
        return not any(section == gone or section.startswith(f"{gone}.") for gone in self.drops)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("dense", "dense FFN, no experts", drops=("moe",), colour="#595959"),
        Method("moe", "mixture of experts", ("dense",), drops=("moe.group",), colour="#0072B2"),
        Method("moge", "MoE with the group-sparse loss", ("moe", "dense"), colour="#D55E00"),
    )
}
