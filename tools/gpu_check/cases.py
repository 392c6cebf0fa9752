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
    bias and activation  k 2 d e             a row read and one written per choice; offsets, biases
    their backward       k 3 d e             two rows read and one written; as above
    sort of the choices  no least: a counting sort has several passes by its nature
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tools.interface import BIAS_OPS, ELEMENTS, ROUTE_OPS, ROW_OPS

NUM_TOKENS = 65536  # enough that the partial sums of blocks, whose number is bounded, are few
TOP_K = 2
HIDDEN_SIZES = (256, 1023)  # rows that 16-byte accesses divide, and rows that they do not
# Experts a lane 1, 2, 4, ... 32; rows that 16-byte accesses divide, and rows that they do not.
NUM_EXPERTS = (32, 64, 128, 256, 512, 1024, 63, 126, 255, 510, 1023)
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

    def __str__(self) -> str:
        if self.op in (*ROW_OPS, *BIAS_OPS):
            return f"T={self.num_tokens} d={self.hidden_size} k={self.top_k}"
        choices = f" k={self.top_k}" if "norm" not in self.op else ""
        return f"T={self.num_tokens} N={self.num_experts}{choices}"

    @property
    def name(self) -> str:
        """What a case is chosen by."""
        return f"{self.op} {self.element} {self}"

    @property
    def min_bytes_per_token(self) -> float | None:
        """The least bytes a token, or None; see the head of this file."""
        k, row = self.top_k, self.hidden_size * BYTES[self.element]
        logits = self.num_experts * BYTES[self.element]
        return {
            "route_forward": logits + k * 12 + 8,
            "route_backward": 2 * logits + 8 + k * 16,
            "group_norm_forward": logits,
            "group_norm_backward": 2 * logits,
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
        for op in (*ROW_OPS, *BIAS_OPS):
            for hidden_size in HIDDEN_SIZES:
                yield Case(op, element, NUM_TOKENS, num_experts=64, hidden_size=hidden_size)
    # Its scatter uses what the other blocks' histograms left: all blocks run, of fewer tokens.
    yield Case("sort_choices", "float32", 1024, num_experts=64, sampled=False)
