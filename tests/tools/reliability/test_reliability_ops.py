"""Random cases of the ops: the same from seed and index, the reference's results, faults named."""

import importlib
import warnings

import pytest
import torch

from moge_bench.ops.choice import Choice
from tools.reliability import cases, compare, inputs, large
from tools.reliability.selection import is_best

COUNT = 2000


@pytest.fixture(autouse=True)
def raw_logits_are_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.slow
def test_they_agree_with_the_reference():
    """The cases that `make reliability` begins with, without sanitizers."""
    drawn = (cases.draw(0, index) for index in range(COUNT))
    assert [found for found in map(compare.disagreement, drawn) if found] == []


def test_a_case_is_that_of_its_seed_and_index():
    for index in range(50):
        case = cases.draw(3, index)
        assert case == cases.draw(3, index) != cases.draw(4, index)
        one, other = inputs.make(case), inputs.make(cases.draw(3, index))
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            assert torch.equal(tensor.nan_to_num(), other[name].nan_to_num())
            assert tensor.stride() == other[name].stride()


def test_every_kind_is_drawn():
    drawn = [cases.draw(0, index) for index in range(COUNT)]
    routed = [case for case in drawn if case.op == "route"]
    assert {case.op for case in drawn} == set(cases.OPS)
    assert {case.kind for case in drawn} == set(cases.KINDS)
    assert {case.dtype for case in routed} == set(cases.DTYPES)
    assert {how for case in drawn for how in case.layouts.values()} == set(cases.LAYOUTS)
    assert {0, 1, 1100} <= {case.sizes[0] for case in drawn}
    assert {1, 1024} <= {case.sizes[1] for case in routed}
    assert any(case.options["top_k"] == case.sizes[1] > 100 for case in routed)
    assert {case.options.get("score_function") for case in routed} == {
        None, "softmax", "sigmoid", "sqrtsoftplus"
    }  # fmt: skip
    for name in ("noise", "bias", "mask"):
        assert any(name in case.layouts for case in routed)
    assert any(case.options.get("num_groups", 1) > 1 for case in routed)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("size", [(4, 6), (5,), (2, 3, 4), (0, 3)])
def test_a_layout_keeps_the_values_or_repeats_some(layout, size):
    tensor = torch.arange(1.0, 1 + torch.Size(size).numel()).reshape(size)
    view = inputs.laid_out(tensor, layout)
    assert view.shape == tensor.shape
    if layout == "one value":
        assert (view == 1).all()
    elif layout == "rows repeated":
        assert torch.equal(view, tensor[:1].expand(size))
    else:
        assert torch.equal(view, tensor)
    if layout == "strided" and size == (4, 6):
        assert view.stride() == (26, 2) and not view.is_contiguous()  # every second of 9 x 13


OPTIONS = {"map_shape": (2, 4), "group_size": 2, "border": "torus", "sigma": 1.0, "stride": 1,
           "reduction": "token_mean", "unit_energy": False}  # fmt: skip
FAULTS = {
    "route": cases.Case(
        0, 17, "route", (9, 8), torch.float32, "normal", {"top_k": 2, **OPTIONS},
        {"logits": "strided"}, ("weights", "group_loss"),
    ),
    "group_norm": cases.Case(
        0, 17, "group_norm", (9, 8), torch.float64, "normal", OPTIONS, {}, ("group_loss",)
    ),
    "expert_ffn": cases.Case(
        0, 17, "expert_ffn", (9, 3, 4, 5, 2), torch.bfloat16, "normal",
        {"activation": "gelu", "dropped": 0.2, "index_dtype": "int64"},
        dict.fromkeys(("w_in", "w_out"), "contiguous"), ("y",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("op", FAULTS)
@pytest.mark.parametrize("fault", ["value", "gradient", "nan", "raises"])
def test_a_planted_fault_is_found_and_named(op, fault, monkeypatch):
    """One number of the extension's results off by a twentieth of the largest."""
    case, run = FAULTS[op], compare.run
    assert compare.disagreement(case) is None
    name = {"route": "weights", "group_norm": "group_loss", "expert_ffn": "y"}[op]
    if fault == "gradient":
        name = {"route": "the gradient of logits", "group_norm": "the gradient of scores",
                "expert_ffn": "the gradient of w_in"}[op]  # fmt: skip

    def faulty(of, tensors, backend):
        results = run(of, tensors, backend)
        if backend == "extension":
            if fault == "raises":
                raise RuntimeError("boom")
            wrong = results[name] = results[name].clone()
            off = torch.nan if fault == "nan" else max(float(wrong.abs().max()), 0.2) / 20
            wrong.view(-1)[-1] += off
        return results

    monkeypatch.setattr(compare, "run", faulty)
    found = compare.disagreement(case)
    assert found is not None and found.startswith("case 17 of seed 0: " + op)
    assert ("RuntimeError: boom; the reference: no error" if fault == "raises" else name) in found


def test_a_wrong_choice_is_found(monkeypatch):
    case, run = FAULTS["route"], compare.run

    def faulty(of, tensors, backend):
        results = run(of, tensors, backend)
        if backend == "extension":
            experts = results["experts"] = results["experts"].flip(1)
            results["first_load"] = experts[:, 0].bincount(minlength=8)
        return results

    monkeypatch.setattr(compare, "run", faulty)
    assert "experts of row 0 are" in compare.disagreement(case)


@pytest.mark.parametrize(
    ("experts", "ranges", "right"),
    [
        ([0, 1], (1, 1), True),
        ([1, 0], (1, 1), True),  # 0.5 and 0.5 + 1e-8: to rounding the same
        ([0, 2], (1, 1), False),
        ([2, 0], (1, 1), False),
        ([0, 0], (1, 1), False),
        ([0, 2], (2, 2), True),  # the best of {0, 1} and of {2, 3}; k / top_groups = 1
        ([0, 1], (2, 1), True),  # both of the better range
        ([2, 3], (2, 1), False),
    ],
)
def test_the_best_to_rounding(experts, ranges, right):
    """Keys 0.5, 0.5 + 1e-8, 0.4 and 0.1; two ranges with sums 1.0 and 0.5, or best 0.5 and 0.4."""
    keys = torch.tensor([0.5, 0.5 + 1e-8, 0.4, 0.1])
    if ranges == (2, 2) and experts == [0, 2]:
        keys = torch.tensor([0.5, 0.2, 0.4, 0.1])
    choice = Choice(4, 2, num_groups=ranges[0], top_groups=ranges[1])
    assert is_best(keys, torch.tensor(experts), choice) is right


def test_subnormal_logits_are_ties(monkeypatch):
    """1e-39 is below the smallest normal float32, 1.2e-38: the kernel takes it for 0."""
    from moge_bench import route

    logits = torch.tensor([[0.0, 1e-39, 2e-39, 2e-38]])
    assert route(logits, 4, backend="extension").experts.tolist() == [[3, 0, 1, 2]]
    kept = compare.flushed(logits, torch.float32)
    assert kept.tolist()[0][:3] == [0, 0, 0] and kept[0, 3] == logits[0, 3]
    assert compare.flushed(logits.double(), torch.float64)[0, 1] > 0


def test_the_large_case_at_a_size_that_fits():
    assert large.check(5000) == (
        "route of 5000 x 64 = 320000 bfloat16 logits: as those of one row, forward and backward"
    )
    assert large.TOKENS * large.EXPERTS > 2**31


def test_no_part_needs_atheris_to_be_imported():
    for part in ("ops", "fuzz", "kills", "memory", "page", "figures"):
        importlib.import_module(f"tools.reliability.{part}")
