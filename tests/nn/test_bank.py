"""Memory banks: what is written where, the sum that is kept in step, and what a state dict brings back."""

import copy
import pickle

import pytest
import torch

from slrfast.nn import FactoredBank, MemoryBank


def test_memory_bank_wraps_and_survives_the_state_dict():
    bank = MemoryBank(5, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(bank.features.norm(dim=1), torch.ones(5))
    keys = torch.eye(3)
    bank.enqueue(keys)
    bank.enqueue(2 * keys)
    assert bank.cursor.item() == 1
    torch.testing.assert_close(bank.features, keys[[2, 1, 2, 0, 1]])
    again = MemoryBank(5, 3)
    again.load_state_dict(bank.state_dict())
    assert torch.equal(again.features, bank.features) and again.cursor.item() == 1


def test_memory_bank_refuses_no_rows():
    with pytest.raises(ValueError, match="MemoryBank: size must be >= 1, got 0"):
        MemoryBank(0, 3)


def _enqueue_in_a_group(rank, folder):
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    bank = MemoryBank(4, 2, gather=True, normalize=False, generator=torch.Generator().manual_seed(rank))
    bank.enqueue(torch.full((2, 2), float(rank)))
    pair = FactoredBank(3, 1, ("a", "b"), gather=True, normalize=False)
    pair.enqueue(*torch.tensor([[[1.0], [2.0]], [[10.0], [20.0]]]) * 100**rank)
    torch.save((bank.features, pair.sum), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_gathered_banks_are_the_same_in_every_process(tmp_path):
    torch.multiprocessing.spawn(_enqueue_in_a_group, (str(tmp_path),), nprocs=2)
    expected = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    for rank in range(2):
        features, total = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(features, expected)
        assert total.flatten().tolist() == [2200.0, 22.0, 1100.0]  # of 11, 22, 1100, 2200 the first was overwritten


def recomputed(bank):
    rows = [bank[part].features for part in bank]
    wide = torch.promote_types(rows[0].dtype, torch.float32)
    return sum(row.to(wide) for row in rows).to(rows[0].dtype)


def keys(bank, size):
    return [torch.randn(size, bank.sum.shape[1], dtype=torch.float64) for _ in bank]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("parts", [("hand", "trunk"), ("right", "left", "trunk")])
def test_the_sum_follows_the_banks(dtype, parts):
    torch.manual_seed(0)
    bank = FactoredBank(7, 3, parts, dtype=dtype)
    assert bank.sum.dtype == dtype and torch.equal(bank.sum, recomputed(bank))
    for size in (1, 3, 5, 0, 7, 12, 2, 15):
        bank.enqueue(*keys(bank, size))
        assert torch.equal(bank.sum, recomputed(bank))
    assert {bank[part].cursor.item() for part in parts} == {45 % 7}
    assert bank.features is bank.sum


def test_only_written_rows_are_added_again():
    bank = FactoredBank(5, 2)
    bank.enqueue(*keys(bank, 4))
    bank.sum.fill_(99)
    bank.enqueue(*keys(bank, 3))
    assert (bank.sum == 99).all(1).tolist() == [False, False, True, True, False]


def test_keys_by_name_or_in_order():
    torch.manual_seed(0)
    first = FactoredBank(5, 3)
    second = copy.deepcopy(first)
    hand, trunk = keys(first, 2)
    first.enqueue(hand, trunk)
    second.enqueue(trunk=trunk, hand=hand)
    assert torch.equal(first.sum, second.sum) and torch.equal(first["hand"].features, second["hand"].features)
    torch.testing.assert_close(first["hand"].features[:2], torch.nn.functional.normalize(hand).float())


def test_a_state_dict_brings_the_sum_back():
    torch.manual_seed(0)
    bank = FactoredBank(6, 4, dtype=torch.bfloat16)
    bank.enqueue(*keys(bank, 4))
    state = copy.deepcopy(bank.state_dict())  # assign=True takes the tensors themselves
    assert list(state) == ["hand.features", "hand.cursor", "trunk.features", "trunk.cursor"]
    again = torch.nn.ModuleDict({"bank": FactoredBank(6, 4, dtype=torch.bfloat16)})
    address = again["bank"].sum.data_ptr()
    again.load_state_dict({f"bank.{name}": value for name, value in state.items()})
    assert torch.equal(again["bank"].sum, bank.sum) and again["bank"].sum.data_ptr() == address
    with torch.device("meta"):
        empty = FactoredBank(6, 4)
    empty.load_state_dict(state, assign=True)
    for other in (empty, again["bank"], copy.deepcopy(bank), pickle.loads(pickle.dumps(bank))):
        more = keys(bank, 3)
        alone = copy.deepcopy(bank)
        other.enqueue(*more)
        alone.enqueue(*more)
        assert other.sum.dtype == torch.bfloat16 and torch.equal(other.sum, alone.sum)


def test_casting_and_moving_form_the_sum_again():
    torch.manual_seed(0)
    bank = torch.nn.Sequential(FactoredBank(6, 4))
    bank.to(torch.bfloat16)
    assert bank[0].sum.dtype == torch.bfloat16 and torch.equal(bank[0].sum, recomputed(bank[0]))
    bank.double()
    assert bank[0].sum.dtype == torch.float64 and torch.equal(bank[0].sum, recomputed(bank[0]))
    bank[0]["hand"].features.zero_()
    bank[0].refresh()
    assert torch.equal(bank[0].sum, bank[0]["trunk"].features)
    assert bank.to("meta")[0].sum.device.type == "meta"


@pytest.mark.parametrize(
    ("given", "named", "error", "sentence"),
    [
        (
            1,
            {},
            ValueError,
            r"keys must be one tensor for each of \['hand', 'trunk'\], got 1 in order and \[\] by name",
        ),
        (3, {}, ValueError, r"got 3 in order and \[\] by name"),
        (1, {"hand": (2, 3)}, ValueError, r"got 1 in order and \['hand'\] by name"),
        (1, {"trunk": (1, 3)}, ValueError, r"trunk must have shape \[B, 3\] with B = 2, got \[1, 3\]"),
        (1, {"trunk": (2, 4)}, ValueError, r"trunk must have shape \[B, 3\], got \[2, 4\]"),
        (1, {"trunk": "integer"}, TypeError, "trunk must be float64, float32, bfloat16 or float16, got torch.int64"),
        (1, {"trunk": "meta"}, ValueError, r"trunk must be on the device of the bank \(cpu\), got meta"),
        (1, {"trunk": None}, TypeError, "trunk must be a torch.Tensor, got NoneType"),
    ],
)
def test_keys_that_do_not_fit_are_refused_and_nothing_is_written(given, named, error, sentence):
    bank = FactoredBank(5, 3)
    before = copy.deepcopy(bank)
    kinds = {"integer": torch.zeros(2, 3, dtype=torch.int64), "meta": torch.zeros(2, 3, device="meta"), None: None}
    by_name = {part: torch.zeros(kind) if isinstance(kind, tuple) else kinds[kind] for part, kind in named.items()}
    with pytest.raises(error, match=f"FactoredBank: .*{sentence}"):
        bank.enqueue(*[torch.ones(2, 3)] * given, **by_name)
    for (name, old), new in zip(before.named_buffers(), bank.buffers(), strict=True):
        assert torch.equal(old, new), name


@pytest.mark.parametrize("parts", [("hand",), ("hand", "hand"), ("sum", "hand"), ("items", "hand"), ("a.b", "hand")])
def test_parts_that_cannot_be_names_are_refused(parts):
    with pytest.raises(
        ValueError, match="FactoredBank: parts must be two or more different names that are no attribute"
    ):
        FactoredBank(5, 3, parts)
