"""Continuous recognition: what the head computes, what it learns from, what it refuses."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from slrfast.data import PoseBatch
from slrfast.nn import Packing
from slrfast.systems import MASA, SLP, STC
from slrfast.systems.masa_config import MASAConfig
from slrfast.systems.slp_config import SLPConfig
from slrfast.systems.stc_config import STCConfig
from slrfast.tasks.continuous import ContinuousConfig, ContinuousRecognizer, TemporalConvolution, greedy, steps_needed

GLOSSES = ["A", "B", "C"]
ENCODERS = {"masa": lambda: MASA(MASAConfig.small(bank_size=16)), "slp": lambda: SLP(SLPConfig.small())}


class Flat(nn.Module):
    """Frames as they are, through one matrix."""

    keypoints, frame_dim = 49, 12

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(98, self.frame_dim)

    def frame_features(self, batch):
        return self.map(batch.xy.flatten(1)), Packing.of(batch.offsets)


def glossed(lengths, tokens, keypoints=49, seed=0):
    """Clips of noise of these lengths that carry these tokens."""
    generator = torch.Generator().manual_seed(seed)
    frames, size = sum(lengths), len(lengths)
    counts = torch.tensor([len(each) for each in tokens])
    padded = torch.zeros(size, max(1, int(counts.max())), dtype=torch.int64)
    for row, each in zip(padded, tokens, strict=True):
        row[: len(each)] = torch.tensor(each, dtype=torch.int64)
    return PoseBatch(
        torch.rand(frames, keypoints, 2, generator=generator),
        torch.ones(frames, keypoints),
        torch.tensor([0, *itertools.accumulate(lengths)]),
        torch.full((size,), -1),
        torch.arange(size),
        tokens=padded,
        token_lengths=counts,
    )


def recognizer(encoder=None, **changes):
    torch.manual_seed(0)
    small = ContinuousConfig.small(channels=16, units=8, **changes)
    return ContinuousRecognizer(small, encoder or Flat(), GLOSSES)


# ---- the head -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ENCODERS, "flat"])
def test_padding_never_leaks(name):
    """A clip alone and among others has the same logits, and padding is zero."""
    encoder = Flat() if name == "flat" else ENCODERS[name]()
    model = recognizer(encoder).eval()
    lengths = [9, 30, 1, 17, 4]
    batch = glossed(lengths, [[1]] * 5, encoder.keypoints)
    logits, steps = model(batch)
    assert steps.tolist() == [3, 8, 1, 5, 1] and logits.shape == (5, 8, 4) and logits.dtype == torch.float32
    for i, (start, length) in enumerate(zip(batch.offsets, lengths, strict=False)):
        rows = slice(int(start), int(start) + length)
        alone = PoseBatch(
            batch.xy[rows], batch.confidence[rows], torch.tensor([0, length]), batch.label[:1], batch.index[:1]
        )
        single, count = model(alone)
        assert count.item() == steps[i]
        torch.testing.assert_close(single[0], logits[i, : steps[i]], rtol=1e-4, atol=1e-5)
        assert not logits[i, steps[i] :].any()


def test_normalisation_counts_frames_of_clips_only():
    """Longer padding, made by a longer clip of the same values, changes no statistics but by its own frames."""
    head = TemporalConvolution(3, 5)
    x = torch.randn(7, 3)
    head(x, Packing.of(torch.tensor([0, 7])))
    conv = F.conv1d(x.T[None], head.convs[0].weight, head.convs[0].bias, padding=2)[0]
    torch.testing.assert_close(head.norms[0].running_mean, 0.1 * conv.mean(1))
    ragged = TemporalConvolution(3, 5)
    ragged.load_state_dict({k: v for k, v in head.state_dict().items()})
    for norm in ragged.norms:
        norm.reset_running_stats()
    ragged(torch.cat((x, x[:1])), Packing.of(torch.tensor([0, 7, 8])))
    alone = F.conv1d(x[:1].T[None], head.convs[0].weight, head.convs[0].bias, padding=2)[0]
    torch.testing.assert_close(ragged.norms[0].running_mean, 0.1 * torch.cat((conv, alone), 1).mean(1))


def test_a_single_frame_in_training():
    loss = recognizer().train().training_step(glossed([1], [[2]]))["loss"]
    assert loss.isfinite()


@pytest.mark.parametrize("length", range(1, 10))
def test_steps(length):
    assert recognizer().eval()(glossed([length], [[1]]))[1].item() == -(-length // 4)


# ---- training -------------------------------------------------------------------------------------------------------


def test_the_loss_is_ctc_averaged_over_clips():
    model = recognizer().eval()
    batch = glossed([40, 24, 32], [[1, 1, 2], [3], []])
    terms = model.training_step(batch)
    logits, steps = model(batch)
    each = [
        F.ctc_loss(
            logits[i, : steps[i]].log_softmax(1)[:, None],
            batch.tokens[i : i + 1, : batch.token_lengths[i]],
            steps[i : i + 1],
            batch.token_lengths[i : i + 1],
            reduction="sum",
        )
        for i in range(3)
    ]
    torch.testing.assert_close(terms["loss"], torch.stack(each).mean())
    assert terms["alignable"] == 1


def test_clips_too_short_for_their_glosses_teach_nothing_and_are_counted():
    model = recognizer().eval()
    batch = glossed([8, 8, 40], [[1, 2, 3], [2, 2], [1]])
    terms = model.training_step(batch)
    only = model.training_step(glossed([8, 8, 40], [[1, 2, 3], [2, 2], [1]]))["loss"]
    assert terms["alignable"].item() == pytest.approx(1 / 3) and terms["loss"].isfinite() and only == terms["loss"]
    terms["loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    short = model.training_step(glossed([8, 8], [[1, 2, 3], [2, 2]]))
    assert short["loss"] == 0 and short["alignable"] == 0


def test_steps_that_labellings_need():
    tokens = torch.tensor([[1, 1, 2, 2], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    assert steps_needed(tokens, torch.tensor([4, 2, 1, 0])).tolist() == [6, 3, 1, 0]
    assert steps_needed(tokens[:, :0], torch.zeros(4, dtype=torch.int64)).tolist() == [0] * 4


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_and_head_learn_a_batch(name):
    torch.manual_seed(0)
    model = recognizer(ENCODERS[name](), learning_rate=5e-3).train()
    batch = glossed([30, 40, 24], [[1, 2], [3, 1, 3], [2]], model.encoder.keypoints)
    optimizer = model.optimizer()
    losses = []
    for _ in range(15):
        loss = model.training_step(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert any(p.grad is not None and bool(p.grad.any()) for p in model.encoder.parameters())


def test_papers_values():
    config = ContinuousConfig.slp()
    assert (config.learning_rate, config.weight_decay, config.batch_size, config.epochs) == (1e-4, 1e-5, 8, 40)
    model = recognizer(learning_rate=1e-4)
    assert [round(model.learning_rate(epoch) * 1e6, 6) for epoch in (0, 19, 20, 29, 30)] == [100, 100, 10, 10, 1]


def test_a_frozen_encoder_stays():
    model = recognizer(encoder_rate=0.0).train()
    model.training_step(glossed([30], [[1]]))["loss"].backward()
    assert all(p.grad is None for p in model.encoder.parameters()) and model.classifier.weight.grad.any()


# ---- decoding -------------------------------------------------------------------------------------------------------


def sure(model, rows):
    """Make the recognizer see these classes, one a step."""
    logits = torch.full((len(rows), max(map(len, rows)), len(GLOSSES) + 1), -9.0)
    for i, row in enumerate(rows):
        for t, token in enumerate(row):
            logits[i, t, token] = 0.0
    steps = torch.tensor([len(row) for row in rows])
    model.forward = lambda batch: (logits, steps)


def test_decode_gives_glosses_of_every_clip():
    model = recognizer().train()
    sure(model, [[1, 1, 0, 1, 3], [0, 0], [2]])
    for beam in (None, 0, 1, 10, 1000):
        assert model.decode(glossed([1], [[1]]), beam) == [["A", "A", "C"], [], ["B"]]
    assert model.training


def test_beam_search_beats_greedy_where_alignments_add_up():
    model = recognizer()
    probabilities = torch.tensor([[[0.6, 0.4, 1e-9, 1e-9], [0.6, 0.4, 1e-9, 1e-9]]])
    model.forward = lambda batch: (probabilities.log(), torch.tensor([2]))
    batch = glossed([8], [[1]])
    assert model.decode(batch, 0) == [[]] and model.decode(batch, 5) == [["A"]]


def test_greedy_equals_loops():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(20, 11, 3, generator=generator)
    steps = torch.randint(0, 12, (20,), generator=generator)
    tokens, counts = greedy(scores, steps)
    for row, count, frames, length in zip(tokens, counts, scores, steps, strict=True):
        path = frames[:length].argmax(1).tolist()
        wanted = [token for token, _ in itertools.groupby(path) if token]
        assert row[:count].tolist() == wanted and (row[count:] == -1).all()
    assert greedy(torch.zeros(2, 0, 3), torch.zeros(2, dtype=torch.int64))[0].shape == (2, 0)


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (lambda: STC(STCConfig.small(bank_size=16, neighbors=8)), "got STC; use MASA"),
        (lambda: MASA(MASAConfig.small(bank_size=16, masking="part")), r"got MASA \(MASA: config.masking must be"),
        (lambda: nn.Linear(2, 2), "got Linear; use MASA"),
    ],
)
def test_encoders_without_features_of_frames(encoder, message):
    with pytest.raises(
        ValueError, match=f"^ContinuousRecognizer: encoder must have features of single frames, {message}"
    ):
        recognizer(encoder())


def test_the_encoder_is_left_in_its_modes():
    encoder = ENCODERS["slp"]().train()
    next(encoder.children()).eval()
    before = [module.training for module in encoder.modules()]
    recognizer(encoder)
    assert [module.training for module in encoder.modules()] == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": None, "token_lengths": None}, "batch must carry glosses as tokens, got none; use GlossedDataset"),
        ({"tokens": torch.tensor([[4]])}, r"batch.tokens must be in \[1, 3\], got 4"),
        ({"tokens": torch.tensor([[0]])}, r"batch.tokens must be in \[1, 3\], got 0"),
        ({"tokens": torch.tensor([[-1]])}, r"batch.tokens must be in \[1, 3\], got -1"),
        ({"token_lengths": torch.tensor([2])}, r"lengths must be in \[0, 1\], got 2 for clip 0"),
        ({"offsets": torch.tensor([0, 0])}, "batch must have clips, and at least one frame in each, got 0"),
    ],
)
def test_batches_that_cannot_be_used(change, message):
    with pytest.raises(ValueError, match=f"^ContinuousRecognizer: {message}"):
        recognizer().training_step(replace(glossed([8], [[1]]), **change))


@pytest.mark.parametrize(
    ("glosses", "message"), [([], "hold at least one, got 0"), (["A", "A"], "be different and not empty, got 'A'")]
)
def test_vocabularies_that_cannot_be_used(glosses, message):
    with pytest.raises(ValueError, match=f"glosses must {message}"):
        ContinuousRecognizer(ContinuousConfig.small(), Flat(), glosses)


@pytest.mark.parametrize("change", [{"channels": 0}, {"units": 0}, {"dropout": 1.0}, {"beam": 0}, {"layers": 0}])
def test_configs_that_cannot_be_used(change):
    with pytest.raises(ValueError, match=f"^ContinuousConfig: {next(iter(change))} must be in"):
        ContinuousConfig(**change)
