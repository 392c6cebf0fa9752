"""Revisions of a small repository for the gate: a route that burns time, a kernel that counts."""

import subprocess
from pathlib import Path

FAKE_ROUTE = """
import time, types, torch

def route(logits, top_k, **settings):
    end = time.process_time() + {seconds}
    while time.process_time() < end:
        pass
    weights, experts = logits.softmax(-1).topk(top_k)
    return types.SimpleNamespace(
        weights=weights, experts=experts, group_loss=weights.sum() * 0, backend="{backend}")
"""
FAKE_DRIVER = """
#include <cstdio>
#include "kernels.h"
extern "C" __attribute__((noinline)) int moge_measured(volatile int* x) {
  for (int i = 0; i < LOOPS; ++i) *x = *x + i;
  return *x;
}
int main() { volatile int x = 0; moge_measured(&x); std::puts("avx2 forward 64 2 3 256"); }
"""


def git(repo: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    command = ["git", "-C", str(repo), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def write_revision(repo: Path, *, seconds: float, loops: int, backend: str = "extension") -> None:
    """A package whose route burns ``seconds``, and a kernel of ``loops`` additions."""
    (repo / "moge_bench").mkdir(parents=True, exist_ok=True)
    (repo / "csrc/bench").mkdir(parents=True, exist_ok=True)
    (repo / "setup.py").write_text(
        "import os, subprocess\n"
        "os.makedirs('build/temp.x/csrc', exist_ok=True)\n"
        "open('e.cpp', 'w').write('int unused_by_the_driver;')\n"
        "subprocess.check_call(['g++', '-c', 'e.cpp', '-o', 'build/temp.x/csrc/e.o'])\n"
    )
    (repo / "moge_bench/__init__.py").write_text(
        FAKE_ROUTE.format(seconds=seconds, backend=backend)
    )
    (repo / "csrc/kernels.h").write_text(f"#define LOOPS {loops}\n")
    (repo / "csrc/bench/kernel_driver.cpp").write_text(FAKE_DRIVER)
