"""SLP against the paper's formulas written as loops, the specification's counts, and its switches."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.baselines.slp import padded_step
from slrfast.data import PoseBatch
from slrfast.nn import Packing, sinusoidal_positions
from slrfast.systems.slp import SLP, SLPConfig, SLPEncoder
from slrfast.systems.slp_sequences import average_windows, shorten
from tests.systems.test_slp_masks import loop_mask

NO_DROPOUT = {"gcn_dropout": 0.0, "frame_dropout": 0.0, "transformer_dropout": 0.0}
TINY = {
    "gcn_channels": (4, 4, 8, 8, 8), "dim": 8, "branch_dim": 8, "heads": 2, "layers": 1, "manual_ffn": 16,
    "non_manual_ffn": 12, "decoder_hidden": 12, "embedding": 6, "text_dim": 5, "mask_span": 3,
}  # fmt: skip


class FakeText:
    """A text encoder whose features are a table's rows."""

    def __init__(self, dim=5):
        self.dim, self.calls = dim, []
        self.table = torch.randn(100, dim, generator=seeded(7))

    def to(self, device):
        self.table = self.table.to(device)
        return self

    def __call__(self, tokens, token_lengths):
        self.calls.append((tokens, token_lengths))
        real = torch.arange(tokens.shape[1], device=tokens.device) < token_lengths[:, None]
        return self.table[tokens] * real.unsqueeze(-1)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def system(preset="paper", **changes):
    torch.manual_seed(0)
    found = SLP(getattr(SLPConfig, preset)(**(TINY | changes)))
    found.text = FakeText(found.config.text_dim)
    return found


def clips(size=4, texts=(6, 0, 3, 1), seed=0, **sizes):
    batch = PoseBatch.random(size, keypoints=79, seed=seed, **({"min_frames": 6, "max_frames": 14} | sizes))
    lengths = torch.tensor((list(texts) * size)[:size])
    tokens = torch.randint(1, 100, (size, max(1, int(lengths.max()))), generator=seeded(seed))
    tokens = tokens * (torch.arange(tokens.shape[1]) < lengths[:, None])
    return dataclasses.replace(batch, tokens=tokens, token_lengths=lengths)


def double(batch):
    return dataclasses.replace(batch, xy=batch.xy.double(), confidence=batch.confidence.double())


def count(module):
    return sum(p.numel() for p in module.parameters()) / 1e6


# ---- sizes -----------------------------------------------------------------------------------------------------------


def transformer(width, ffn, layers=8):
    """Weights and biases of qkv, output and both feed-forward layers, two norms; and the norm of the input."""
    block = 4 * width * (width + 1) + ffn * (width + 1) + width * (ffn + 1) + 4 * width
    return (layers * block + 2 * width) / 1e6


def test_parameters_of_the_specification():
    with torch.device("meta"):
        paper, narrow = SLP(SLPConfig.paper()), SLPEncoder(SLPConfig.paper(narrow=True, manual_ffn=1536))
    manual, non_manual = (paper.encoder.branches[name] for name in ("manual", "non_manual"))
    assert count(manual.transformer) == pytest.approx(transformer(1536, 2048)) == pytest.approx(125.959, abs=0.001)
    assert count(non_manual.transformer) == pytest.approx(transformer(1024, 1536)) == pytest.approx(58.808, abs=0.001)
    assert count(paper.encoder.embed.hand_gcn) == pytest.approx(2.837, abs=0.0005)
    assert [b.map.weight.shape for b in (manual, non_manual)] == [(512, 1536), (512, 1024)]
    assert [tuple(layer.weight.shape) for layer in paper.decoder[::2]] == [(1024, 1024), (158, 1024)]
    assert paper.sign_projection.weight.shape == paper.text_projection.weight.shape == (512, 1024)
    for branch in narrow.branches.values():  # reading (a): both 512 wide
        assert count(branch.transformer) == pytest.approx(transformer(512, 1536))


@pytest.mark.parametrize(("branch", "expected"), [("manual", 264e6), ("non_manual", 126e6)])
def test_operations_of_the_specification(branch, expected):
    """Of a branch's transformer per frame, in clips of 256 frames."""
    config = SLPConfig.paper()
    with torch.device("meta"):
        transformer = SLPEncoder(config).branches[branch].transformer.eval()
        frames = torch.empty(1, 256, config.width(branch))
    with FlopCounterMode(display=False) as counter:
        transformer(frames)
    assert counter.get_total_flops() / 256 == pytest.approx(expected, rel=0.005)


