import os
import subprocess
import sys
import warnings

import pytest
import torch

import slrfast
from slrfast import kernels, ops
from slrfast.errors import BackendUnavailable
from slrfast.kernels import native
from slrfast.ops import _dispatch

X = torch.zeros(3, 2, 1)
OP = "an_op"


@pytest.fixture
def table(monkeypatch):
    """An op with this CPU table, on a machine where only what is listed as ``can`` runs."""

    def make(*names, can):
        monkeypatch.setitem(_dispatch.TABLES, OP, {"cpu": names})
        monkeypatch.setattr(_dispatch, "_chosen", {})
        monkeypatch.setattr(_dispatch, "unavailable", lambda name, device: None if name in can else f"no {name} here")

    monkeypatch.delenv("SLRFAST_BACKEND", raising=False)
    return make


def test_first_usable_backend_of_the_table_runs(table):
    table("native", "triton", "reference", can={"native", "reference"})
    assert _dispatch.choose(OP, "cpu") == "native"
    assert _dispatch.choose(OP, "mps") == "reference"


def test_fallback_warns_once_with_the_reason(table):
    table("native", "triton", "reference", can={"reference"})
    with pytest.warns(UserWarning, match=r"native cannot run \(no native here\); .*using reference"):
        assert _dispatch.choose(OP, "cpu") == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _dispatch.choose(OP, "cpu") == "reference"


def test_nothing_usable_names_every_reason(table):
    table("native", "triton", can=())
    with pytest.raises(BackendUnavailable, match="no native here.*no triton here"):
        _dispatch.choose(OP, "cpu")


def test_forced_backend_wins_or_raises_with_the_reason(table, monkeypatch):
    table("native", "triton", "reference", can={"native", "reference"})
    with slrfast.backend("reference"):
        assert _dispatch.choose(OP, "cpu") == "reference"
        with slrfast.backend("native"):
            assert _dispatch.choose(OP, "cpu") == "native"
        assert _dispatch.choose(OP, "cpu") == "reference"
    with slrfast.backend("triton"), pytest.raises(BackendUnavailable, match="'triton' was forced .*no triton here"):
        _dispatch.choose(OP, "cpu")
    with slrfast.backend("cuda"), pytest.raises(BackendUnavailable, match="an_op has no cuda kernel for cpu tensors"):
        _dispatch.choose(OP, "cpu")


def test_environment_forces_and_the_context_manager_outranks_it(table, monkeypatch):
    table("native", "reference", can={"native", "reference"})
    monkeypatch.setenv("SLRFAST_BACKEND", "reference")
    assert _dispatch.choose(OP, "cpu") == "reference"
    with slrfast.backend("native"):
        assert _dispatch.choose(OP, "cpu") == "native"
    monkeypatch.setenv("SLRFAST_BACKEND", "fastest")
    with pytest.raises(ValueError, match="SLRFAST_BACKEND: value must be one of 'native', .* got 'fastest'"):
        _dispatch.choose(OP, "cpu")


def test_unknown_name_and_an_exception_inside_the_block():
    with pytest.raises(ValueError, match="backend: name must be one of"), slrfast.backend("fast"):
        pass
    with pytest.raises(KeyError), slrfast.backend("reference"):
        raise KeyError
    assert _dispatch._forced is None


def test_the_real_motion_says_why_it_cannot(monkeypatch):
    with slrfast.backend("cuda"), pytest.raises(BackendUnavailable, match="motion has no cuda kernel for cpu tensors"):
        ops.motion(X)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with slrfast.backend("triton"), pytest.raises(BackendUnavailable, match="triton"):
        ops.motion(X)


def test_without_the_compiled_module_the_reference_runs_after_a_warning(monkeypatch):
    monkeypatch.setattr(native, "LIBRARY", None)
    monkeypatch.setattr(native, "LOAD_ERROR", "No module named 'slrfast._C'")
    monkeypatch.setattr(_dispatch, "_chosen", {})
    monkeypatch.delenv("SLRFAST_BACKEND", raising=False)
    with pytest.warns(UserWarning, match=r"motion on cpu: native cannot run \(.*No module named 'slrfast._C'"):
        assert ops.motion(X).shape == X.shape
    assert "No module named" in kernels.availability("cuda", "cuda")
    with slrfast.backend("native"), pytest.raises(BackendUnavailable, match="No module named"):
        ops.motion(X)


def test_importing_slrfast_needs_no_triton():
    code = "import sys; sys.modules['triton'] = None; import torch, slrfast; slrfast.ops.motion(torch.zeros(3, 2, 1))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_wrong_instruction_set_is_an_error_even_with_a_fallback():
    if native.LIBRARY is None:
        pytest.skip(native.LOAD_ERROR)
    code = "import torch, slrfast; slrfast.ops.motion(torch.zeros(3, 2, 1))"
    environment = {**os.environ, "SLRFAST_CPU_ISA": "sse9"}
    got = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert got.returncode == 1
    assert "ValueError: SLRFAST_CPU_ISA must be one of base, avx2, avx512, avx512bf16, got 'sse9'" in got.stderr


def test_choice_is_a_constant_to_the_compiler(table):
    table("native", "reference", can={"reference"})

    def function(x):
        return x + len(_dispatch.choose(OP, "cpu"))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.compile(function, fullgraph=True, backend="eager")(torch.zeros(1)).item() == len("reference")
