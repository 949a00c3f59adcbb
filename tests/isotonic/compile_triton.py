"""Compiles the Triton kernels to PTX for every architecture that matters: "few" or "all".

"few" are the longest weighted row of float32 and a short plain one of bfloat16. Prints JSON.

A process of its own, without TRITON_INTERPRET. No device is needed: Triton brings its assembler.
"""

import itertools
import json
import os
import sys

os.environ.pop("TRITON_INTERPRET", None)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ltlearn.isotonic import triton_engine

TYPES = {"bfloat16": "*bf16", "float16": "*fp16", "float32": "*fp32", "float64": "*fp64"}


def compiled(kernel, types: dict, constants: dict, capability: int, warps: int):
    signature = {n: types.get(n, "i32") for n in kernel.arg_names}
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, signature=signature, constexprs=constants)
    options = {"num_warps": warps, **triton_engine._OPTIONS}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm


def main(which: str) -> None:
    results = {}
    variants = list(itertools.product(["float32"], (False, True), (2, triton_engine.MAX_LENGTH)))
    variants += [("bfloat16", False, 128), ("float16", True, 128), ("float64", True, 4_096)]
    if which == "few":
        variants = [v for v in variants if v == ("float32", True, triton_engine.MAX_LENGTH)]
        variants.append(("bfloat16", False, 128))
    chosen = itertools.product((80, 90, 100), variants)
    for i, (capability, (dtype, weighted, size)) in enumerate(chosen):
        tile, warps = triton_engine._tile(size)
        flags = {"WEIGHTED": weighted, "TILE": tile}
        wide = dict.fromkeys(("kept_ptr", "scratch_ptr", "solution_ptr"), "*fp64")
        own = dict.fromkeys(("y_ptr", "weights_ptr", "out_ptr", "grad_ptr"), TYPES[dtype])
        for name in ("_solve_kernel", "_block_means_kernel"):
            more = {"DECREASING": i % 2 == 0, "KEEP": i % 4 < 2} if "solve" in name else {}
            kernel = getattr(triton_engine, name)
            asm = compiled(kernel, wide | own, flags | more, capability, warps)
            key = f"{name} sm_{capability} {dtype} {'weighted' if weighted else 'plain'} {tile}"
            ptx = asm["ptx"]
            results[key] = {
                "target": ptx.split(".target ")[1].split()[0].rstrip(","),
                "binary_bytes": len(asm["cubin"]),
                "barriers": ptx.count("bar.sync") + ptx.count("barrier.sync"),
                "cached_read_only": ptx.count("ld.global.nc"),
                "spills": ptx.count(".local"),
            }
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1])
