import io
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from slrfast.errors import CheckpointError
from slrfast.nn.r3d import KINETICS_MEAN, KINETICS_STD, R3D, load_r3d, r3d_state

TINY = {"layers": (1, 2, 1, 1), "width": 4}


def tiny(seed=0):
    torch.manual_seed(seed)
    model = R3D(**TINY)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def published(model, **extra):
    """What the authors' training writes: DataParallel's names, a classifier, and numbers beside the state."""
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    state["module.fc.weight"], state["module.fc.bias"] = torch.zeros(700, model.dim), torch.zeros(700)
    return {"epoch": 200, "arch": "resnet-50", "state_dict": state, "optimizer": {"state": {}}, **extra}


def loops(model, rgb):
    """The network layer by layer with functional calls, after the description in the paper."""
    F, state = nn.functional, {**dict(model.named_parameters()), **dict(model.named_buffers())}

    def norm(x, name):
        args = (state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *args, training=False)

    mean, std = (torch.tensor(numbers).view(1, 3, 1, 1, 1) for numbers in (KINETICS_MEAN, KINETICS_STD))
    x = (rgb.float() / 255 - mean) / std
    x = norm(F.conv3d(x, state["conv1.weight"], stride=(1, 2, 2), padding=3), "bn1").relu()
    x = F.max_pool3d(x, 3, 2, 1)
    for stage in range(4):
        for block in range(TINY["layers"][stage]):
            name, stride = f"layer{stage + 1}.{block}", 2 if stage and not block else 1
            y = norm(F.conv3d(x, state[f"{name}.conv1.weight"]), f"{name}.bn1").relu()
            y = norm(F.conv3d(y, state[f"{name}.conv2.weight"], stride=stride, padding=1), f"{name}.bn2").relu()
            y = norm(F.conv3d(y, state[f"{name}.conv3.weight"]), f"{name}.bn3")
            if not block:
                x = norm(F.conv3d(x, state[f"{name}.downsample.0.weight"], stride=stride), f"{name}.downsample.1")
            x = (x + y).relu()
    return x.mean((2, 3, 4))


@pytest.fixture(scope="module")
def counted():
    with torch.device("meta"):
        model = R3D().eval()
        rgb = torch.empty(1, 3, 32, 224, 224, dtype=torch.uint8)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            assert model(rgb).shape == (1, 2048)
    return model, counter.get_flop_counts()


def test_has_the_parameters_of_r3d_50(counted):
    model, _ = counted
    assert model.dim == 2048 and sum(p.numel() for p in model.parameters()) == 46_198_976
    convolutions = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv3d))
    assert round(convolutions / 1e6, 1) == 46.1


def test_costs_159_gflop_a_clip(counted):
    _, counts = counted
    stages = [sum(counts[f"R3D.{name}"].values()) / 1e9 for name in ("conv1", *(f"layer{i}" for i in (1, 2, 3, 4)))]
    assert [round(gflop, 1) for gflop in stages] == [52.9, 43.6, 32.9, 23.6, 6.4]
    assert round(sum(counts["Global"].values()) / 1e9, 1) == 159.4


def test_names_are_those_of_the_published_checkpoints(counted):
    names = set(counted[0].state_dict())
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    norms = {f"{norm}.{part}" for norm in ("bn1", "layer1.0.downsample.1", "layer4.2.bn3") for part in parts}
    assert {"conv1.weight", "layer1.0.conv1.weight", "layer3.5.conv2.weight", "layer2.0.downsample.0.weight"} <= names
    assert norms <= names and "layer1.1.downsample.0.weight" not in names and len(names) == 318


def test_equals_the_layers_one_by_one():
    model, rgb = tiny().eval(), torch.randint(0, 256, (2, 3, 9, 37, 32), dtype=torch.uint8)
    torch.testing.assert_close(model(rgb), loops(model, rgb), rtol=1e-4, atol=1e-5)
    assert model.features(rgb).shape == (2, 128, 1, 2, 1)


