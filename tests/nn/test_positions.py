"""Sinusoidal positions against their equation."""

import math

import pytest
import torch

from slrfast.nn import sinusoidal_positions


def test_equation():
    found = sinusoidal_positions(50, 12, dtype=torch.float64)
    for t in range(50):
        for i in range(6):
            angle = t / 10_000 ** (2 * i / 12)
            assert found[t, 2 * i].item() == pytest.approx(math.sin(angle), abs=2e-5)
            assert found[t, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=2e-5)


def test_no_positions():
    assert sinusoidal_positions(0, 4).shape == (0, 4)


@pytest.mark.parametrize(("length", "dim", "message"), [(-1, 4, "length"), (3, 3, "dim must be even"), (3, 0, "dim")])
def test_errors(length, dim, message):
    with pytest.raises(ValueError, match=message):
        sinusoidal_positions(length, dim)
