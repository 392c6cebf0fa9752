"""Results do not depend on the instruction set nor on the number of threads."""

import os
import subprocess
import sys

import pytest
import torch

from moge_bench import _C, route

PROGRAM = """
import sys, torch
from moge_bench import _C, route
torch.manual_seed(0)
results = {"isa": _C.instruction_set()}
for dtype in (torch.float32, torch.float64, torch.bfloat16):
    for num_experts, top_k, num_tokens in ((5, 2, 37), (8, 1, 100), (64, 2, 1300), (100, 9, 600)):
        x = (torch.randn(num_tokens, num_experts) * 2).to(dtype).requires_grad_()
        noise = torch.randn(num_tokens, num_experts) / num_experts
        r = route(x, top_k, noise=noise, border="torus", group_size=3, backend="extension")
        (r.weights.square().sum() + r.group_loss * num_tokens).backward()
        results[str(dtype), num_experts] = [
            t.detach() for t in (r.weights, r.importance, r.group_loss, r.experts, r.load, x.grad)]
torch.save(results, sys.argv[1])
"""


def run(isa, path):
    environment = {**os.environ, "MOGE_CPU_ISA": isa}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)], env=environment, capture_output=True, text=True
    )


def test_every_instruction_set_gives_the_same(tmp_path):
    results = {}
    for isa in _C.build_info()["instruction_sets"].split(","):
        done = run(isa, tmp_path / isa)
        if done.returncode and "must name an instruction set" in done.stderr:
            continue  # this processor does not run it
        assert done.returncode == 0, done.stderr
        results[isa] = torch.load(tmp_path / isa)
        assert results[isa].pop("isa") == isa
    base = results.pop("baseline")
    for isa, other in results.items():
        for case, expected in base.items():
            for name, a, b in zip(
                ("weights", "importance", "group_loss", "experts", "load"), expected, other[case],
                strict=False,
            ):  # fmt: skip
                assert torch.equal(a, b), (isa, case, name)
            # 1 / g comes from each set's own reciprocal square root, refined.
            scale = expected[5].abs().max().item()
            tolerance = {"torch.float64": 1e-14, "torch.float32": 1e-6, "torch.bfloat16": 0.01}
            assert torch.allclose(
                expected[5].double(), other[case][5].double(),
                rtol=tolerance[case[0]], atol=tolerance[case[0]] * scale,
            ), (isa, case)  # fmt: skip


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
