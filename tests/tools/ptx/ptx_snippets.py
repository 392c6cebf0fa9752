"""Small PTX programs around the instruction or the few lines that a test is about."""

from __future__ import annotations

import numpy as np

from tools import ptx
from tools.ptx.scalars import DTYPES

HEADER = ".version 9.0\n.target sm_80\n.address_size 64\n"
LANES = np.arange(32, dtype=np.uint32)
INPUTS, OUTPUTS = ("%a", "%b", "%c", "%e"), ("%d", "%q")


def module(
    body: str, parameters: str = "", declarations: str = "", directives: str = ""
) -> ptx.Module:
    """A module with one kernel, ``test``."""
    return ptx.parse(
        f"{HEADER}{declarations}\n.visible .entry test({parameters}) {directives}\n{{\n{body}\n}}\n"
    )


def bits(kind: str) -> str:
    """The type of the register that holds a ``kind``: floats and predicates are their own."""
    return kind if kind in ("f32", "f64", "pred") else f"b{8 * DTYPES[kind].itemsize}"


def compute(
    instruction: str, inputs: list[tuple[str, list]], outputs: list[str]
) -> list[np.ndarray]:
    """Run one instruction on registers %a, %b, ... and return %d, %q as arrays of their types.

    Thread t takes element t of every input; predicates travel as 32-bit 0 or 1.
    """
    count = len(inputs[0][1]) if inputs else 1
    device, lines = ptx.Device(1 << 16), [".reg .b32 %t, %n;", ".reg .b64 %at, %at2;"]
    lines += [f".reg .{bits(kind)} {r};" for r, (kind, _) in zip(INPUTS, inputs, strict=False)]
    lines += [f".reg .{bits(kind)} {r};" for r, kind in zip(OUTPUTS, outputs, strict=False)]
    lines.append("mov.u32 %t, %tid.x;")
    arguments = []
    for register, (kind, values) in zip(INPUTS, inputs, strict=False):
        stored = "u32" if kind == "pred" else kind.replace("bf16", "u16").replace("f16", "u16")
        arguments.append(device.put(np.array(values, DTYPES[stored]), register))
        lines += place(len(arguments) - 1, DTYPES[stored].itemsize)
        if kind == "pred":
            lines += ["ld.global.b32 %n, [%at];", f"setp.ne.s32 {register}, %n, 0;"]
        else:
            width = 8 * DTYPES[kind].itemsize
            lines.append(
                f"ld.global.{bits(kind) if width > 16 else f'b{width}'} {register}, [%at];"
            )
    lines.append(instruction)
    for register, kind in zip(OUTPUTS, outputs, strict=False):
        width = 4 if kind == "pred" else DTYPES[kind].itemsize
        arguments.append(device.empty(count * width, register))
        lines += place(len(arguments) - 1, width)
        if kind == "pred":
            lines += [f"selp.b32 %n, 1, 0, {register};", "st.global.b32 [%at], %n;"]
        else:
            lines.append(f"st.global.b{8 * width} [%at], {register};".replace("b32", bits(kind)))
    parameters = ", ".join(f".param .u64 p{i}" for i in range(len(arguments)))
    result = ptx.run_kernel(
        module("\n".join([*lines, "ret;"]), parameters), "test", 1, count, arguments, device=device
    )
    result.check()
    return [
        device.get(argument, DTYPES["u32" if kind == "pred" else kind])
        for argument, kind in zip(arguments[len(inputs) :], outputs, strict=True)
    ]


def place(parameter: int, width: int) -> list[str]:
    """Lines that put the address of this thread's element of parameter ``parameter`` in %at."""
    return [
        f"ld.param.u64 %at, [p{parameter}];",
        f"mul.wide.u32 %at2, %t, {width};",
        "add.s64 %at, %at, %at2;",
    ]


# What a snippet for run() begins with.
PARAMETERS = ".param .u64 input, .param .u64 output"
PROLOGUE = """
.reg .b32 %r<20>; .reg .b64 %rd<20>; .reg .f32 %f<10>; .reg .pred %p<10>; .reg .b16 %h<10>;
ld.param.u64 %rd1, [input]; ld.param.u64 %rd2, [output];
cvta.to.global.u64 %rd1, %rd1; cvta.to.global.u64 %rd2, %rd2;
mov.u32 %r1, %tid.x; mul.wide.u32 %rd3, %r1, 4;
add.s64 %rd4, %rd1, %rd3;  // this thread's word of the input
add.s64 %rd5, %rd2, %rd3;  // and of the output
"""


def run(body, values, dtype=np.uint32, *, block=32, words=None, declarations="", **settings):
    """Run ``body`` after PROLOGUE for one block; return the output array."""
    device = ptx.Device(1 << 16)
    source = device.put(np.asarray(values), "input")
    target = device.empty(4 * (words or block), "output")
    code = module(PROLOGUE + body, PARAMETERS, declarations)
    result = ptx.run_kernel(code, "test", 1, block, [source, target], device=device, **settings)
    result.check()
    return device.get(target, dtype)
