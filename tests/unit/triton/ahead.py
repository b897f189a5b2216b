"""Compile every kernel ahead of time, without a GPU; run as a script, not interpreted.

Runs the operators with `launching.recording()`, so that nothing is executed, and compiles each
recorded launch. The last line is one JSON object: kernel -> bytes of shared memory, how many copies
into it in the program are of four bytes a thread, how many loads of one and of two, and of products
with integers, bytes of registers that were spilled. Of launches that share a name, the most.
"""

import json
import re
import subprocess
from inspect import signature
from pathlib import Path
from tempfile import NamedTemporaryFile

import torch
import triton
from ahead_cases import CASES
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sidewinder.ops.launching import Launch, is_interpreting, recording

TYPES = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int32: "*i32",
    torch.int64: "*i64", torch.uint8: "*u8", torch.int8: "*i8", torch.int16: "*i16",
}  # fmt: skip


def source_of(launch: Launch) -> ASTSource:
    """The kernel with the types of its recorded arguments, as a launch would specialise it."""
    names = list(signature(launch.kernel.fn).parameters)
    types, constants, attributes = {}, dict(launch.constants), {}
    for index, (name, value) in enumerate(zip(names, launch.arguments, strict=False)):
        if value is None:
            constants[name] = None
        elif isinstance(value, torch.Tensor):
            types[name] = TYPES[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            types[name] = "fp32"
        elif value == 1 and not launch.kernel.params[index].do_not_specialize:
            constants[name] = 1
        else:
            types[name] = "i64" if abs(value) >= 2**31 else "i32"
            if value % 16 == 0 and not launch.kernel.params[index].do_not_specialize:
                attributes[(index,)] = [["tt.divisibility", 16]]
    types |= dict.fromkeys(constants, "constexpr")
    return ASTSource(launch.kernel, {n: types[n] for n in names}, constants, attributes)


def spilled(cubin: bytes) -> int:
    """Bytes of a thread's stack: registers that it has no room for."""
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(program), "-res-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(re.findall(r"STACK:(\d+)", said)[0])


def main() -> None:
    assert not is_interpreting(), "TRITON_INTERPRET is set"
    compiled: dict[str, dict[str, int]] = {}
    for case, (run, capabilities) in CASES.items():
        with recording() as launches:
            run()
        assert launches, f"{case} launches nothing"
        for launch in launches:
            function = launch.kernel.fn
            operator = function.__module__.split(".")[-2]
            for capability in capabilities:
                target = GPUTarget("cuda", capability, 32)
                built = triton.compile(source_of(launch), target=target, options=launch.options)
                name = f"{operator}.{function.__name__} sm_{capability} {case}"
                assert f".target sm_{capability}" in built.asm["ptx"], name
                waits = "griddepcontrol.wait" in built.asm["ptx"]
                assert waits == bool(launch.options.get("launch_pdl")), name
                can_wait = "EARLY" in launch.constants
                assert waits == (can_wait and case == "started early"), name
                ptx = built.asm["ptx"]
                facts = {
                    "shared": built.metadata.shared,
                    "narrow": len(re.findall(r"cp\.async\.ca\.shared\.global.*, 0x4,", ptx)),
                    "loads of a byte": len(re.findall(r"ld\.global\S*\.b8", ptx)),
                    "loads of two bytes": len(re.findall(r"ld\.global\S*\.b16", ptx)),
                    "spilled": spilled(built.asm["cubin"]) if "integer_" in name else 0,
                }
                most = compiled.get(name, facts)
                compiled[name] = {fact: max(n, most[fact]) for fact, n in facts.items()}
    print(json.dumps(compiled))


if __name__ == "__main__":
    main()
