"""GPU kernels are compiled and their resources checked where there is no GPU."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from slrfast import kernels
from slrfast.kernels import native

ROOT = Path(__file__).resolve().parents[2]
SHARED_MEMORY = {80: 163 << 10, 90: 227 << 10}  # bytes a block may use


def cuobjdump():
    """The tool of the CUDA toolkit, or the copy that comes with triton."""
    triton = pytest.importorskip("triton")
    bundled = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    tool = shutil.which("cuobjdump") or (str(bundled) if bundled.is_file() else None)
    return tool or pytest.skip("cuobjdump is neither on PATH nor in triton")


def resources(file):
    """(function, {REG, STACK, SHARED, LOCAL ...}) of every kernel in an object file."""
    text = subprocess.run([cuobjdump(), "-res-usage", str(file)], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"Function (\S+):\s+(REG:.*)", text)
    return [(name, {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line)}) for name, line in found]


def motion_variants():
    from slrfast.kernels.triton.motion import TILE, difference

    for element in ("fp32", "fp64", "bf16", "fp16"):
        for wide in ("i32", "i64"):
            constants = {"ROWS": 1, "BLOCK": TILE, "DOUBLE": element == "fp64"}
            yield difference, {"source": f"*{element}", "result": f"*{element}"}, wide, constants


VARIANTS = {"motion": motion_variants}


@pytest.mark.parametrize("capability", SHARED_MEMORY)
@pytest.mark.parametrize("op", VARIANTS)
def test_triton_kernels_compile_without_spills(op, capability, tmp_path):
    triton = pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the interpreter replaces the compiler")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    for kernel, pointers, integer, constants in VARIANTS[op]():
        signature = {name: pointers.get(name, integer) for name in kernel.arg_names}
        signature |= dict.fromkeys(constants, "constexpr")
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        assert compiled.metadata.shared <= SHARED_MEMORY[capability]
        cubin = tmp_path / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        ((_, usage),) = resources(cubin)
        assert usage["LOCAL"] == 0 and usage["STACK"] == 0, (signature, usage)


def test_cuda_kernels_do_not_spill():
    if native.LIBRARY is None:
        pytest.skip(native.LOAD_ERROR)
    if not native.build_info()["cuda"].startswith("built"):
        pytest.skip(f"CUDA {native.build_info()['cuda']}")
    found = resources(native.LIBRARY.__file__)
    architectures = native.build_info()["cuda"].count("sm_")
    assert (
        len(found) == 13 * architectures
    )  # packs of 16 bytes down to one element: 4 for a half type, 3, and 2 for double
    assert [(name, usage) for name, usage in found if usage["LOCAL"] or usage["STACK"]] == []


@pytest.mark.parametrize("op", VARIANTS)
def test_triton_kernels_in_the_interpreter(op):
    """The op's own tests, with Triton's CPU interpreter as the backend, in a process of its own."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "cpu-triton",
        str(ROOT / f"tests/ops/test_{op}.py"),
    ]
    got = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert got.returncode == 0, got.stdout
    assert re.search(r"\d+ passed", got.stdout) and "skipped" not in got.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_both_gpu_backends_say_so(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if kernels.triton_installed():
        assert kernels.availability("triton", "cuda") == "torch sees no CUDA device"
    assert "CUDA" in kernels.availability("cuda", "cuda")
    assert kernels.availability("cuda", "cpu") == "the CUDA kernels run on CUDA tensors only"
    assert kernels.availability("native", "cuda") == "the native kernels run on CPU tensors only"
