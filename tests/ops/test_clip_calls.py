"""The ops over clips called raw, past the checks of their functions: what does not fit raises, and is never read."""

import pytest
import torch

import slrfast
from slrfast.ops import _dispatch

pytestmark = pytest.mark.skipif(_dispatch.unavailable("native", "cpu") is not None, reason="no native kernels")

WINDOWS = [torch.tensor([0, 4, 10]), torch.tensor([[1, 0]]), torch.tensor([[3, 6]])]
NO = torch.zeros(2, 7, dtype=torch.bool)
PLAN = [torch.ones(2, 1, 2, 2), torch.zeros(2, 1, 2), torch.zeros(7).long(), NO, NO, NO[:, 0], torch.arange(7)]
X, CONFIDENCE, KEYS = torch.rand(2, 5, 7, 2), torch.rand(2, 5, 7), torch.rand(2, 5)
CALLS = {  # arguments, and at which of them a tensor of another type is only converted
    "resample": ([torch.rand(10, 7, 2), *WINDOWS, 4, "linear"], ()),
    "augment": ([X, CONFIDENCE, *PLAN], (1, 2, 3)),
    "pose_views": ([torch.rand(10, 7, 2), torch.rand(10, 7), *WINDOWS, *PLAN, 4, 0], (5, 6)),
    "motion_mask": ([X, CONFIDENCE, torch.tensor([5, 3]), KEYS, 1, 0.4, 5.0, 0.5, 0.9, False], (1, 3)),
    "masked_motion_loss": ([X, X, CONFIDENCE, KEYS < 0.5, 1.0, True, True, True], (1, 2)),
}
TENSORS = [(op, i) for op, (given, _) in CALLS.items() for i, one in enumerate(given) if isinstance(one, torch.Tensor)]


@pytest.mark.parametrize(("op", "i"), TENSORS)
def test_raw_calls_of_other_shapes_read_nothing_beyond_a_tensor(op, i):
    call, (given, converted) = getattr(torch.ops.slrfast, op), CALLS[op]
    tensor = given[i]
    shapes = [tensor[:0], tensor.unsqueeze(0), torch.cat((tensor, tensor)), tensor.new_zeros(())]
    shapes += [tensor[..., :-1]] * ((op, i) != ("resample", 0))  # which takes any number of channels
    with slrfast.backend("native"):
        call(*given)
        for wrong in shapes:
            with pytest.raises((ValueError, IndexError)):
                call(*given[:i], wrong, *given[i + 1 :])
        if i == 0 or i in converted:
            return
        with pytest.raises(ValueError, match="a CPU kernel over clips takes .* here, got torch.int16 .* on cpu"):
            call(*given[:i], tensor.short(), *given[i + 1 :])


def test_raw_values_out_of_range():
    for op, i, wrong in (
        ("resample", 2, WINDOWS[1] + 5),
        ("pose_views", 2, WINDOWS[0] + 1),
        ("augment", 8, PLAN[-1] + 1),
        ("augment", 4, PLAN[2] - 1),
        ("motion_mask", 2, torch.tensor([5, 6])),
    ):
        given, _ = CALLS[op]
        with slrfast.backend("native"), pytest.raises(ValueError, match=f"{op}_cpu: .* must"):
            getattr(torch.ops.slrfast, op)(*given[:i], wrong, *given[i + 1 :])