def test_small_is_small():
    assert count(SLP(SLPConfig.small())) < 0.5


# ---- the paper -------------------------------------------------------------------------------------------------------


def loop_step(model, batch, keys):
    """Eq. 1-6 clip by clip; keys are those of the masks."""
    config = model.config
    sign, text, distance, masked = [], [], 0.0, 0
    for b in range(batch.size):
        rows = slice(int(batch.offsets[b]), int(batch.offsets[b + 1]))
        xy, confidence = batch.xy[rows], batch.confidence[rows]
        length = len(xy)
        mask = torch.tensor(loop_mask(keys[b], length, config.mask_ratio, config.mask_levels, config.mask_span)[0])
        manual, non_manual = model.encoder.embed(torch.where(mask[..., None], 0.0, xy))
        parts = []
        for name, vectors in (("manual", manual), ("non_manual", non_manual)):
            branch = model.encoder.branches[name]
            vectors = branch.map(vectors) if config.narrow else vectors
            places = sinusoidal_positions(length, vectors.shape[1], dtype=xy.dtype)
            encoded = branch.transformer((vectors + places)[None])[0]  # Eq. 1
            parts.append(encoded if config.narrow else branch.map(encoded))
        features = torch.cat(parts, -1)
        rebuilt = model.decoder(features).view(length, 79, 2)
        for t in range(length):
            for v in range(79):
                if mask[t, v]:  # Eq. 3
                    distance = distance + confidence[t, v] * (rebuilt[t, v] - xy[t, v]).square().sum()
                    masked += 1
        if batch.token_lengths[b] == 0:
            continue
        words = model.text.table[batch.tokens[b, : batch.token_lengths[b]]].to(xy)  # Eq. 2
        if config.similarity == "coarse":
            sign.append(model.sign_projection(features.mean(0))[None])
            text.append(model.text_projection(words.mean(0))[None])
            continue
        pooled = [features[t : t + config.window].mean(0) for t in range(0, length, config.window)]
        sign.append(torch.stack([model.sign_projection(window) for window in pooled]))  # Eq. 4
        text.append(torch.stack([model.text_projection(word) for word in words]))
    pairs = len(sign)
    similarity = torch.zeros(pairs, pairs, dtype=batch.xy.dtype)
    for i in range(pairs):
        for j in range(pairs):
            for a in sign[i]:
                z = [torch.dot(a / a.norm(), b / b.norm()) for b in text[j]]
                whole = sum(torch.exp(value / config.row_temperature) for value in z)
                for value in z:
                    similarity[i, j] += torch.exp(value / config.row_temperature) / whole * value / len(sign[i])
    contrast = 0.0
    for i in range(pairs):  # Eq. 5
        scaled = (similarity * model.log_scale.exp()).exp()
        contrast -= torch.log(scaled[i, i] / scaled[i].sum()) / (2 * pairs)
        contrast -= torch.log(scaled[i, i] / scaled[:, i].sum()) / (2 * pairs)
    reconstruction = distance / masked
    return reconstruction + config.contrast_weight * contrast, reconstruction, contrast


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"similarity": "coarse", "narrow": True},
        {"window": 1, "row_temperature": 0.1, "contrast_weight": 0.3, "mask_ratio": 0.8},
    ],
    ids=["fine", "coarse", "changed"],
)
def test_training_step_is_the_paper_written_as_loops(changes):
    model, batch = system(**changes).double().eval(), double(clips(6))
    keys = torch.rand((6, int(batch.lengths.max()), 81), generator=seeded())
    with torch.no_grad():
        expected = loop_step(model, batch, keys)
    losses = model.training_step(batch, seeded())
    for name, value in zip(("loss", "reconstruction", "contrast"), expected, strict=True):
        torch.testing.assert_close(losses[name].detach(), value, rtol=1e-9, atol=1e-12, msg=name)
    assert losses["contrast"] > 0.01 and losses["reconstruction"] > 0.01
    assert float(losses["temperature"]) == pytest.approx(0.07)
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("changes", [{}, {"mask_ratio": 0.8, "window": 3}], ids=["paper", "changed"])
def test_training_step_is_that_of_padded_clips(changes):
    """The independent form under benchmarks/baselines: losses and all gradients, in evaluation mode."""
    model, batch = system(**changes).double().eval(), double(clips(5, texts=(6, 2, 3, 1, 4)))
    packing = Packing.of(batch.offsets)
    keys = torch.rand((5, packing.longest, 81), generator=seeded())
    words = model.text(batch.tokens, batch.token_lengths).double()
    padded = [packing.pad(x) for x in (batch.xy, batch.confidence)]
    results = []
    for losses in (
        model.training_step(batch, seeded()),
        padded_step(model, *padded, packing, words, batch.token_lengths, keys),
    ):
        gradients = torch.autograd.grad(losses["loss"], list(model.parameters()))
        results.append([losses["loss"], losses["reconstruction"], losses["contrast"], *gradients])
    torch.testing.assert_close(*results)


