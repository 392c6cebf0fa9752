"""The build of the CUDA library: when it is built, for what, and what the result depends on."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from moge_bench import group_norm, route
from moge_bench.ops import extension
from moge_bench.ops.expert_ffn import expert_ffn

ROOT = Path(__file__).resolve().parents[2]
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")


@pytest.fixture
def build_cuda(monkeypatch):
    """scripts/build_cuda.py as a module, in an environment without any of its variables."""
    for name in ("MOGE_CUDA", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("build_cuda", ROOT / "scripts/build_cuda.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def toolkit(tmp_path, monkeypatch):
    """A folder with an nvcc that only tells its version, and a PATH without any."""
    nvcc = tmp_path / "cuda/bin/nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.9, V12.9.1'\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return nvcc


@pytest.mark.parametrize(
    ("choice", "found", "built"),
    [(None, True, True), ("auto", True, True), ("1", True, True), ("0", True, False),
     (None, False, False), ("auto", False, False), ("0", False, False)],
)  # fmt: skip
def test_the_toolkit_and_one_switch_decide(build_cuda, toolkit, monkeypatch, choice, found, built):
    if choice is not None:
        monkeypatch.setenv("MOGE_CUDA", choice)
    if found:
        monkeypatch.setenv("CUDA_HOME", str(toolkit.parents[1]))
    assert build_cuda.wanted() == built
    assert build_cuda.find_nvcc() == (str(toolkit) if found else None)


def test_nvcc_on_the_path_and_its_version(build_cuda, toolkit, monkeypatch):
    monkeypatch.setenv("PATH", f"{toolkit.parent}:/bin:/usr/bin")
    assert build_cuda.find_nvcc() == str(toolkit) and build_cuda.nvcc_version(toolkit) == "12.9"


def test_an_unknown_choice_is_refused(build_cuda, monkeypatch):
    monkeypatch.setenv("MOGE_CUDA", "yes")
    with pytest.raises(SystemExit, match="MOGE_CUDA must be auto, 1 or 0, got 'yes'"):
        build_cuda.wanted()


def test_setup_fails_hard_in_one_sentence_without_nvcc(tmp_path):
    environment = {"PATH": str(tmp_path), "MOGE_CUDA": "1", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "setup.py", "--name"], cwd=ROOT, env=environment, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("moge-bench: MOGE_CUDA=1 needs nvcc") and "MOGE_CUDA=0" in last


@pytest.mark.parametrize(
    ("listed", "entries", "flags"),
    [
        (None, ["8.0", "9.0", "10.0+PTX"],
         ["80,code=sm_80", "90,code=sm_90", "100,code=sm_100", "100,code=compute_100"]),
        ("9.0a", ["9.0a"], ["90a,code=sm_90a"]),
        ("8.6 8.9+PTX", ["8.6", "8.9+PTX"],
         ["86,code=sm_86", "89,code=sm_89", "89,code=compute_89"]),
    ],
)  # fmt: skip
def test_the_architectures_are_those_listed(build_cuda, monkeypatch, listed, entries, flags):
    if listed is not None:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    assert build_cuda.architectures() == entries
    assert build_cuda.gencode(entries) == [f"-gencode=arch=compute_{flag}" for flag in flags]


def test_an_unknown_architecture_is_named(build_cuda, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;Hopper")
    with pytest.raises(SystemExit, match=r"must hold architectures like .*, got 'Hopper'"):
        build_cuda.architectures()


@pytest.mark.parametrize("path", sorted((ROOT / "csrc/cuda").iterdir()), ids=lambda p: p.name)
def test_only_the_binding_knows_torch(path):
    includes = re.findall(r'#\s*include\s*[<"]([^>"]+)', path.read_text())
    torch_headers = [name for name in includes if re.match(r"(torch|ATen|c10|pybind11)/", name)]
    if not path.stem.startswith("binding"):
        assert not torch_headers and "binding.h" not in includes
    # The stable ABI, and what is header-only: nothing that ties the binary to one torch.
    assert all(re.match(r"torch/(csrc/stable|headeronly)/", name) for name in torch_headers)


def test_the_floor_of_torch_is_the_one_of_the_stable_abi(build_cuda):
    version = int(build_cuda.STABLE_ABI.partition("=")[2], 16)
    assert build_cuda.STABLE_ABI.startswith("-DTORCH_TARGET_VERSION=0x")
    floor = f"torch>={version >> 56}.{version >> 48 & 0xFF}"
    named = re.findall(r"torch>=[\d.]+", (ROOT / "pyproject.toml").read_text())
    assert named == [floor, floor]  # to build, and to run


def undefined_symbols(library):
    nm = ["nm", "--dynamic", "--undefined-only", "--demangle", str(library)]
    text = subprocess.run(nm, capture_output=True, text=True, check=True).stdout
    return [line.split(maxsplit=1)[1] for line in text.splitlines()]


@pytest.mark.slow
@needs_nvcc
def test_the_library_asks_torch_for_its_c_interface_alone():
    module, error = extension.load_cuda()
    assert module is not None, f"nvcc is here and the CUDA library is not built: {error}"
    symbols = undefined_symbols(module.__file__)
    assert any(name.startswith("aoti_torch_") for name in symbols)
    assert not [name for name in symbols if re.search(r"\b(c10|at|torch|caffe2)::", name)]
    # Nor for any CUDA library: the runtime is linked in and finds the driver when it is used.
    needed = subprocess.run(["ldd", module.__file__], capture_output=True, text=True).stdout
    assert not re.search("cuda|cudart|torch_cuda", re.sub(r"_cuda\.abi3", "", needed))


def test_no_op_of_the_cuda_library_takes_a_string():
    """A string that crosses torch's stable ABI is copied and never freed: 48 bytes a call."""
    bound = "".join(path.read_text() for path in (ROOT / "csrc/cuda").glob("*.cpp"))
    ops = re.findall(r'library\.impl\("(\w+)"', bound)
    assert {"route", "dispatch", "bias_activation_backward"} <= set(ops)
    for op in ops:
        schema = getattr(torch.ops.moge, op).default._schema
        assert not [a.name for a in schema.arguments if "str" in str(a.type)], op


