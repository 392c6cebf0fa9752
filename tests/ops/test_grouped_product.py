"""The experts' products by Triton without a GPU: interpreted, compiled for GPUs, and chosen."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transform_cases import cpu_kernels

from moge_bench.ops import expert_ffn, extension, grouped_ffn, grouped_product

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")

triton = pytest.importorskip("triton", reason="Triton has no build for this system or Python")


def number(version):
    return tuple(int(part) for part in version.split(".")[:2])


@pytest.mark.slow
@pytest.mark.skipif(
    number(triton.__version__) < (3, 7) and number(np.__version__) >= (2, 4),
    reason="the interpreter of Triton before 3.7 breaks with numpy 2.4",
)
def test_the_kernels_interpreted_on_the_cpu():
    """The tests of tests/gpu on numbers, NaN, strides, derivatives and errors."""
    command = [sys.executable, "-m", "pytest", "tests/gpu/test_products_on_device.py", "-m", "gpu",
               "-q", "-p", "no:xdist"]  # fmt: skip
    env = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout[-6000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= 25, done.stdout[-1000:]


POINTERS = {"rows", "weight", "grad", "output"}


def compile_for(capability, name, dtype, precision="ieee"):
    """Compile a kernel as a GPU of ``capability`` would have it; return what Triton made."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from moge_bench.ops import grouped_kernels

    bits = torch.finfo(dtype).bits
    tiles = {"product_kernel": grouped_product.PRODUCT_TILES,
             "outer_kernel": grouped_product.OUTER_TILES}  # fmt: skip
    settings = grouped_product.settings(tiles[name][bits // 8]) | {"PRECISION": precision}
    options = {key: settings.pop(key) for key in ("num_warps", "num_stages")}
    kernel = getattr(grouped_kernels, name)
    if name == "product_kernel":
        settings |= {"EXPERTS": 64, "stride_inner": 1}
    element = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
    kinds = {"offsets": "*i64", **dict.fromkeys(POINTERS, f"*{element}")}
    kinds |= dict.fromkeys(settings, "constexpr")
    names = kernel.arg_names
    source = ASTSource(
        fn=kernel, signature={name: kinds.get(name, "i32") for name in names},
        constexprs={(names.index(key),): value for key, value in settings.items()},
        attrs={(place,): [["tt.divisibility", 16]] for place, name in enumerate(names)
               if kinds.get(name, "").startswith("*")},
    )  # fmt: skip
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["product_kernel", "outer_kernel"])
@pytest.mark.parametrize(
    ("capability", "dtype"),
    [(80, torch.bfloat16), (90, torch.float32), (90, torch.float16), (100, torch.float32)],
)
def test_the_kernels_compile_for_gpus(capability, dtype, name, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    made = compile_for(capability, name, dtype)
    # The least that a GPU of capability 8.0 or later lets a block have: 99 KiB (8.6 and 8.9).
    assert made.metadata.shared <= 99 * 1024
    # 16 bits go to the tensor cores, float32 is not rounded to TF32; nothing is added by atomics.
    multiply = "mma" if dtype != torch.float32 else "fma.rn.f32"
    assert multiply in made.asm["ptx"] and "tf32" not in made.asm["ptx"]
    assert not re.search(r"(?m)^\s*(@!?%p\d+ )?(atom|red)\.", made.asm["ptx"])


@pytest.mark.slow
def test_where_torch_may_round_to_tf32_so_may_the_products(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    tile, matmul = grouped_product.PRODUCT_TILES[4], torch.backends.cuda.matmul
    assert grouped_product.settings(tile)["PRECISION"] == "ieee"
    matmul.allow_tf32 = True
    try:
        precision = grouped_product.settings(tile)["PRECISION"]
    finally:
        matmul.allow_tf32 = False
    assert "tf32" in compile_for(90, "product_kernel", torch.float32, precision).asm["ptx"]


BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize(
    ("dtype", "capability", "hidden", "has_triton", "chosen"),
    [
        (BFLOAT16, (9, 0), 16, True, grouped_ffn._GroupedMM),
        (BFLOAT16, (10, 3), 16, False, grouped_ffn._GroupedMM),
        (BFLOAT16, (9, 0), 12, True, grouped_ffn._TritonProduct),  # 24 bytes
        (BFLOAT16, (8, 0), 16, True, grouped_ffn._TritonProduct),
        (FLOAT16, (9, 0), 16, True, grouped_ffn._TritonProduct),
        (FLOAT32, (12, 0), 7, True, grouped_ffn._TritonProduct),
        (FLOAT32, (9, 0), 16, False, grouped_ffn._ProductPerExpert),
        (BFLOAT16, (9, 0), 12, False, grouped_ffn._ProductPerExpert),
    ],
)
def test_what_is_chosen(dtype, capability, hidden, has_triton, chosen, monkeypatch):
    monkeypatch.setattr(grouped_ffn, "capability", lambda device: capability)
    x, w_in = torch.empty(3, hidden, dtype=dtype), torch.empty(2, 8, hidden)
    with cpu_kernels(products=has_triton):
        assert grouped_ffn._choose_product(x, w_in) is chosen


def test_a_thousand_experts_are_too_many_for_torch(monkeypatch):
    monkeypatch.setattr(grouped_ffn, "capability", lambda device: (9, 0))
    x = torch.empty(3, 8, dtype=BFLOAT16)
    with cpu_kernels(products=True):
        found = [grouped_ffn._choose_product(x, torch.empty(n, 8, 8)) for n in (1023, 1024)]
    assert found == [grouped_ffn._GroupedMM, grouped_ffn._TritonProduct]


def test_a_weight_within_a_buffer_is_moved_to_whole_16_bytes(monkeypatch):
    """torch's grouped_mm refuses other addresses; parameters of one flat buffer have any."""
    seen = []

    def grouped_mm(rows, weight, offs):
        seen.append(weight.data_ptr() % 16)
        return rows

    monkeypatch.setattr(grouped_ffn.functional, "grouped_mm", grouped_mm)
    buffer = torch.zeros(3 + 2 * 8 * 8, dtype=BFLOAT16)
    weight = buffer[3:].view(2, 8, 8)
    grouped_ffn._GroupedMM(torch.tensor([0, 1, 3]))(torch.zeros(3, 8, dtype=BFLOAT16), weight)
    assert weight.data_ptr() % 16 and seen == [0]


def test_why_there_is_no_kernel(monkeypatch):
    gpu = torch.device("cuda", 0)
    assert "for CUDA alone, got cpu" in grouped_product.why_not(CPU)
    monkeypatch.setattr(grouped_product, "capability", lambda device: (7, 5))
    assert "need compute capability 8.0, got 7.5" in grouped_product.why_not(gpu)
    monkeypatch.setattr(grouped_product, "capability", lambda device: (8, 0))
    assert grouped_product.why_not(gpu) is None
    monkeypatch.setattr(grouped_product, "kernels", lambda: (None, "Triton cannot be imported"))
    assert grouped_product.why_not(gpu) == "Triton cannot be imported"
    with pytest.raises(RuntimeError, match="cannot be imported; install triton"):
        grouped_product.grouped_product(torch.ones(1, 1), torch.ones(1, 1, 1), torch.tensor([0, 1]))


def test_without_triton_a_wait_is_said_once(monkeypatch):
    extension.warn_once.cache_clear()

    class OnGpu(torch.Tensor):
        is_cuda = True

    x = torch.ones(3, 8).as_subclass(OnGpu)
    with pytest.warns(RuntimeWarning, match="waits for the GPU once a call: moge::grouped_product"):
        assert grouped_ffn._choose_product(x, torch.ones(2, 8, 8)) is grouped_ffn._ProductPerExpert


def experts(x, w_in, w_out, experts):
    weights = torch.ones(experts.shape)
    return grouped_ffn.expert_ffn(x, weights, experts, w_in, None, w_out, None, "relu", False)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT16, BFLOAT16], ids=str)
def test_compiled_into_one_graph(dtype, monkeypatch):
    """grouped_mm's fake kernel refuses all but bfloat16 in torch up to 2.13."""
    monkeypatch.setattr(expert_ffn, "_on_gpu", lambda x: True)
    torch.compiler.reset()
    inputs = [torch.randn(*shape).to(dtype) for shape in ((12, 8), (4, 16, 8), (4, 8, 16))]
    compiled = torch.compile(experts, backend="aot_eager", fullgraph=True)
    results = []
    with cpu_kernels():
        for function in (compiled, experts):
            leaves = [t.clone().requires_grad_() for t in inputs]
            y = function(*leaves, torch.arange(24).reshape(12, 2) % 3)
            y.float().square().sum().backward()
            results.append([y.detach(), *(leaf.grad for leaf in leaves)])
    for ours, eager in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager)
