"""Fused topographic group-norm routing for Mixture-of-Experts models, and its benchmark suite.

Importing this package needs only torch; the suite's libraries are imported where they are used.
"""

import sys
from typing import TYPE_CHECKING

__all__ = [
    "GroupNorm",
    "MoEAux",
    "MoELayer",
    "Routing",
    "SigmaSchedule",
    "TopographicRouter",
    "group_norm",
    "route",
    "update_selection_bias",
]
__version__ = "0.1.0"

# The command `moge-bench` uses none of these names, and imports torch where a command needs it:
# --help and completion do not wait seconds for it, and Ctrl-C meanwhile is no traceback.
_IS_COMMAND = "moge_bench.cli" in sys.orig_argv or "".join(sys.argv[:1]).endswith("moge-bench")

if TYPE_CHECKING or not _IS_COMMAND:
    from moge_bench.moe.layer import MoEAux, MoELayer
    from moge_bench.ops.group_norm import group_norm
    from moge_bench.ops.route import Routing, route
    from moge_bench.routing.group_norm import GroupNorm
    from moge_bench.routing.router import TopographicRouter
    from moge_bench.routing.schedule import SigmaSchedule
    from moge_bench.routing.selection_bias import update_selection_bias
