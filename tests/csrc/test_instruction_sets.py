"""Results do not depend on the instruction set nor on the number of threads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moge_bench import _C, route
from tools.avx512 import build

PROGRAM = """
import sys, torch
from moge_bench import _C, group_norm, route
from moge_bench.ops.expert_ffn import expert_ffn
torch.manual_seed(0)
results = {"isa": _C.instruction_set(), "library": _C.__file__}
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    for num_experts, top_k, num_tokens in (
            (5, 2, 37), (8, 1, 100), (32, 1, 43), (64, 2, 1300), (100, 9, 600), (128, 2, 45)):
        for border, group_size, renormalize in (
                ("torus", 3, True), ("valid", 2, False), ("valid", 3, True)):
            if num_experts == 5:  # its map is (1, 5): no window of 2 x 2 lies on it
                border = "torus"
            if num_experts == 8 and group_size == 3:  # (2, 4)
                border = "torus"
            options = dict(group_size=group_size, border=border, backend="extension")
            x = (torch.randn(num_tokens, num_experts) * 2).to(dtype).requires_grad_()
            noise = torch.randn(num_tokens, num_experts) / num_experts
            r = route(x, top_k, noise=noise, renormalize=renormalize, **options)
            sums = r.weights.square().sum() + r.importance.square().sum() / num_tokens
            (sums + r.group_loss * num_tokens).backward()
            results["route", str(dtype), num_experts, group_size, border] = [t.detach() for t in (
                r.weights, r.importance, r.group_loss, r.experts, r.load, x.grad)]
            # Any scores, of both signs and far from 1.
            scores = (torch.randn(num_tokens, num_experts) * 10).to(dtype).requires_grad_()
            loss = group_norm(scores, **options)
            (loss * num_tokens).backward()
            results["group_norm", str(dtype), num_experts, group_size, border] = [
                loss.detach(), scores.grad]
        bias, mask = torch.linspace(-0.2, 0.2, num_experts), torch.arange(num_tokens) % 3 > 0
        for function in ("softmax", "sigmoid", "sqrtsoftplus"):
            for wider in (dict(bias=bias, unit_energy=True), dict(mask=mask, scale=2.5), dict(
                    num_groups=num_experts, top_groups=top_k, mask=mask, unit_energy=True)):
                x = (torch.randn(num_tokens, num_experts) * 3).to(dtype).requires_grad_()
                r = route(x, top_k, score_function=function, border="torus", **wider)
                sums = r.weights.square().sum() + r.importance.square().sum() / num_tokens
                (sums + r.group_loss * num_tokens).backward()
                results["wider", str(dtype), num_experts, function, str(sorted(wider))] = [
                    t.detach() for t in (r.weights, r.importance, r.group_loss, r.experts, r.load,
                                         r.first_load, x.grad)]
    # The backward pass alone, of maps whose rows are registers and of one whose are not.
    for num_experts in (32, 64, 128, 36):
        x = (torch.randn(37, num_experts) * 3).to(dtype)
        odd = torch.arange(37) % 4 > 0
        spoilt = x.masked_fill(~odd[:, None], float("nan"))
        for border in ("torus", "valid"):
            for name, logits, way in (
                ("plain", x, {}), ("unit", x, {"unit_energy": True}),
                ("raw", x, {"renormalize": False, "scale": 2.5}),
                ("masked", spoilt, {"mask": odd, "unit_energy": True}),
            ):
                for parts in ("g", "gw", "gi", "gwi"):
                    leaf = logits.clone().requires_grad_()
                    r = route(leaf, 2, group_size=3, border=border, **way)
                    loss = r.group_loss * 37
                    if "w" in parts:
                        loss = loss + r.weights.square().sum()
                    if "i" in parts:
                        loss = loss + r.importance.square().sum() / 37
                    loss.backward()
                    results["rows", str(dtype), num_experts, border, name, parts] = [leaf.grad]
    if dtype == torch.float16:
        continue
    for activation in ("gelu", "relu", "silu"):
        x, w_in, b_in, w_out, b_out = leaves = [
            (3 * torch.randn(shape)).to(dtype).requires_grad_()
            for shape in ((50, 19), (4, 21, 19), (4, 21), (4, 19, 21), (4, 19))]
        experts = torch.stack([torch.randperm(4)[:2] for _ in range(50)])
        weights = torch.rand(50, 2, dtype=torch.float64 if dtype == torch.float64 else None)
        y = expert_ffn(x, weights.requires_grad_(), experts, w_in, b_in, w_out, b_out,
                       activation=activation, backend="extension")
        y.square().sum().backward()
        results["expert_ffn", str(dtype), activation] = [
            y.detach(), weights.grad, *(leaf.grad for leaf in leaves)]
