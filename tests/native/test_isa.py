"""Every instruction set of the build runs the tests of this folder, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ISAS = ("base", "avx2", "avx512", "avx512bf16")


def run(isa, *arguments):
    environment = {**os.environ, "SLRFAST_CPU_ISA": isa}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)


def chosen(isa, library):
    code = f"""
import importlib.util as u
spec = u.spec_from_file_location("slrfast._C", {library.__file__!r})
module = u.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.cpu_isa())"""
    return run(isa, "-c", code)


@pytest.mark.parametrize("isa", ISAS)
def test_forced(library, isa):
    got = chosen(isa, library)
    if "NotImplementedError" in got.stderr:
        assert f"SLRFAST_CPU_ISA asks for {isa}, which " in got.stderr
        pytest.skip(got.stderr.strip().splitlines()[-1])
    assert got.stdout == f"{isa}\n"
    if library.cpu_isa() == isa:
        pytest.skip("what this run of the folder tests already")
    files = sorted(str(file) for file in HERE.glob("test_*.py") if file.name != Path(__file__).name)
    tests = run(
        isa, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", "-k", "not bad_arguments", *files
    )
    assert tests.returncode == 0, tests.stdout + tests.stderr


def test_automatic_is_the_widest_that_runs(library):
    usable = [isa for isa in ISAS if chosen(isa, library).returncode == 0]
    assert chosen("", library).stdout.strip() == usable[-1]


def test_unknown(library):
    got = chosen("AVX2", library)
    assert got.returncode == 1
    assert "ValueError: SLRFAST_CPU_ISA must be one of base, avx2, avx512, avx512bf16, got 'AVX2'" in got.stderr


def test_build_info_has_a_value_for_every_key(library):
    info = dict(line.split("=", 1) for line in library.build_info().splitlines())
    assert set(info) == {"compiler", "threads", "isas", "cuda"} and all(info.values())
    assert info["isas"].split()[0] == "base"
