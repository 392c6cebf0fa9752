"""What a record tells of a GPU, on a machine that has none."""

import stat

import pytest
import torch

from moge_bench.ops import extension
from moge_bench.runs import provenance


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """An nvidia-smi that prints what it is told."""
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    provenance.gpu_driver.cache_clear()
    yield lambda text: (
        program.write_text(f"#!/bin/sh\necho '{text}'\n"),
        program.chmod(program.stat().st_mode | stat.S_IXUSR),
    )
    provenance.gpu_driver.cache_clear()


@pytest.mark.parametrize(
    ("told", "driver"), [("580.95.05", "580.95.05"), ("570.86", "570.86"), ("no devices", None)]
)
def test_the_driver_is_told_by_nvidia_smi(smi, told, driver):
    smi(told)
    assert provenance.gpu_driver() == driver


def test_without_nvidia_smi_the_driver_is_unknown(smi):
    assert provenance.gpu_driver() is None


def test_a_gpu_is_named_with_its_driver_and_the_build_of_its_kernels(monkeypatch):
    before = provenance.extension_build()
    assert provenance.machine()["gpu"] is None and "cuda_source_hash" not in before
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    monkeypatch.setattr(provenance, "gpu_driver", lambda: "580.95.05")
    monkeypatch.setattr(extension, "cuda_facts", lambda: {"source_hash": "abc", "nvcc": "13.0"})
    found = provenance.machine()
    assert (found["gpu"], found["gpus"], found["gpu_driver"]) == ("NVIDIA H100", 2, "580.95.05")
    cuda = {"cuda_source_hash": "abc", "cuda_nvcc": "13.0"}
    assert provenance.extension_build() == {**before, **cuda}


def test_the_code_of_a_gpu_holds_the_build_of_its_kernels(monkeypatch):
    def digest(**cuda):
        facts = {"source_hash": "cpu", **cuda}
        monkeypatch.setattr(provenance, "extension_build", lambda: facts)
        return provenance.code_digest.__wrapped__()

    assert digest().endswith("-cpu") and digest(cuda_source_hash="abc").endswith("-cpu-abc")
