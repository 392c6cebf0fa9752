"""The launches that the cost report counts: one call of a launcher each, with its least bytes.

Legend: T tokens, N experts, k choices, d hidden size, e bytes of an element. The least bytes a
token are what the operation must move if every tensor that it is given or gives is touched once:

    route forward        N e + k (4 + 8) + 8      logits; weights, int64 experts; row statistics
    route backward       2 N e + 8 + k (4 + 8 + 4)  logits, their gradient; statistics; weights,
                                                  experts, gradient of the weights
    group norm           N e, backward 2 N e
    gather               k (2 d e + 4)            a row read and one written per choice; slots
    combine              k (d e + 4 + 4) + d e    rows, positions and weights; output
    combine, weights     k (2 d e + 4 + 4)        two rows multiplied per choice; positions, result
    the same, wider      1 byte more        the mask; the bias is one row for all
    bias and activation  k 2 d e             a row read and one written per choice; offsets, biases
    their backward       k 3 d e             two rows read and one written; as above
    sort of the choices  no least: a counting sort has several passes by its nature
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tools.interface import BIAS_OPS, ELEMENTS, ROUTE_OPS, ROW_OPS

NUM_TOKENS = 65536  # enough that the partial sums of blocks, whose number is bounded, are few
MANY_TOKENS = 4 * NUM_TOKENS  # chunks are as long as they get: what begins and ends one is least
TOP_K = 2
GROUP_SIZE = 3
HIDDEN_SIZES = (256, 1023)  # rows that 16-byte accesses divide, and rows that they do not
# Experts a lane 1, 2, 4, ... 32; rows that 16-byte accesses divide, and rows that they do not.
NUM_EXPERTS = (24, 48, 96, 192, 512, 1024, 63, 126, 255, 510, 1023)
# The maps that csrc/cuda/subwarp_launcher.h has kernels for, and the largest group that does not
# wrap.
SUB_WARP_MAPS = {8: 2, 16: 4, 32: 4, 64: 5, 128: 5, 256: 5}
SUB_WARP_OPS = ("route_forward", "route_backward")
# Of the wider routing: what every case of it has, and how DeepSeek-V3 limits the choice.
WIDER_FUNCTION, WIDER_SCALE = "sigmoid", 2.5
RANGES_EXPERTS, RANGES_TOP_K, RANGES = 256, 8, (8, 4)
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Case:
    """One call of ``moge_cuda_<op>``.

    ``sampled``: a few blocks stand for all, since blocks do not use what others leave.
    """

    op: str
    element: str
    num_tokens: int
    num_experts: int
    top_k: int = TOP_K
    hidden_size: int = HIDDEN_SIZES[0]
    sampled: bool = True
    group_size: int | None = GROUP_SIZE
    border: str = "valid"
    wider: bool = False  # sigmoid with a scale, a bias, a mask in which all count, unit energy
    ranges: tuple[int, int] = (1, 1)  # num_groups, top_groups
    counted: bool = False  # the loss is divided by the tokens that count, on the device

    def __str__(self) -> str:
        if self.op in (*ROW_OPS, *BIAS_OPS):
            return f"T={self.num_tokens} d={self.hidden_size} k={self.top_k}"
        text = f"T={self.num_tokens} N={self.num_experts}"
        if "norm" not in self.op:
            text += f" k={self.top_k}"
        if (self.group_size, self.border) != (GROUP_SIZE, "valid"):
            text += f" h={self.group_size or 0} {self.border}"
        if self.ranges != (1, 1):
            text += f" ranges={self.ranges[0]},{self.ranges[1]}"
        if self.counted:
            text += " counted"
        # One kernel serves every element, at other costs: the name of the others tells theirs.
        sub_warp = self.op in SUB_WARP_OPS and self.num_experts in SUB_WARP_MAPS
        return f"{text} {self.element}" if self.wider or sub_warp else text

    @property
    def name(self) -> str:
        """What a case is chosen by."""
        return f"{self.kernel} {self.element} {self}"

    @property
    def kernel(self) -> str:
        """How the name of the kernel begins that does the work of the tokens."""
        what, _, direction = self.op.rpartition("_")
        return f"{what}_wide_{direction}" if self.wider else self.op

    @property
    def min_bytes_per_token(self) -> float | None:
        """The least bytes a token, or None; see the head of this file."""
        k, row = self.top_k, self.hidden_size * BYTES[self.element]
        logits, mask = self.num_experts * BYTES[self.element], int(self.wider)
        return {
            "route_forward": logits + k * 12 + 8 + mask,
            "route_backward": 2 * logits + 8 + k * 16 + mask,
            "group_norm_forward": logits + mask,
            "group_norm_backward": 2 * logits + mask,
            "gather_rows": k * (2 * row + 4),
            "combine_rows": k * (row + 8) + row,
            "combine_weight_grad": k * (2 * row + 8),
            "bias_activation": k * 2 * row,
            "bias_activation_backward": k * 3 * row,
        }.get(self.op)


def all_cases() -> Iterator[Case]:
    """Yield the cases: every op, element type and number of experts that has its own kernel."""
    for element in ELEMENTS:
        for op in ROUTE_OPS:
            for num_experts in NUM_EXPERTS:
                yield Case(op, element, NUM_TOKENS, num_experts)
                yield Case(op, element, NUM_TOKENS, num_experts, wider=True)
        yield Case(
            "route_forward", element, NUM_TOKENS, RANGES_EXPERTS, RANGES_TOP_K, wider=True,
            ranges=RANGES,
        )  # fmt: skip
        for op in SUB_WARP_OPS:
            for num_experts, largest in SUB_WARP_MAPS.items():
                yield Case(
                    op, element, NUM_TOKENS, num_experts, group_size=min(GROUP_SIZE, largest)
                )
            yield Case(op, element, MANY_TOKENS, 64)
        for op in (*ROW_OPS, *BIAS_OPS):
            # Of a grid the last blocks, as many as experts, may have no rows: few experts, few.
            num_experts = 16 if op in BIAS_OPS else 64
            for hidden_size in HIDDEN_SIZES:
                yield Case(op, element, NUM_TOKENS, num_experts, hidden_size=hidden_size)
    for op in SUB_WARP_OPS:
        for num_experts, largest in SUB_WARP_MAPS.items():
            for group_size in (None, *range(2, largest + 1)):
                if group_size != min(GROUP_SIZE, largest):
                    yield Case(op, "float32", NUM_TOKENS, num_experts, group_size=group_size)
            for group_size in (3, 5):
                yield Case(
                    op, "float32", NUM_TOKENS, num_experts, group_size=group_size, border="torus"
                )
    yield Case("group_norm_forward", "float32", NUM_TOKENS, 192, wider=True, counted=True)
    # Its scatter uses what the other blocks' histograms left: all blocks run, of fewer tokens.
    yield Case("sort_choices", "float32", 1024, num_experts=64, sampled=False)