@pytest.mark.slow
@needs_nvcc
def test_the_library_says_what_it_is():
    facts = extension.cuda_facts()
    assert facts["source_hash"] == extension.cuda_source_hash(ROOT / "csrc")
    assert set(facts) == {"source_hash", "architectures", "nvcc", "torch_abi"}
    assert re.fullmatch(r"(\d+\.\d[af]?(\+PTX)? ?)+", facts["architectures"])
    assert f"torch>={facts['torch_abi']}" in (ROOT / "pyproject.toml").read_text()
    assert extension.stale_cuda_build() is None


def fake(*shape, dtype=torch.float32):
    """A CUDA tensor that needs no GPU, under FakeTensorMode."""
    return torch.empty(shape, dtype=dtype, device="cuda")


CALLS = {
    "route": lambda **options: route(fake(4, 16), 2, **options),
    "group_norm": lambda **options: group_norm(fake(4, 16), **options),
    "expert_ffn": lambda **options: expert_ffn(
        fake(4, 6), fake(4, 2), fake(4, 2, dtype=torch.int64), fake(3, 5, 6), None, fake(3, 6, 5),
        None, **options,
    ),
}  # fmt: skip


@pytest.mark.parametrize("op", ["route", "group_norm", "expert_ffn"])
@pytest.mark.parametrize("backend", ["auto", "extension"])
def test_cuda_tensors_without_the_library_get_a_clear_error(monkeypatch, op, backend):
    monkeypatch.setattr(extension, "_CUDA", None)
    monkeypatch.setattr(extension, "_CUDA_ERROR", "ModuleNotFoundError: no moge_bench._cuda")
    with FakeTensorMode(), pytest.raises(ValueError) as caught:
        CALLS[op](backend=backend)
    text = str(caught.value)
    assert text.startswith(f"backend='{backend}': moge::{op} got a tensor on cuda:0")
    assert "no moge_bench._cuda" in text and "MOGE_CUDA=1" in text and "'reference'" in text


@needs_nvcc
def test_float64_on_cuda_is_left_to_the_reference():
    with FakeTensorMode():
        logits = fake(4, 16, dtype=torch.float64)
        with pytest.raises(
            ValueError, match=r"route .*float16 and bfloat16 there, got torch.float64"
        ):
            route(logits, 2)
        assert route(logits.half(), 2).backend == "extension"  # a dtype that the CPU has not


def test_another_device_is_named():
    with FakeTensorMode(), pytest.raises(ValueError, match=r"CPU and CUDA tensors only, .* on xpu"):
        route(torch.empty(4, 16, device="xpu"), 2)


@pytest.mark.parametrize(
    ("package", "on_path", "command"),
    [(True, False, [sys.executable, "-m", "ninja"]), (True, True, [sys.executable, "-m", "ninja"]),
     (False, True, ["bin/ninja"])],
)  # fmt: skip
def test_one_ninja_whatever_the_path(build_cuda, monkeypatch, package, on_path, command):
    """A build with PATH's ninja in one shell and the package's in another compiles all twice."""
    spec = object() if package else None
    monkeypatch.setattr(build_cuda.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(build_cuda.shutil, "which", lambda name: "bin/ninja" if on_path else None)
    assert build_cuda.ninja() == command


def test_ninja_compiles_again_only_what_changed(build_cuda):
    """The build written by setup.py is up to date after it ran, so an editable rebuild is quick."""
    rules = ROOT / "build/cuda/build.ninja"
    if not rules.is_file():
        pytest.skip("the CUDA library was not built by ninja in this checkout")
    done = subprocess.run(
        [*build_cuda.ninja(), "-n", "-f", str(rules)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and "no work to do" in done.stdout
