import json
import resource
from contextlib import contextmanager

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from slrfast.errors import CheckpointError
from slrfast.train.checkpoint import load_checkpoint, save_checkpoint


class Shared(nn.Module):
    """Two names for one buffer, as a bank and a view of it would be."""

    def __init__(self, width=300):
        super().__init__()
        self.layer = nn.Linear(width, width)
        self.register_buffer("bank", torch.zeros(8, width))
        self.register_buffer("view", self.bank[2:4])


def trained(optimizer_class, steps=2, **arguments):
    torch.manual_seed(0)
    system = Shared()
    optimizer = optimizer_class(system.parameters(), lr=0.01, **arguments)
    for _ in range(steps):
        optimizer.zero_grad()
        system.layer(torch.randn(4, 300)).square().mean().backward()
        optimizer.step()
    return system, optimizer, torch.Generator().manual_seed(5)


@contextmanager
def largest_file(size):
    """No file can grow beyond this: what a full disk looks like to a writer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("optimizer", "arguments"), [(torch.optim.SGD, {"momentum": 0.9}), (torch.optim.AdamW, {})])
def test_round_trip(tmp_path, optimizer, arguments):
    path = tmp_path / "checkpoint.safetensors"
    system, first, views = trained(optimizer, **arguments)
    torch.rand(3, generator=views)
    save_checkpoint(path, system, first, views, {"step": 7})
    expected = torch.rand(2), torch.rand(2, generator=views)

    other, second, fresh = trained(optimizer, steps=0, **arguments)
    with torch.no_grad():
        other.layer.weight.zero_()
    assert load_checkpoint(path, other, second, fresh) == {"step": 7}
    assert torch.equal(other.layer.weight, system.layer.weight)
    assert torch.equal(torch.rand(2), expected[0]) and torch.equal(torch.rand(2, generator=fresh), expected[1])
    state, restored = (o.state_dict()["state"] for o in (first, second))
    assert state.keys() == restored.keys() and state[0].keys() == restored[0].keys()
    assert all(torch.equal(state[i][key], restored[i][key]) for i in state for key in state[i])


def test_full_disk_leaves_the_old_checkpoint_whole(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    system, optimizer, views = trained(torch.optim.SGD, momentum=0.9)
    save_checkpoint(path, system, optimizer, views, {"step": 1})
    before = path.read_bytes()
    with torch.no_grad():
        system.layer.weight.add_(1)
    with (
        largest_file(50_000),
        pytest.raises(CheckpointError, match="cannot be written .*; an earlier file is unchanged"),
    ):
        save_checkpoint(path, system, optimizer, views, {"step": 2})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    assert load_checkpoint(path, system, optimizer, views) == {"step": 1}


class TestDamage:
    @pytest.fixture
    def saved(self, tmp_path):
        path = tmp_path / "checkpoint.safetensors"
        parts = trained(torch.optim.SGD, momentum=0.9)
        save_checkpoint(path, *parts, {"step": 1})
        return path, parts

    def test_missing(self, saved, tmp_path):
        with pytest.raises(CheckpointError, match="nothing.safetensors: there is no checkpoint to go on from"):
            load_checkpoint(tmp_path / "nothing.safetensors", *saved[1])

    @pytest.mark.parametrize("keep", [0, 5, 200, 100_000])
    def test_truncated(self, saved, keep):
        path, parts = saved
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(CheckpointError, match="is not a whole slrfast checkpoint"):
            load_checkpoint(path, *parts)

    def test_a_safetensors_file_of_something_else(self, saved):
        path, parts = saved
        save_file({"x": torch.zeros(3)}, path)
        with pytest.raises(CheckpointError, match="is not a whole slrfast checkpoint"):
            load_checkpoint(path, *parts)

    def test_a_pickle_is_not_run(self, saved, tmp_path):
        path, parts = saved
        torch.save({"model": parts[0]}, path)
        with pytest.raises(CheckpointError, match="is not a whole slrfast checkpoint"):
            load_checkpoint(path, *parts)

    def test_another_configuration(self, saved):
        path, (_, _, views) = saved
        other = Shared(width=20)
        with pytest.raises(CheckpointError, match="is of another configuration than this run .*layer.weight"):
            load_checkpoint(path, other, torch.optim.SGD(other.parameters(), lr=0.1), views)

    def test_state_of_a_parameter_that_is_not_trained(self, saved):
        path, (system, _, views) = saved
        with pytest.raises(CheckpointError, match="optimizer state of layer.bias, which this run does not train"):
            load_checkpoint(path, system, torch.optim.SGD([system.layer.weight], lr=0.1), views)

    @pytest.mark.parametrize(
        "header",
        [
            [1],
            {"progress": {}, "optimizer": {}},
            {"format": 1, "optimizer": {}},
            {"format": 1, "progress": {}},
            {"format": 1, "progress": 3, "optimizer": {}},
            {"format": 1, "progress": {}, "optimizer": {"layer.bias": 3}},
        ],
    )
    def test_a_header_of_the_wrong_shape(self, saved, header):
        path, parts = saved
        save_file(load_file(path), path, metadata={"slrfast": json.dumps(header)})
        with pytest.raises(CheckpointError, match="is not a whole slrfast checkpoint"):
            load_checkpoint(path, *parts)

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("rng/views", torch.zeros(3, dtype=torch.uint8), "state of a random generator is missing or damaged"),
            ("rng/cpu", torch.zeros(5056), "state of a random generator is missing or damaged"),
            ("optimizer/layer.weight/momentum_buffer", torch.zeros(3), r"has the wrong shape \[3\]"),
        ],
    )
    def test_a_tensor_of_the_wrong_shape(self, saved, name, value, message):
        path, parts = saved
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        save_file({**load_file(path), name: value}, path, metadata=metadata)
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(path, *parts)


@pytest.mark.parametrize(("optimizer", "arguments"), [(torch.optim.SGD, {"momentum": 0.9}), (torch.optim.AdamW, {})])
def test_going_on_with_another_layout_in_memory(tmp_path, optimizer, arguments):
    """Files hold contiguous tensors; a fused optimizer pairs numbers by where they are in memory."""

    def convolution():
        torch.manual_seed(0)
        system = nn.Conv3d(4, 5, 3).to(memory_format=torch.channels_last_3d)
        return system, optimizer(system.parameters(), lr=0.1, fused=True, **arguments), torch.Generator()

    def step(system, optimizer):
        optimizer.zero_grad()
        system(torch.rand(2, 4, 4, 4, 4, generator=torch.Generator().manual_seed(1))).square().mean().backward()
        optimizer.step()

    system, first, views = convolution()
    step(system, first)
    save_checkpoint(tmp_path / "checkpoint.safetensors", system, first, views, {})
    other, second, fresh = convolution()
    load_checkpoint(tmp_path / "checkpoint.safetensors", other, second, fresh)
    step(system, first)
    step(other, second)
    assert torch.equal(system.weight, other.weight)
