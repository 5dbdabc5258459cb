"""What a kernel stores in a half type is rounded as PyTorch rounds it; on the CPU under TRITON_INTERPRET=1."""

import os

import pytest
import torch

pytest.importorskip("triton")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

from slrfast.kernels.triton import enqueue, motion

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("stored", FLOATS)
@pytest.mark.parametrize("given", FLOATS[:2])
def test_any_number_is_rounded_to_nearest_even(given, stored):
    """Random bits (subnormal numbers, infinities, NaN), the middles between two half numbers, and next to them."""
    generator = torch.Generator().manual_seed(0)
    any_bits = torch.randint(-(2**31), 2**31, (3000,), generator=generator).int().view(torch.float32).double()
    middles = torch.cat([1 + torch.arange(1, 64) * 2.0**-bits for bits in (8, 11)]).double()
    edges = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-40, 3e-8, 65519.9, 65520.0, 3.4e38]).double()
    x = torch.cat((any_bits, middles, -middles * (1 + 2.0**-20), middles * (1 - 2.0**-40), edges)).to(DEVICE, given)
    bank = torch.zeros(1, len(x), dtype=stored, device=DEVICE)
    enqueue.enqueue_(bank, torch.tensor(0, device=DEVICE), x[None], False)
    expected = x.to(stored)
    assert bank[0].isnan().equal(expected.isnan())
    assert (
        bank[0].nan_to_num(nan=7.0, posinf=8.0, neginf=9.0).equal(expected.nan_to_num(nan=7.0, posinf=8.0, neginf=9.0))
    )


@pytest.mark.parametrize("dtype", FLOATS[2:])
def test_a_difference_is_rounded_once(dtype):
    x = torch.randn(2, 50, 7, 2, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    got = motion.motion(x, 1, True)
    assert got[:, 1:].equal((x[:, 1:].float() - x[:, :-1].float()).to(dtype))