def test_masked_joints_cannot_influence_the_features():
    model, batch = system(**NO_DROPOUT).double(), double(clips())
    xy = batch.xy.clone().requires_grad_()
    frames = model._frames(dataclasses.replace(batch, xy=xy))
    mask = model._mask(frames.packing, seeded())
    (gradient,) = torch.autograd.grad(model._features(frames, mask).square().sum(), xy)
    assert 0 < int(mask.sum()) and (gradient[mask] == 0).all()
    assert (gradient[~mask].abs().amax(1) > 0).any()


def test_windows_average_what_is_there():
    model = system(window=4)
    batch = clips(3, min_frames=1, max_frames=9, seed=5)
    features, packing = model.encode_frames(batch)
    for window in (1, 2, 4, 16):
        means, windows = average_windows(features, packing, window)
        expected = [part.mean(0) for clip in features.split(packing.lengths) for part in clip.split(window)]
        torch.testing.assert_close(means, torch.stack(expected))
        assert windows.lengths == tuple(-(-n // window) for n in packing.lengths)
    rows, present = model.encode_signs(batch)
    assert rows.shape[:2] == present.shape and present.sum(1).tolist() == [-(-n // 4) for n in packing.lengths]
    torch.testing.assert_close(rows.norm(dim=-1), present.float())


def test_batches_do_not_change_a_clip():
    model, batch = system(), clips()
    alone = PoseBatch(*(getattr(batch, f)[: int(batch.offsets[1])] for f in ("xy", "confidence")),
                      batch.offsets[:2], batch.label[:1], batch.index[:1])  # fmt: skip
    features = model.encode(batch)
    assert features.shape == (4, 16) and features.dtype == torch.float32 and model.training
    torch.testing.assert_close(model.encode(alone), features[:1])
    third = model.encode_text(batch.tokens[2:3], batch.token_lengths[2:3])
    both = model.encode_text(batch.tokens[2:], batch.token_lengths[2:])
    expected = model.similarity(model.encode_signs(batch), both)
    assert expected.shape == (4, 2)
    torch.testing.assert_close(model.similarity(model.encode_signs(alone), third), expected[:1, :1])


# ---- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("texts", ["none", "empty"])
@pytest.mark.parametrize("similarity", ["fine", "coarse"])
def test_a_batch_without_texts_is_only_reconstructed(texts, similarity):
    model = system(similarity=similarity)
    model.text = None  # not needed
    batch = clips(texts=(0,))
    batch = dataclasses.replace(batch, tokens=None, token_lengths=None) if texts == "none" else batch
    losses = model.training_step(batch, seeded())
    assert losses["contrast"] == 0 and torch.equal(losses["loss"], losses["reconstruction"])
    losses["loss"].backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    for name in ("sign_projection.weight", "text_projection.weight", "log_scale"):
        assert (gradients[name] == 0).all()
    assert gradients["decoder.0.weight"].abs().sum() > 0


def test_unpaired_clips_take_part_in_the_reconstruction_alone():
    model, batch = system().double().eval(), double(clips(texts=(6, 0, 3, 1)))
    with torch.no_grad():
        before = model.training_step(batch, seeded())
        rows = slice(int(batch.offsets[1]), int(batch.offsets[2]))
        batch.xy[rows] += 0.3
        after = model.training_step(batch, seeded())
    assert torch.equal(before["contrast"], after["contrast"])
    assert not torch.equal(before["reconstruction"], after["reconstruction"])
    tokens, lengths = model.text.calls[-1]
    assert lengths.tolist() == [6, 3, 1] and torch.equal(tokens, batch.tokens[[0, 2, 3]])


def test_padding_of_texts_does_not_matter():
    model, batch = system().double().eval(), double(clips(texts=(6, 2)))
    wider = dataclasses.replace(batch, tokens=F.pad(batch.tokens, (0, 5)))
    with torch.no_grad():
        torch.testing.assert_close(model.training_step(wider, seeded()), model.training_step(batch, seeded()))


def test_texts_over_the_limit_keep_their_first_tokens_and_the_last_two():
    model = system(max_tokens=5)
    batch = clips(texts=(9, 5, 3, 6))
    model.training_step(batch, seeded())
    tokens, lengths = model.text.calls[-1]
    assert lengths.tolist() == [5, 5, 3, 5] and tokens.shape == (4, 5)
    assert tokens[0].tolist() == batch.tokens[0, [0, 1, 2, 7, 8]].tolist()
    assert tokens[3].tolist() == batch.tokens[3, [0, 1, 2, 4, 5]].tolist()
    for row in (1, 2):
        assert torch.equal(tokens[row], batch.tokens[row, :5])
    assert shorten(batch.tokens, batch.token_lengths, 9)[0] is batch.tokens


def test_clips_over_the_limit_are_thinned_evenly():
    model, batch = system(max_frames=8), clips(3, min_frames=20, max_frames=30)
    batch.xy[:] = torch.cat([torch.arange(n) for n in batch.lengths])[:, None, None]
    middle = model._frames(batch, middle=True)
    assert middle.packing.lengths == (8, 8, 8) and middle.confidence.shape == (24, 79)
    starts = set()
    for seed in range(12):
        frames = model._frames(batch, seeded(seed))
        for n, found in zip(batch.lengths.tolist(), frames.xy[:, 0, 0].view(3, 8), strict=True):
            steps = found.diff()
            assert 0 <= found[0] < n / 8 and (steps >= n // 8).all() and (steps <= n // 8 + 1).all()
            assert n - n / 8 - 1 < found[-1] < n
            starts.add(float(found[0]))
    assert len(starts) > 1
    for n, found in zip(batch.lengths.tolist(), middle.xy[:, 0, 0].view(3, 8).tolist(), strict=True):
        assert found == [(i * n + n // 2) // 8 for i in range(8)]
    model.training_step(clips(3, min_frames=20, max_frames=30), seeded())["loss"].backward()


def test_only_long_clips_are_thinned():
    model, batch = system(max_frames=10), clips(5, min_frames=6, max_frames=20)
    frames = model._frames(batch, seeded())
    for b, n in enumerate(batch.lengths.tolist()):
        if n <= 10:
            start = sum(frames.packing.lengths[:b])
            assert torch.equal(frames.xy[start : start + n], batch.xy[batch.offsets[b] : batch.offsets[b + 1]])


# ---- optimization ----------------------------------------------------------------------------------------------------


def test_learning_rate_of_the_paper():
    model = system()
    rates = [model.learning_rate(epoch) for epoch in (0, 5, 10, 55, 100, 120)]
    assert rates == pytest.approx([0, 5e-5, 1e-4, 5e-5, 0, 0])
    assert system(warmup=0.0).learning_rate(0) == 1e-4


def test_optimizer_and_temperature():
    model = system()
    optimizer = model.optimizer()
    assert isinstance(optimizer, torch.optim.AdamW)
    weights, scale = optimizer.param_groups
    assert (weights["lr"], weights["betas"], weights["weight_decay"], scale["weight_decay"]) == (
        1e-4,
        (0.9, 0.999),
        0.1,
        0,
    )
    assert scale["params"] == [model.log_scale]
    assert {id(p) for p in [*weights["params"], *scale["params"]]} == {id(p) for p in model.parameters()}
    with torch.no_grad():
        model.log_scale.fill_(9.0)
    model.update_after_step()
    assert float(model.log_scale.detach().exp()) == pytest.approx(100.0)
    model.training_step(clips(), seeded())["loss"].backward()
    assert model.log_scale.grad != 0
    assert len(system(tasks=("reconstruction",)).optimizer().param_groups) == 1


def test_saved_and_loaded_without_the_text_encoder(tmp_path):
    model = system(mask_levels=(1.0, 0.0, 2.0))
    encoder = torch.nn.Embedding(9, 5)
    encoder.dim = 5
    model.text = encoder
    assert not any("text" in n.split(".")[0] and "projection" not in n for n in model.state_dict())
    model.save_pretrained(tmp_path)
    loaded = SLP.from_pretrained(tmp_path)
    assert loaded.config == model.config and loaded.text is None
    torch.testing.assert_close(loaded.encode(clips()), model.encode(clips()))


def test_bf16_autocast_stays_close():
    model, batch = system(**NO_DROPOUT), clips(6)
    exact = model.training_step(batch, seeded())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.training_step(batch, seeded())
    rounded["loss"].backward()
    for name, value in exact.items():
        assert rounded[name].dtype == torch.float32
        torch.testing.assert_close(rounded[name], value, rtol=0.05, atol=1e-3, msg=name)


@pytest.mark.parametrize("similarity", ["fine", "coarse"])
def test_similarities_are_as_exact_under_autocast(similarity):
    model, batch = system(similarity=similarity), clips(texts=(6, 2, 3, 1))
    sign, text = model.encode_signs(batch), model.encode_text(batch.tokens, batch.token_lengths)
    expected = model.similarity(sign, text)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.similarity(sign, text)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("changes", [{"tasks": ("contrast",)}, {"mask_ratio": 1.0}], ids=["seen", "all masked"])
def test_a_step_on_a_gpu_is_that_of_the_cpu(changes):
    results = []
    for device in ("cpu", "cuda"):
        model, batch = system(**changes).eval().to(device), clips(5, max_frames=40).to(device)
        losses = model.training_step(batch)
        losses["loss"].backward()
        results.append([*losses.values(), *(p.grad for p in model.parameters())])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine.cpu(), theirs.cpu(), rtol=1e-3, atol=1e-4)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ()}, "SLPConfig: tasks must be 'reconstruction', 'contrast' or both in this order"),
        ({"branches": ("non_manual", "manual")}, "branches must be 'manual', 'non_manual' or both in this order"),
        ({"similarity": "global"}, "similarity must be one of 'fine', 'coarse', got 'global'"),
        ({"mask_ratio": 1.5}, r"mask_ratio must be in \[0, 1\], got 1.5"),
        ({"mask_levels": (0.0, 0.0, 0.0)}, "levels must be three finite weights >= 0"),
        ({"window": 0}, "window must be in"),
        ({"max_tokens": 2}, "max_tokens must be in"),
        ({"temperature": 0.001}, "temperature must be >= 0.01, got 0.001"),
        ({"dim": 9, "heads": 3}, r"dim must give a branch an even width and a multiple of 3 heads, got 27 \(manual\)"),
        ({"branch_dim": 9, "narrow": True}, "branch_dim must give a branch an even width"),
        ({"mask_levels": 1.0}, "SLPConfig: levels must be three finite weights >= 0, not all 0, got 1.0"),
        ({"mask_levels": ("a", 1, 1)}, "SLPConfig: levels must be three finite weights >= 0"),
        ({"betas": (0.9,)}, r"SLPConfig: betas must be two numbers in \[0, 1\), got \(0.9,\)"),
        ({"betas": (0.9, 1.0)}, r"SLPConfig: betas must be two numbers in \[0, 1\)"),
    ],
)
def test_settings_that_do_not_fit(changes, message):
    with pytest.raises((TypeError, ValueError), match=message):
        SLPConfig.paper(**changes)


def test_batches_that_do_not_fit():
    model, batch = system(), clips(2)
    with pytest.raises(TypeError, match="batch.xy must be torch.float32"):
        model.training_step(double(batch))
    with pytest.raises(ValueError, match="SLP: batch must have layout 79, got 75; pre-process with layout=79"):
        model.encode(PoseBatch.random(2, keypoints=75))
    empty = dataclasses.replace(batch, offsets=torch.tensor([0, 0, len(batch.xy)]))
    with pytest.raises(ValueError, match="batch must have at least one frame in every clip, got 0"):
        model.encode(empty)
    with pytest.raises(ValueError, match="token_lengths must be >= 1, got 0"):
        model.encode_text(batch.tokens, torch.tensor([2, 0]))
    with pytest.raises(ValueError, match="SLP: token_lengths must be <= 6, got 7"):
        model.encode_text(batch.tokens, torch.tensor([7, 1]))  # the first text would take words of the second
    with pytest.raises(ValueError, match="SLP: token_lengths must be <= 6, got 7"):
        model.training_step(dataclasses.replace(batch, token_lengths=torch.tensor([7, 1])), seeded())


def test_text_encoders_that_do_not_fit():
    model = system()
    with pytest.raises(ValueError, match=r"SLP: text must have dim 5 \(config.text_dim\), got 8"):
        model.text = FakeText(8)
    with pytest.raises(ValueError, match=r"SLP: text must have dim 5 .*, got object without a dim"):
        model.text = object()
    with pytest.raises(ValueError, match=r"SLP: text must have dim 5 .*, got Tensor without a dim"):
        model.text = torch.zeros(5)
    model.text = None
    hint = "set system.text = TextEncoder"
    with pytest.raises(ValueError, match=f"SLP: text must be a text encoder for a batch with texts, got None; {hint}"):
        model.training_step(clips(), seeded())
