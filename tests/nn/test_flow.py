import json
import math

import pytest
import torch

from slrfast.errors import CheckpointError
from slrfast.nn.flow import ActNorm, AffineCoupling, Flow, FlowConfig, IdentityFlow, InvertibleMap

SMALL = FlowConfig(levels=2, steps=2, hidden=6)


def stirred(config=SMALL, dtype=torch.float32, seed=0):
    """A flow whose every parameter has been moved, as by training; the last convolutions are not zero."""
    torch.manual_seed(seed)
    flow = Flow(config)
    with torch.no_grad():
        for name, parameter in flow.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.02 if "weight" in name else 0.2))
    return flow.to(dtype)


def frames(n=3, height=8, width=12, dtype=torch.float32):
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("config", [SMALL, FlowConfig(1, 1, 4), FlowConfig(3, 3, 8)], ids=str)
def test_the_way_back_is_exact(config):
    flow, x = stirred(config), frames(4, 16, 24)
    latents, _ = flow(x)
    size = 2**config.levels
    assert latents.shape == (4, 3 * size * size, 16 // size, 24 // size) and flow.multiple == size
    assert (flow.inverse(latents) - x).abs().max() < 1e-5
    z = torch.randn_like(latents)
    assert (flow(flow.inverse(z))[0] - z).abs().max() < 1e-4  # pixels of a drawn latent are far out of [0, 1]


def test_the_way_back_is_exact_after_training():
    flow, x = Flow(FlowConfig(2, 2, 8)), frames(8, 16, 16).square()
    flow.initialize(x)
    optimizer = torch.optim.Adam(flow.parameters(), 3e-3)
    before = flow.bits_per_dim((x * 255).byte()).mean().item()
    for _ in range(60):
        loss = flow.bits_per_dim((x * 255).byte()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < before - 0.3
    assert (flow.inverse(flow(x)[0]) - x).abs().max() < 1e-5


@pytest.mark.parametrize("config", [FlowConfig(1, 2, 4), FlowConfig(2, 1, 4)], ids=str)
def test_log_determinant_is_that_of_the_jacobian(config):
    flow, x = stirred(config, torch.float64), frames(2, 4, 4, torch.float64)
    _, log_det = flow(x)
    for frame, expected in zip(x, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda f: flow(f[None])[0].flatten(), frame)
        assert torch.linalg.slogdet(jacobian.reshape(48, 48))[1].item() == pytest.approx(expected.item(), abs=1e-9)
    assert log_det[0] != log_det[1]  # couplings look at the frame


@pytest.mark.parametrize("part", [ActNorm(6), InvertibleMap(6), AffineCoupling(6, 5)], ids=lambda p: type(p).__name__)
def test_every_part_has_its_determinant_and_inverse(part):
    part = part.double()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(1, 6, 2, 3, dtype=torch.float64)
    y, log_det = part(x)
    assert (part.inverse(y) - x).abs().max() < 1e-10
    jacobian = torch.autograd.functional.jacobian(lambda x: part(x)[0], x).reshape(36, 36)
    assert torch.linalg.slogdet(jacobian)[1].item() == pytest.approx(float(log_det.detach().sum()), abs=1e-9)


def test_initialize_makes_every_actnorm_give_normal_channels():
    flow, x = stirred(), frames(16, 16, 16) * 0.1 + 0.7
    flow.initialize(x)
    seen, norms = [], [module for module in flow.modules() if isinstance(module, ActNorm)]
    for norm in norms:
        norm.register_forward_hook(lambda _, __, out: seen.append(out[0]))
    flow(x)
    assert len(seen) == len(norms) == 4
    for y in seen:
        std, mean = torch.std_mean(y, (0, 2, 3), correction=0)
        assert mean.abs().max() < 1e-3 and (std - 1).abs().max() < 0.05


def test_a_new_flow_is_a_rotation():
    flow, x = Flow(SMALL), frames()
    latents, log_det = flow(x)
    assert log_det.abs().max() < 1e-2
    norms = [(t - 0.5).flatten(1).norm(dim=1) for t in (x, latents + 0.5)]
    torch.testing.assert_close(norms[0], norms[1])


def test_bits_per_dim_of_a_density_that_is_known():
    """One step that only scales: N(0, s^2) about 1/2 in the unit of pixels."""
    flow = Flow(FlowConfig(1, 1, 2))
    s = 0.2
    with torch.no_grad():
        norm, rotation, _ = flow.steps[0]
        norm.log_scale.fill_(-math.log(s))
        rotation.weight.copy_(torch.eye(12))
    x = (frames(2, 4, 4) * 255).byte()
    density = torch.distributions.Normal(0.5, s)
    truth = -density.log_prob((x.double() + 0.5) / 256).flatten(1).mean(1) / math.log(2) + 8
    torch.testing.assert_close(flow.bits_per_dim(x).double(), truth, rtol=1e-5, atol=1e-5)
    noisy = [flow.bits_per_dim(x, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*noisy) and not torch.equal(noisy[0], flow.bits_per_dim(x))


def test_autocast_is_kept_out():
    flow, x = stirred(), frames()
    expected, _ = flow(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        latents, log_det = flow(x.bfloat16().float())
        again = flow.inverse(latents)
    assert latents.dtype == log_det.dtype == again.dtype == torch.float32
    assert (again - x.bfloat16().float()).abs().max() < 1e-5
    assert flow(x.half())[0].dtype == torch.float32 and expected.dtype == torch.float32


def test_identity_flow():
    flow, x = IdentityFlow(), frames()
    latents, log_det = flow(x)
    assert torch.equal(flow.inverse(latents), x) and torch.equal(log_det, torch.zeros(3)) and flow.multiple == 1
    assert flow.fingerprint() == IdentityFlow().fingerprint() != stirred().fingerprint()


# ---- fingerprint and files ------------------------------------------------------------------------------------------


def test_fingerprint_tells_weights_and_settings_apart():
    flow = stirred()
    same = Flow(SMALL)
    same.load_state_dict(flow.state_dict())
    assert flow.fingerprint() == same.fingerprint() == same.requires_grad_(False).fingerprint()
    assert len({flow.fingerprint(), stirred(seed=1).fingerprint(), stirred(FlowConfig(2, 2, 8)).fingerprint()}) == 3
    with torch.no_grad():
        same.steps[0][0].bias[0] += 1e-6
    assert flow.fingerprint() != same.fingerprint()


def test_saved_and_loaded(tmp_path):
    flow = stirred()
    flow.save_pretrained(tmp_path / "flow")
    again = Flow.from_pretrained(tmp_path / "flow")
    assert again.config == SMALL and again.fingerprint() == flow.fingerprint()
    assert torch.equal(again(frames())[0], flow(frames())[0])
    assert sorted(path.name for path in (tmp_path / "flow").iterdir()) == ["config.json", "model.safetensors"]


def damage(folder, what):
    config, tensors = folder / "config.json", folder / "model.safetensors"
    fields = json.loads(config.read_text())
    if what == "no config":
        config.unlink()
    elif what == "no tensors":
        tensors.unlink()
    elif what == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:-10])
    elif what == "no JSON":
        config.write_text("{")
    elif what == "deep JSON":
        config.write_text("[" * 100000)
    else:
        config.write_text(json.dumps(what if isinstance(what, list) else {**fields, **what}))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        *((what, "cannot be read as a saved Flow") for what in ("no config", "no tensors", "truncated", "no JSON")),
        ("deep JSON", "cannot be read as a saved Flow"),
        ([], "does not describe a Flow"),
        ({"flow": "STC"}, "does not describe a Flow"),
        ({"hidden": 7}, "does not fit this version of Flow"),
        ({"levels": "two"}, "does not fit this version of Flow"),
        ({"steps": 10**9}, "does not fit this version of Flow"),
        ({"other": 1}, "does not fit this version of Flow"),
    ],
    ids=str,
)
def test_damaged_folders(tmp_path, what, words):
    stirred().save_pretrained(tmp_path / "flow")
    damage(tmp_path / "flow", what)
    with pytest.raises(CheckpointError) as raised:
        Flow.from_pretrained(tmp_path / "flow")
    assert words in str(raised.value) and "\n" not in str(raised.value)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "flow").write_text("a file")
    with pytest.raises(CheckpointError, match="flow: cannot be created"):
        stirred().save_pretrained(tmp_path / "flow")


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda f: f(torch.rand(1, 3, 8, 10)), ValueError, "height and width that are multiples of 4, got 8 x 10"),
        (lambda f: f(torch.rand(3, 8, 8)), ValueError, "Flow: frames must have shape [N, 3, H, W], got [3, 8, 8]"),
        (lambda f: f(torch.zeros(1, 3, 8, 8).byte()), TypeError, "frames must be float64, float32, bfloat16 or"),
        (
            lambda f: f(torch.zeros(0, 3, 8, 8)),
            ValueError,
            "frames must have at least one frame with pixels, got [0, 3",
        ),
        (lambda f: f.inverse(torch.rand(1, 12, 4, 4)), ValueError, "latents must have shape [N, 48, h, w]"),
        (lambda f: f.bits_per_dim(torch.rand(1, 3, 8, 8)), TypeError, "frames must be torch.uint8"),
        (lambda f: FlowConfig(levels=0), ValueError, "FlowConfig: levels must be in [1, 4], got 0"),
        (lambda f: FlowConfig(hidden=2.5), TypeError, "FlowConfig: hidden must be an integer, got float"),
    ],
)
def test_errors(call, error, words):
    with pytest.raises(error) as raised:
        call(stirred())
    assert words in str(raised.value)


def rounded_convolutions():
    """Whether convolutions on a GPU may round their inputs to TensorFloat-32."""
    cudnn = torch.backends.cudnn
    return cudnn.conv.fp32_precision != "ieee" if hasattr(cudnn, "conv") else cudnn.allow_tf32


def test_convolutions_are_not_rounded_to_tensorfloat(monkeypatch):
    flow, x = stirred(), frames()
    seen, convolve = [], torch.nn.functional.conv2d

    def conv2d(*arguments, **options):
        seen.append(rounded_convolutions())
        return convolve(*arguments, **options)

    monkeypatch.setattr("torch.nn.functional.conv2d", conv2d)
    assert rounded_convolutions()  # torch's default
    flow.initialize(x)
    flow.inverse(flow(x)[0])
    assert len(seen) >= 12 and not any(seen)
    with pytest.raises(ValueError, match="multiples of 4"):
        flow(x[..., :3])
    assert rounded_convolutions() and torch.backends.cudnn.allow_tf32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_way_back_is_exact_on_a_gpu():
    flow, x = stirred(FlowConfig()).cuda(), frames(4, 64, 64).cuda()
    assert (flow.inverse(flow(x)[0]) - x).abs().max() < 1e-5
