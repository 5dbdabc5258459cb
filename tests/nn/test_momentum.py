"""The momentum encoder: what moves, what stays, and mixed kinds of parameters."""

import pytest
import torch
from torch import nn

from slrfast.nn import MomentumEncoder


def test_momentum_encoder_averages_parameters_and_leaves_buffers():
    torch.manual_seed(0)
    query = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    key = MomentumEncoder(query, 0.75)
    before = [p.clone() for p in key.parameters()]
    with torch.no_grad():
        for parameter in query.parameters():
            parameter.add_(torch.randn_like(parameter))
    query(torch.randn(8, 3))
    key.update(query)
    for old, new, target in zip(before, key.parameters(), query.parameters(), strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * target)
        assert not new.requires_grad
    assert not torch.equal(query[1].running_mean, key.encoder[1].running_mean)
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\], got 1.5"):
        MomentumEncoder(query, 1.5)


def pairs(key, query):
    return zip(key.parameters(), query.parameters(), strict=True)


def moved(module):
    """The module, with every parameter somewhere else."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
    return module


def test_buffers_are_averaged_when_asked_and_integers_copied():
    torch.manual_seed(0)
    query = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    query.register_buffer("flag", torch.tensor(False))
    key = MomentumEncoder(query, 0.75, buffers=True)
    query(torch.randn(8, 3))
    query.flag.fill_(True)
    before = {name: buffer.clone() for name, buffer in key.encoder.named_buffers()}
    moved(query)
    key.update(query)
    for name, buffer in query.named_buffers():
        expected = 0.75 * before[name] + 0.25 * buffer if buffer.is_floating_point() else buffer
        torch.testing.assert_close(key.encoder.get_buffer(name), expected, msg=name)
    assert key.encoder[1].num_batches_tracked == 1 and before["1.num_batches_tracked"] == 0
    assert not torch.equal(key.encoder[1].running_mean, query[1].running_mean)
    assert len(list(key.buffers())) == 4  # the option does not hide torch's method


def test_parameters_of_several_dtypes_and_devices():
    torch.manual_seed(0)
    kinds = [torch.float32, torch.bfloat16, torch.float64, torch.float16]
    query = nn.ModuleList([nn.Linear(4, 4, dtype=dtype) for dtype in kinds] + [nn.Linear(4, 4, device="meta")])
    key = MomentumEncoder(query, 0.5)
    before = [parameter.clone() for parameter in key.parameters()]
    moved(query)
    key.update(query)
    for old, (new, target) in zip(before, pairs(key, query), strict=True):
        assert (new.dtype, new.device) == (target.dtype, target.device)
        if new.device.type == "cpu":
            expected = 0.5 * old.double() + 0.5 * target.double()
            torch.testing.assert_close(new.double(), expected, rtol=torch.finfo(new.dtype).eps, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_ends_of_the_range_are_exact(momentum):
    torch.manual_seed(0)
    query = nn.Linear(3, 3)
    key = MomentumEncoder(query, momentum)
    before = [parameter.clone() for parameter in key.parameters()]
    moved(query)
    key.update(query)
    for old, (new, target) in zip(before, pairs(key, query), strict=True):
        assert torch.equal(new, old if momentum else target)
