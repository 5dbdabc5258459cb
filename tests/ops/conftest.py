"""Fixtures of the op tests: seeded tensors, every device and backend that can run here, and the two compilers."""

import pytest
import torch

import slrfast
from slrfast.ops import _dispatch


def pytest_generate_tests(metafunc):
    """A test with a ``device`` argument runs on every (device, backend) of the table of its class's or module's OP."""
    if "device" in metafunc.fixturenames:
        table = _dispatch.TABLES[(metafunc.cls or metafunc.module).OP]
        places = [(kind, name) for kind in ("cpu", "cuda") for name in table[kind]]
        metafunc.parametrize("device", places, ids="-".join, indirect=True)


@pytest.fixture
def device(request):
    kind, name = request.param
    if kind == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if reason := _dispatch.unavailable(name, kind):
        pytest.skip(reason)
    with slrfast.backend(name):
        yield torch.device(kind)


@pytest.fixture
def randn():
    """Seeded normal numbers, the same on every device; drawn in float64 and rounded to ``dtype``."""
    generator = torch.Generator().manual_seed(0)

    def make(*shape, dtype=torch.float32, device="cpu", requires_grad=False):
        numbers = torch.randn(shape, generator=generator, dtype=torch.float64)
        return numbers.to(device, dtype).requires_grad_(requires_grad)

    return make


@pytest.fixture
def compiled():
    """``torch.compile`` of a whole graph, traced by Dynamo and AOTAutograd but not lowered to machine code."""
    torch._dynamo.reset()
    return lambda function: torch.compile(function, fullgraph=True, backend="aot_eager")


@pytest.fixture
def saved_shapes():
    """Run a function and list the shapes of the tensors that autograd saved for its backward pass."""

    def run(function):
        shapes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(tuple(t.shape)) or t, lambda t: t):
            function()
        return shapes

    return run
