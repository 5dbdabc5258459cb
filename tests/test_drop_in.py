"""The page on drop-in use: every pair of code blocks runs, and computes the same."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from slrfast.nn import FactoredBank
from tests import pages

PAGE = pages.ROOT / "docs" / "drop-in.md"
SIZE, DIM = 24, 8


def read():
    """Title -> (the block before, {what is said of it: a block after})."""
    found = {}
    for title, section in pages.sections(PAGE)[1].items():
        blocks = re.findall(r"^(Before|After[^\n]*):\n\n```python\n(.*?)```", section, re.DOTALL | re.MULTILINE)
        if blocks:
            (first, before), *after = blocks
            assert first == "Before" and after and len(pages.fences(section, "python")) == len(blocks)
            found[title] = before, dict(after)
    return found


SECTIONS = read()
MOCO, STC, LIGHTLY, MOMENTUM = SECTIONS
BANKS = [(title, name) for title in (MOCO, STC, LIGHTLY) for name in SECTIONS[title][1]]
SIZES = {
    MOCO: {"dim": DIM, "K": SIZE},
    STC: {"dim": DIM, "K": SIZE, "topk": 9},
    LIGHTLY: {"memory_bank_size": (SIZE, DIM)},
}


def build(code, *args, **kwargs):
    """An instance of the one class that a block defines."""
    names = pages.run(PAGE, code)
    return names[re.search(r"^class (\w+)", code, re.MULTILINE).group(1)](*args, **kwargs)


def queues(module):
    """The banks of either style as [N, D], in the order of their definition; writing to them writes to the module."""
    found = [(name, b) for name, b in module.named_buffers() if b.dim() == 2 and not name.endswith("sum")]
    return [buffer.T if "queue" in name else buffer for name, buffer in found]


def cursors(module):
    return {buffer.item() for buffer in module.buffers() if buffer.dtype == torch.int64}


def pair(title, name):
    torch.manual_seed(0)
    before, after = SECTIONS[title]
    old, new = build(before, **SIZES[title]), build(after[name], **SIZES[title])
    for source, target in zip(queues(old), queues(new), strict=True):
        target.copy_(source)
    for module in new.modules():
        if isinstance(module, FactoredBank):
            module.refresh()
    return old, new


def batch(title, size):
    """Arguments of one step, and those of them that get a gradient."""
    if title == LIGHTLY:
        arguments = tuple(torch.randn(size, DIM, requires_grad=True) for _ in range(2))
        return arguments, arguments

    def unit():
        return F.normalize(torch.randn(size, DIM), dim=1)

    if title == MOCO:
        query = unit().requires_grad_()
        return (query, unit()), (query,)
    query, key = ({s: {p: unit() for p in ("hand", "trunk")} for s in ("joint", "motion")} for _ in range(2))
    leaves = tuple(x.requires_grad_() for parts in query.values() for x in parts.values())
    return (query, key), leaves


def step(module, arguments, leaves):
    """The loss, what else is returned, and the gradients."""
    result = module(*arguments)
    loss, *rest = result if isinstance(result, tuple) else (result,)
    return loss.detach(), rest, torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize(("title", "name"), BANKS)
def test_before_and_after_agree(title, name):
    old, new = pair(title, name)
    for _ in range(6):  # four of them fill the queue
        arguments, leaves = batch(title, 6)
        (loss, rest, gradients), (our_loss, our_rest, our_gradients) = (
            step(module, arguments, leaves) for module in (old, new)
        )
        assert loss > 0 and our_rest == rest
        torch.testing.assert_close(our_loss, loss)
        torch.testing.assert_close(our_gradients, gradients)
        assert all(gradient.any() for gradient in our_gradients)
        for theirs, ours in zip(queues(old), queues(new), strict=True):
            assert torch.equal(ours, theirs)
        assert cursors(new) == cursors(old)


@pytest.mark.parametrize("size", [7, 31])
@pytest.mark.parametrize(("title", "name"), BANKS)
def test_any_batch_size_wraps_around(title, name, size):
    _, new = pair(title, name)
    old, _ = pair(title, name)
    expected, position = [queue.clone() for queue in queues(new)], 0
    for _ in range(5):
        arguments, leaves = batch(title, size)
        for ours, theirs in zip(queues(old), expected, strict=True):
            ours.copy_(theirs)
        old.dequeue_and_enqueue = lambda keys: None  # its loss against the queue that should be
        loss, _, gradients = step(old, arguments, leaves)
        our_loss, _, our_gradients = step(new, arguments, leaves)
        torch.testing.assert_close(our_loss, loss)
        torch.testing.assert_close(our_gradients, gradients)
        _, key = arguments
        if title == LIGHTLY:
            keys = [F.normalize(key.detach(), dim=1)]
        else:
            keys = [key] if title == MOCO else [rows for parts in key.values() for rows in parts.values()]
        for row in range(size):
            for queue, rows in zip(expected, keys, strict=True):
                queue[position] = rows[row]
            position = (position + 1) % SIZE
        for ours, theirs in zip(queues(new), expected, strict=True):
            assert torch.equal(ours, theirs)
        assert cursors(new) == {position}


@pytest.mark.parametrize(("title", "name"), BANKS)
def test_the_code_after_is_one_graph(title, name):
    eager, compiled = (pair(title, name)[1] for _ in range(2))
    program = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        arguments, leaves = batch(title, 7)
        for a, b in zip(step(eager, arguments, leaves)[::2], step(program, arguments, leaves)[::2], strict=True):
            torch.testing.assert_close(a, b)
    for a, b in zip(queues(eager), queues(compiled), strict=True):
        assert torch.equal(a, b)


def test_a_queue_of_moco_goes_on_as_it_is():
    before, after = SECTIONS[MOCO]
    old, new = build(before, **SIZES[MOCO]), build(after["After, with the same queue"], **SIZES[MOCO])
    new.load_state_dict(old.state_dict())
    assert new.state_dict().keys() == old.state_dict().keys()


def test_momentum_encoders_agree():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    before, after = SECTIONS[MOMENTUM]
    (after,) = after.values()
    old, new = build(before, encoder, 0.9), build(after, encoder, 0.9)
    for _ in range(3):
        encoder(torch.randn(8, 4))
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(torch.randn_like(parameter))
        old.update(encoder)
        new.update(encoder)
    for (name, theirs), ours in zip(old.state_dict().items(), new.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)
    assert not any(parameter.requires_grad for parameter in new.parameters())
