import json
import subprocess
import sys

import pytest

from slrfast.kernels import native
from slrfast.ops import _dispatch
from slrfast.train import info


def test_every_op_and_device_has_a_backend(capsys):
    assert info.main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["packages"]["torch"] and found["python"].startswith("3.")
    assert set(found["ops"]) == set(_dispatch.TABLES)
    assert all(place["runs"] for places in found["ops"].values() for place in places.values())


def test_text_names_versions_instruction_set_cuda_and_backends(capsys):
    info.main([])
    text = capsys.readouterr().out
    for word in ("slrfast ", "torch ", "triton ", "CUDA kernels ", "threads ", "backend of every op:", "motion "):
        assert word in text
    if native.LIBRARY is not None:
        assert native.cpu_isa() in text and native.build_info()["cuda"] in text


def test_runs_without_the_compiled_module(monkeypatch, capsys):
    monkeypatch.setattr(native, "LIBRARY", None)
    monkeypatch.setattr(native, "LOAD_ERROR", "No module named 'slrfast._C'")
    info.main([])
    text = capsys.readouterr().out
    assert "not loaded: No module named 'slrfast._C'" in text and "not built" in text
    assert "cpu   reference; not native: the compiled module slrfast._C cannot be loaded" in text


def test_a_wrong_instruction_set_is_shown_and_not_raised(monkeypatch):
    def wrong():
        raise ValueError("SLRFAST_CPU_ISA must be one of base, avx2, avx512, got 'x'")

    if native.LIBRARY is None:
        pytest.skip(native.LOAD_ERROR)
    monkeypatch.setattr(native, "cpu_isa", wrong)
    found = info.collect()
    assert found["native"]["isa"].startswith("none: SLRFAST_CPU_ISA must be")
    assert found["ops"]["motion"]["cpu"]["runs"] == "reference"


@pytest.mark.slow
def test_module_runs_as_a_command():
    got = subprocess.run([sys.executable, "-m", "slrfast.info"], capture_output=True, text=True, check=True)
    assert "backend of every op:" in got.stdout