torch.save(results, sys.argv[1])
"""


def run(isa, path, package=None):
    """Run PROGRAM; with moge_bench from the folder ``package``, if one is named."""
    environment = {**os.environ, "MOGE_CPU_ISA": isa}
    if package is not None:
        environment["PYTHONPATH"] = f"{package}:{environment.get('PYTHONPATH', '')}"
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)], env=environment, capture_output=True, text=True,
        cwd=package,
    )  # fmt: skip


def assert_same(results, expected, isa):
    assert results.keys() == expected.keys()
    for case, tensors in expected.items():
        for i, (a, b) in enumerate(zip(tensors, results[case], strict=True)):
            assert torch.equal(a, b), (isa, case, i)


def test_every_instruction_set_gives_the_same_bits(tmp_path):
    """Of every result and gradient. The experts' matrix products are the same BLAS's for each."""
    results = {}
    for isa in _C.build_info()["instruction_sets"].split(","):
        done = run(isa, tmp_path / isa)
        if done.returncode and "must name an instruction set" in done.stderr:
            continue  # this processor does not run it
        assert done.returncode == 0, done.stderr
        results[isa] = torch.load(tmp_path / isa)
        assert results[isa].pop("isa") == isa
        del results[isa]["library"]
    base = results.pop("baseline")
    for isa, other in results.items():
        assert_same(other, base, isa)


@pytest.mark.slow
def test_avx512_gives_the_same_bits_under_emulation(tmp_path):
    """What a processor without AVX-512 cannot run; the other sets are those of the test above."""
    if missing := build.what_is_missing():
        assert not os.environ.get("MOGE_REQUIRE_SIMDE"), missing
        pytest.skip(f"the AVX-512 kernels cannot be emulated here without {missing}")
    package = build.build(tmp_path)
    results = {}
    for isa, where in (("baseline", None), ("avx512", package)):
        done = run(isa, tmp_path / isa, where)
        assert done.returncode == 0, done.stderr
        results[isa] = torch.load(tmp_path / isa)
        assert results[isa].pop("isa") == isa
        library = Path(results[isa].pop("library"))
        assert library.is_relative_to(package) == (where is not None)
    assert_same(results["avx512"], results["baseline"], "avx512")


def test_an_unknown_instruction_set_is_refused(tmp_path):
    done = run("sse9", tmp_path / "none")
    assert done.returncode == 1
    assert "ValueError: MOGE_CPU_ISA must name an instruction set" in done.stderr
    assert "'sse9'" in done.stderr and "baseline" in done.stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_number_of_threads_changes_no_bit(dtype):
    torch.manual_seed(0)
    logits = torch.randn(5000, 24).to(dtype)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            x = logits.clone().requires_grad_()
            r = route(x, 2, backend="extension")
            (r.weights.square().sum() + r.group_loss + r.importance.square().mean()).backward()
            results.append((r.weights, r.importance, r.group_loss, r.load, x.grad))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_build_info():
    info = _C.build_info()
    assert set(info) == {"version", "source_hash", "compiler", "torch", "instruction_sets"}
    assert torch.__version__.startswith(info["torch"].split("+")[0])
    assert _C.instruction_set() in info["instruction_sets"].split(",")
