import re

import pytest
import torch
from torch.testing import assert_close

from slrfast import ops

OP = "enqueue_"


def oracle(bank, cursor, keys, normalize):
    """The queue after writing the keys one by one, in Python floats, and its cursor."""
    rows = bank.tolist()
    for key in keys.tolist():
        length = max(sum(value * value for value in key) ** 0.5, 1e-12) if normalize else 1.0
        rows[cursor] = [value / length for value in key]
        cursor = (cursor + 1) % len(rows)
    return torch.tensor(rows, dtype=torch.float64), cursor


# ---- forward --------------------------------------------------------------------------------------------------------


def test_by_hand(device):
    bank, cursor = torch.zeros(3, 2, device=device), torch.tensor(2, device=device)
    assert ops.enqueue_(bank, cursor, torch.tensor([[3.0, 4.0], [0.0, -2.0]], device=device)) is None
    assert_close(bank.cpu(), torch.tensor([[0.0, -1.0], [0.0, 0.0], [0.6, 0.8]]))
    assert cursor.item() == 1 and cursor.dtype == torch.int64


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("count", [0, 1, 4, 7, 8, 16, 23])
def test_equals_writing_one_by_one(device, randn, count, normalize):
    bank, keys, cursor = randn(7, 3, device=device), randn(count, 3, device=device), torch.tensor(5, device=device)
    expected, expected_cursor = oracle(bank, 5, keys, normalize)
    ops.enqueue_(bank, cursor, keys, normalize=normalize)
    assert_close(bank.double().cpu(), expected, rtol=1e-6, atol=1e-7)
    assert cursor.item() == expected_cursor


def test_goes_round_many_times(device, randn):
    bank, cursor = torch.zeros(7, 3, device=device), torch.zeros((), dtype=torch.int64, device=device)
    keys = randn(40, 3, device=device)
    for start in range(0, 40, 4):
        ops.enqueue_(bank, cursor, keys[start : start + 4])
    expected, expected_cursor = oracle(torch.zeros(7, 3), 0, keys, True)
    assert_close(bank.double().cpu(), expected, rtol=1e-6, atol=1e-7)
    assert cursor.item() == expected_cursor


