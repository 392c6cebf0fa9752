"""An interpreter for the PTX that nvcc emits: CUDA kernels run, checked and counted without a GPU.

    module = ptx.parse(text)
    device = ptx.Device()
    logits = device.put(array, "logits")
    weights = device.empty(4 * tokens * top_k, "weights")
    result = ptx.run_kernel(module, name, grid, block, [logits, weights, tokens], device=device)
    result.check()                         # raises if a race, a bad access, ... was found
    device.get(weights, np.float32)
    result.counters.by_class()             # executed warp instructions: load, float, warp, ...
    result.counters.traffic["logits", "read"].sectors     # 32-byte sectors
    result.counters.shared_conflict_degree()              # 1.0: no bank conflicts

It needs numpy and the text only. Not modelled: what ptxas makes of the text (registers, spills,
instruction order), time, caches, calls, textures, mma and asynchronous copies; such an instruction
is an error that names it. Approximate functions are computed exactly rounded.
"""

from tools.ptx.counters import Counters, SharedTraffic, Traffic, instruction_class
from tools.ptx.findings import Finding, PtxError
from tools.ptx.memory import Buffer, Device
from tools.ptx.parser import parse
from tools.ptx.program import Kernel, Module
from tools.ptx.run import Result, run_kernel

__all__ = [
    "Buffer", "Counters", "Device", "Finding", "Kernel", "Module", "PtxError", "Result",
    "SharedTraffic", "Traffic", "instruction_class", "parse", "run_kernel",
]  # fmt: skip
