"""What expert_ffn and its ops refuse, and in which words."""

import pytest
import torch
from expert_samples import make_inputs

from moge_bench.ops import grouped_ffn
from moge_bench.ops.expert_ffn import expert_ffn
from moge_bench.ops.reference_experts import ACTIVATIONS


def bad(**changes):
    names = ["x", "weights", "experts", "w_in", "b_in", "w_out", "b_out"]
    return {**dict(zip(names, make_inputs(), strict=True)), **changes}


ERRORS = [
    ({"x": torch.zeros(13)}, r"x must have shape \(T, d\), got \(13,\)"),
    ({"x": torch.zeros(13, 6).half()}, "x must be float32, float64 or bfloat16, got torch.float16"),
    ({"x": torch.zeros(13, 6).double()}, "w_in must have the dtype of x, torch.float64, got"),
    ({"x": torch.zeros(12, 6)}, r"experts must be \(T, k\) .*= \(12, 2\), got \(13, 2\)"),
    ({"x": torch.zeros(13, 7)}, r"w_in must be \(N, f, d\) .*= \(4, 5, 7\), got \(4, 5, 6\)"),
    ({"weights": torch.zeros(13, 3)}, r"weights must be .*= \(13, 2\), got \(13, 3\)"),
    ({"weights": torch.zeros(13, 2).int()}, "weights must be float32, .*, got torch.int32"),
    ({"weights": [[1.0]]}, "weights must be a torch.Tensor, got list"),
    ({"experts": torch.zeros(13, 2)}, "experts must be int64 or int32, got torch.float32"),
    ({"experts": torch.full((13, 2), 4)}, "experts must hold -1 .dropped. or .* 0 to 3, got 4"),
    ({"experts": torch.full((13, 2), -2)}, "experts must hold -1 .dropped. or .* 0 to 3, got -2"),
    ({"experts": torch.zeros(13, 0).long()}, "experts must hold at least one choice a token"),
    ({"w_out": torch.zeros(4, 5, 6)}, r"w_out must be .*= \(4, 6, 5\), got \(4, 5, 6\)"),
    ({"b_in": torch.zeros(4, 6)}, r"b_in must be .*= \(4, 5\), got \(4, 6\)"),
    ({"b_out": None}, "b_in and b_out must be given together .* b_out is None"),
    ({"activation": "tanh"}, r"activation must be one of \('gelu', .*, got 'tanh'"),
    ({"backend": "cuda"}, "backend must be one of .*, got 'cuda'"),
]


@pytest.mark.parametrize(("changes", "message"), ERRORS)
def test_errors_name_the_argument(changes, message):
    for backend in ("reference", "extension"):
        with pytest.raises((ValueError, TypeError), match=message):
            expert_ffn(**bad(**{"backend": backend, **changes}))


def test_the_op_itself_stays_in_bounds():
    inputs = [t.detach() for t in make_inputs()]
    y, activations = torch.ops.moge.expert_ffn(*inputs, "gelu", True)
    x, weights, experts, w_in, _, w_out, b_out = inputs
    backward = torch.ops.moge.expert_ffn_backward
    with pytest.raises(ValueError, match=r"experts must hold -1 .* 0 to 3, got 9"):
        backward(y, x, weights, experts.clone().fill_(9), w_in, w_out, b_out, activations, "gelu")
    with pytest.raises(ValueError, match=r"activations must have shape \[26, 5\], got \[3, 5\]"):
        backward(y, x, weights, experts, w_in, w_out, b_out, activations[:3], "gelu")
    with pytest.raises(ValueError, match=r"grad_y must have shape \[13, 6\]"):
        backward(y[:5], x, weights, experts, w_in, w_out, b_out, activations, "gelu")


def test_an_activation_that_the_cuda_kernel_lacks_is_named(monkeypatch):
    """The kernel adds the bias too, and knows the activation by a number."""
    monkeypatch.setitem(ACTIVATIONS, "relu2", lambda x: x.relu().square())
    inputs = make_inputs()
    with pytest.raises(ValueError, match=r"activation='relu2' is not one of .*'gelu', .*launch.h"):
        grouped_ffn.expert_ffn(*inputs, "relu2")
