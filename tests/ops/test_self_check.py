"""What the doctor compares: a fault planted in a kernel is found, and named."""

import pytest
import torch

from moge_bench.ops import self_check


class ScaledGradient(torch.autograd.Function):
    """The same value, its gradient off by a thousandth."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * 1.001


def later_expert_of_equals(call, logits, top_k, **options):
    """Expert e as N - 1 - e and back again: of equal logits the later one comes first."""
    noise = options.pop("noise")
    flipped = call(logits.flip(1), top_k, noise=None if noise is None else noise.flip(1), **options)
    r = call(logits, top_k, noise=noise, **options)
    r.experts, r.load = logits.shape[1] - 1 - flipped.experts, flipped.load.flip(0)
    return r


def always_a_torus(call, *arguments, border, **options):
    return call(*arguments, border="torus", **options)


def stride_ignored(call, *arguments, stride, **options):
    return call(*arguments, stride=1, **options)


def last_rows_of_a_tile(call, logits, top_k, **options):
    """Where T is no multiple of 8, the last row's weights are those of the row before."""
    r = call(logits, top_k, **options)
    if logits.shape[0] % 8 > 1:
        r.weights = torch.cat([r.weights[:-1], r.weights[-2:-1]])
    return r


def last_experts_of_a_block(call, logits, top_k, **options):
    """Where N is no multiple of 8, the last expert's importance is lost."""
    r = call(logits, top_k, **options)
    if logits.shape[1] % 8:
        r.importance = torch.cat([r.importance[:-1], 0 * r.importance[-1:]])
    return r


def gradient_of_the_route_loss(call, *arguments, **options):
    r = call(*arguments, **options)
    r.group_loss = ScaledGradient.apply(r.group_loss)
    return r


def gradient_of_the_result(call, *arguments, **options):
    return ScaledGradient.apply(call(*arguments, **options))


def one_group_lost(call, scores, **options):
    """A hundredth of the loss, in float64 alone."""
    loss = call(scores, **options)
    return loss * 0.99 if scores.dtype == torch.float64 else loss


def not_a_number(call, *arguments, **options):
    return call(*arguments, **options) * torch.nan


def dropped_choices_count(call, x, weights, experts, *rest, **options):
    return call(x, weights, experts.clamp(min=0), *rest, **options)


def no_bias(call, x, weights, experts, w_in, b_in, w_out, b_out, **options):
    zeros = None if b_out is None else 0 * b_out
    return call(x, weights, experts, w_in, b_in, w_out, zeros, **options)


def raises(call, *arguments, **options):
    raise RuntimeError("illegal instruction")


FAULTS = [
    ("route", later_expert_of_equals, "ties float32: experts differs"),
    ("route", always_a_torus, "h=2 valid .*: group_loss differs"),
    ("route", stride_ignored, "stride=2 ties float32: group_loss differs"),
    ("route", last_rows_of_a_tile, "T=37 .*: weights differs"),
    ("route", last_experts_of_a_block, "N=[157] .*: importance differs"),
    ("route", gradient_of_the_route_loss, "the gradient of logits through group_loss differs"),
    ("route", raises, "RuntimeError: illegal instruction"),
    ("group_norm", always_a_torus, "h=2 valid .*: the loss differs"),
    ("group_norm", stride_ignored, "stride=2 ties float32: the loss differs"),
    ("group_norm", gradient_of_the_result, "the gradient of scores through the loss differs"),
    ("group_norm", one_group_lost, "float64: the loss differs .* by 1.0e-02"),
    ("group_norm", not_a_number, "the loss differs .* by nan"),
    ("expert_ffn", dropped_choices_count, "y differs"),
    ("expert_ffn", no_bias, "gelu bias float32: y differs"),
    ("expert_ffn", gradient_of_the_result, "the gradient of x through y differs"),
]


@pytest.mark.parametrize(("op", "fault", "named"), FAULTS, ids=lambda f: getattr(f, "__name__", f))
def test_a_planted_fault_is_found_and_named(monkeypatch, op, fault, named):
    sound = getattr(self_check, op)

    def planted(*arguments, backend, **options):
        if backend == "reference":
            return sound(*arguments, backend=backend, **options)
        return fault(lambda *a, **o: sound(*a, backend=backend, **o), *arguments, **options)

    monkeypatch.setattr(self_check, op, planted)
    with pytest.raises(self_check.DifferenceError, match=named):
        self_check.compare(op)


@pytest.mark.parametrize("op", ["route", "group_norm", "expert_ffn"])
def test_sound_kernels_pass(op):
    assert "as the reference in" in self_check.compare(op)


def test_an_unknown_op_is_refused():
    with pytest.raises(ValueError, match=r"op must be one of .*, got 'sort'"):
        self_check.compare("sort")