@pytest.mark.parametrize("bank_type", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("key_type", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_normalises_before_rounding(randn, bank_type, key_type):
    bank, cursor, keys = torch.zeros(5, 8, dtype=bank_type), torch.tensor(0), 300 * randn(3, 8).to(key_type)
    ops.enqueue_(bank, cursor, keys)
    wide = keys.double() if key_type == torch.float64 else keys.float()
    assert_close(bank[:3], (wide / wide.norm(dim=1, keepdim=True)).to(bank_type))


# ---- backward -------------------------------------------------------------------------------------------------------


def test_nothing_is_differentiated(device, randn):
    bank, cursor = randn(5, 3, device=device), torch.tensor(0, device=device)
    ops.enqueue_(bank, cursor, randn(2, 3, device=device, requires_grad=True))
    assert bank.is_leaf and not bank.requires_grad
    bank.requires_grad_()
    with pytest.warns(UserWarning, match=re.escape("enqueue_: bank requires grad, but no gradient flows to it; pass")):
        ops.enqueue_(bank, cursor, randn(2, 3, device=device, requires_grad=True))
    assert bank.is_leaf and bank.grad_fn is None and cursor.item() == 4


def test_who_saved_the_bank_notices(device, randn):
    bank, cursor = randn(5, 3, device=device), torch.tensor(0, device=device)
    product = randn(3, device=device, requires_grad=True) * bank
    ops.enqueue_(bank.T.T, cursor, randn(2, 3, device=device))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_runs_in_inference_mode(device, randn):
    with torch.inference_mode():
        bank, cursor = torch.zeros(3, 2, device=device), torch.tensor(0, device=device)
        ops.enqueue_(bank, cursor, torch.tensor([[0.0, 2.0]], device=device))
    assert bank.tolist() == [[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]] and cursor.item() == 1


# ---- registration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False])
def test_opcheck(device, randn, normalize):
    bank, cursor, keys = randn(5, 3, device=device), torch.tensor(4, device=device), randn(3, 3, device=device)
    for tensors in ((bank, cursor, keys), (bank.T.contiguous().T, cursor, keys.T.contiguous().T)):
        torch.library.opcheck(torch.ops.slrfast.enqueue_.default, (*tensors, normalize))


@pytest.mark.parametrize("count", [2, 4, 9])
def test_compiles_whole_and_under_autocast(device, randn, compiled, count):
    keys, expected = randn(count, 3, device=device, requires_grad=True), randn(5, 3, device=device)
    bank, cursor, expected_cursor = expected.clone(), *(torch.tensor(3, device=device) for _ in range(2))
    with torch.autocast(device.type, dtype=torch.bfloat16):
        compiled(ops.enqueue_)(bank, cursor, keys)
    ops.enqueue_(expected, expected_cursor, keys)
    assert_close((bank, cursor), (expected, expected_cursor))


# ---- edges ----------------------------------------------------------------------------------------------------------


def test_writes_through_a_transposed_queue(device, randn):
    queue, cursor, keys = randn(3, 7, device=device), torch.tensor(6, device=device), randn(4, 3, device=device)
    expected, _ = oracle(queue.T, 6, keys, True)
    ops.enqueue_(queue.T, cursor, keys)
    assert_close(queue.T.double().cpu(), expected, rtol=1e-6, atol=1e-7)


def test_takes_one_entry_of_a_moco_pointer(randn):
    pointer = torch.zeros(1, dtype=torch.int64)
    ops.enqueue_(randn(5, 3), pointer[0], randn(2, 3))
    assert pointer.tolist() == [2]


def test_bank_of_one_row_and_strided_keys(randn):
    bank, cursor, keys = torch.zeros(1, 3), torch.tensor(0), randn(3, 8).T[::2]
    ops.enqueue_(bank, cursor, keys, normalize=False)
    assert bank.equal(keys[-1:]) and cursor.item() == 0


def test_zero_key_stays_zero_and_nan_stays_in_its_row():
    bank, cursor = torch.ones(3, 2), torch.tensor(0)
    ops.enqueue_(bank, cursor, torch.tensor([[0.0, 0.0], [float("nan"), 1.0]]))
    assert bank[0].tolist() == [0.0, 0.0] and bank[1].isnan().all() and bank[2].tolist() == [1.0, 1.0]


def test_keys_may_be_rows_of_the_bank(device):
    bank = torch.arange(1.0, 7.0, device=device)[:, None].contiguous()
    ops.enqueue_(bank, torch.tensor(1, device=device), bank[0:3], normalize=False)
    assert bank.flatten().tolist() == [1, 1, 2, 3, 5, 6]


def test_rows_that_share_memory_are_refused():
    bank = torch.zeros(6).unfold(0, 3, 1)
    with pytest.raises(ValueError, match="enqueue_: bank must have memory of its own for every element"):
        ops.enqueue_(bank, torch.tensor(0), torch.ones(1, 3))


# ---- errors ---------------------------------------------------------------------------------------------------------

N, C, K = torch.zeros(5, 3), torch.tensor(0), torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((N, C, K[:, :2]), ValueError, "keys must have shape [B, D] with D = 3, got [2, 2]"),
        ((N, torch.zeros(1, dtype=torch.int64), K), ValueError, "cursor must have shape [], got [1]"),
        ((N, 0, K), TypeError, "cursor must be a torch.Tensor, got int"),
        ((N, C.int(), K), TypeError, "cursor must be torch.int64, got torch.int32"),
        ((N.int(), C, K), TypeError, "bank must be float64, float32, bfloat16 or float16, got torch.int32"),
        ((N, C, K.long()), TypeError, "keys must be float64, float32, bfloat16 or float16, got torch.int64"),
        ((N, C.to("meta"), K), ValueError, "cursor must be on the device of bank (cpu), got meta"),
        ((N, C, K.to("meta")), ValueError, "keys must be on the device of bank (cpu), got meta"),
        ((N[:1].expand(5, 3), C, K), ValueError, "bank must have memory of its own for every element, got strides"),
        ((N[:0], C, K), ValueError, "bank must have at least one row, got [0, 3]"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=re.escape(f"enqueue_: {message}")):
        ops.enqueue_(*arguments)