def test_pixels_are_normalised_by_fixed_numbers():
    model = tiny()
    rgb = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1, 1)
    expected = [(v / 255 - m) / s for v, m, s in zip((0, 128, 255), KINETICS_MEAN, KINETICS_STD, strict=True)]
    torch.testing.assert_close(model.normalize(rgb).flatten(), torch.tensor(expected))
    torch.testing.assert_close(model.normalize(rgb / 255), model.normalize(rgb))
    assert not {"mean", "std"} & {name.split(".")[0] for name in model.state_dict()}
    assert not any(name in ("mean", "std") for name, _ in model.named_parameters())
    other = R3D(**TINY, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    torch.testing.assert_close(other.normalize(rgb).flatten()[[0, 2]], torch.tensor([-1.0, 1.0]))


def test_channels_last_3d_changes_nothing_but_the_layout():
    model, rgb = tiny().eval(), torch.randint(0, 256, (2, 3, 8, 32, 32), dtype=torch.uint8)
    expected = model(rgb)
    expected.square().mean().backward()
    gradient = model.layer4[0].conv2.weight.grad.clone()
    model.zero_grad()
    model.to(memory_format=torch.channels_last_3d)
    assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last_3d)
    got = model(rgb)
    got.square().mean().backward()
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(model.layer4[0].conv2.weight.grad, gradient, rtol=1e-2, atol=1e-4)
    assert model.features(rgb).is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_bfloat16_under_autocast(layout):
    model, rgb = tiny().eval().to(memory_format=layout), torch.randint(0, 256, (2, 3, 8, 32, 32), dtype=torch.uint8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = model(rgb)
        got.float().sum().backward()
    assert got.dtype == torch.bfloat16 and model.conv1.weight.grad.dtype == torch.float32
    expected = model(rgb)
    assert (got.float() - expected).norm() < 0.03 * expected.norm()
    assert model.bfloat16()(rgb).dtype == torch.bfloat16


def test_gradient_flows_to_floating_pixels():
    rgb = torch.rand(1, 3, 4, 32, 32, requires_grad=True)
    tiny().eval()(rgb).sum().backward()
    assert rgb.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("rgb", "error", "words"),
    [
        (torch.zeros(3, 8, 32, 32), ValueError, "R3D: rgb must have shape [B, 3, T, H, W], got [3, 8, 32, 32]"),
        (torch.zeros(1, 4, 8, 32, 32), ValueError, "R3D: rgb must have shape [B, 3, T, H, W], got [1, 4, 8, 32, 32]"),
        (torch.zeros(1, 3, 0, 32, 32), ValueError, "rgb must have frames with pixels, got [1, 3, 0, 32, 32]"),
        (torch.zeros(1, 3, 2, 8, 8).long(), TypeError, "rgb must be float64, float32, bfloat16 or float16"),
        ("clip", TypeError, "rgb must be a torch.Tensor, got str"),
    ],
)
def test_input_errors(rgb, error, words):
    with pytest.raises(error) as raised:
        R3D(**TINY)(rgb)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layers": (1, 1)}, "layers must be the blocks of four stages"),
        ({"layers": (1, 0, 1, 1)}, "layers must be in [1, 1000], got 0"),
        ({"width": 0}, "width must be in [1, 65536], got 0"),
        ({"std": (1.0, 0.0, 1.0)}, "std[1] must be finite and > 0, got 0.0"),
        ({"mean": (1.0,)}, "mean must have three numbers"),
    ],
)
def test_setting_errors(arguments, words):
    with pytest.raises(ValueError) as raised:
        R3D(**{**TINY, **arguments})
    assert words in str(raised.value)


# ---- published checkpoints ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["pth", "legacy", "safetensors"])
def test_loads_what_the_authors_save(tmp_path, form):
    source, model = tiny(1), tiny(2)
    path = tmp_path / ("x.safetensors" if form == "safetensors" else "x.pth")
    if form == "safetensors":
        save_file(source.state_dict(), path)
    else:
        torch.save(published(source), path, _use_new_zipfile_serialization=form == "pth")
    assert load_r3d(model, path) is model
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), source.state_dict().values(), strict=True)
    )


def test_old_checkpoints_count_no_batches():
    model = tiny()
    old = {name: tensor for name, tensor in model.state_dict().items() if "num_batches" not in name}
    assert set(r3d_state(old, tiny(3))) == set(model.state_dict())


class Harmful:
    def __reduce__(self):
        return exec, ("raise SystemExit('ran')",)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    model = tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save(published(model, scheduler=Harmful()), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="x.pth: is not read: it holds more than tensors.*save its state_dict"):
        load_r3d(model, tmp_path / "x.pth")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def misfit(change):
    state = published(tiny())["state_dict"]
    change(state)
    return state


def basic(state):
    for name in [name for name in state if "conv3" in name or "bn3" in name]:
        del state[name]


def shortcut_a(state):
    for name in [name for name in state if "downsample" in name]:
        del state[name]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (R3D((1, 1, 1, 1), 4).state_dict(), "have layer2.1.conv1.weight of R3D(layers=(1, 2, 1, 1), width=4)"),
        (R3D((1, 1, 1, 1), 4).state_dict(), "it is of R3D(layers=(1, 1, 1, 1), width=4)"),
        (R3D((1, 3, 1, 1), 4).state_dict(), "also layer2.2.conv1.weight"),
        (R3D((1, 2, 1, 1), 8).state_dict(), "conv1.weight must have shape [4, 3, 7, 7, 7]"),
        (misfit(basic), "it is a 3D ResNet of basic blocks (10, 18 or 34 layers), without bottlenecks"),
        (misfit(shortcut_a), "it has no mapped shortcuts (shortcut A)"),
        ({"conv1_s.weight": torch.zeros(1)}, "it is an R(2+1)D, whose convolutions are factored"),
        ({"stem.0.weight": torch.zeros(1)}, "it is a network of torchvision, with other names"),
        ({"conv1.weight": torch.zeros(64, 3, 7, 7)}, "it is a 2D ResNet"),
        ({}, "got no tensor"),
    ],
)
def test_misfits_are_explained(tmp_path, state, words):
    with pytest.raises(ValueError) as raised:
        r3d_state(state, tiny())
    assert words in str(raised.value)
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError) as raised:
        load_r3d(tiny(), tmp_path / "x.pth")
    assert words in str(raised.value) and "x.pth" in str(raised.value) and "\n" not in str(raised.value)


def test_files_that_are_no_checkpoints(tmp_path):
    torch.save(published(tiny()), tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    archive = io.BytesIO()
    zipfile.ZipFile(archive, "w").close()
    contents = (b"", b"hello", whole[: len(whole) // 2], archive.getvalue(), b"\x80\x02]q\x00.")
    for number, content in enumerate(contents):
        for suffix in ("pth", "safetensors"):
            path = tmp_path / f"{number}.{suffix}"
            path.write_bytes(content)
            with pytest.raises(CheckpointError, match=path.name):
                load_r3d(tiny(), path)
    with pytest.raises(CheckpointError, match="missing.pth"):
        load_r3d(tiny(), tmp_path / "missing.pth")
    with pytest.raises(TypeError, match="state must be a mapping of names to tensors, got list"):
        r3d_state([], tiny())
