"""The 3D ResNet with bottlenecks of Hara et al., under the names of their published Kinetics checkpoints."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from slrfast import checks
from slrfast.errors import CheckpointError, one_line

KINETICS_MEAN = (0.4345, 0.4051, 0.3775)
"""Of the red, green and blue of Kinetics, in [0, 1], by which the published checkpoints were trained."""
KINETICS_STD = (0.2768, 0.2713, 0.2737)
"""Their standard deviations."""

_WRAPPERS = ("state_dict", "model", "model_state_dict")


class Bottleneck(nn.Module):
    """1x1x1, 3x3x3 (with the stride) and 1x1x1 convolutions beside a shortcut, which is mapped where shapes differ."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv3d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = nn.Conv3d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(outputs)
        self.downsample = (
            nn.Sequential(nn.Conv3d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm3d(outputs))
            if stride != 1 or inputs != outputs
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, T, H, W] -> [B, 4 width, T', H', W']."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class R3D(nn.Module):
    """RGB clips to one vector each: the 3D ResNet of Hara et al. (R3D-50 by default), without its classifier.

    A 7x7x7 convolution with stride (1, 2, 2), a max pool with stride 2, four stages of bottlenecks (shortcut B, stride
    2 in space and time from the second on), mean over space and time. 46.2 M parameters (46.1 M of convolutions) and
    159.4 GFLOP for a clip of 32 frames of 224 x 224, of which the first convolution takes 52.9 and the stages 43.6,
    32.9, 23.6 and 6.4. Parameters have the names of the authors' checkpoints, see :func:`load_r3d`.

    Pixels are normalised here, by constants that are not trained and not saved: (x - mean) / std in [0, 1], by
    default those of Kinetics, as the checkpoints want it.

    Args:
        layers: bottlenecks of the four stages; (3, 4, 6, 3) is R3D-50, (3, 4, 23, 3) R3D-101.
        width: channels of the first stage's 3x3x3 convolutions, doubled in every next one.
        mean: of red, green and blue, in [0, 1].
        std: of red, green and blue.
    Attributes:
        dim: size of the vectors, 32 width.

    ``model.to(memory_format=torch.channels_last_3d)`` lets every convolution run with its channels innermost; input
    is then brought into that form too.

    >>> model = R3D((1, 1, 1, 1), width=4).eval()
    >>> model(torch.zeros(2, 3, 8, 32, 32, dtype=torch.uint8)).shape
    torch.Size([2, 128])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        layers: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        *,
        mean: Sequence[float] = KINETICS_MEAN,
        std: Sequence[float] = KINETICS_STD,
    ) -> None:
        super().__init__()
        op = "R3D"
        checks.require(len(layers) == 4, op, "layers", "be the blocks of four stages", tuple(layers))
        for blocks in layers:
            checks.integer_between(op, 1, 1000, layers=blocks)
        checks.integer_between(op, 1, 2**16, width=width)
        for name, numbers in (("mean", mean), ("std", std)):
            checks.require(len(numbers) == 3, op, name, "have three numbers, of red, green and blue", tuple(numbers))
        checks.positive(op, **{f"std[{c}]": value for c, value in enumerate(std)})
        self.layers, self.width = tuple(layers), width
        self.dim = 8 * width * Bottleneck.expansion
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)
        self.conv1 = nn.Conv3d(3, width, 7, (1, 2, 2), 3, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.maxpool = nn.MaxPool3d(3, 2, 1)
        stages, inputs = [], width
        for stage, blocks in enumerate(layers):
            planes = width << stage
            strides = [1 if stage == 0 else 2, *[1] * (blocks - 1)]
            rows = []
            for stride in strides:
                rows.append(Bottleneck(inputs, planes, stride))
                inputs = planes * Bottleneck.expansion
            stages.append(nn.Sequential(*rows))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, rgb: Tensor) -> Tensor:
        """The vector of every clip.

        Args:
            rgb: [B, 3, T, H, W], uint8 in 0..255 or floating in 0..1, any T, H and W >= 1. Gradient flows to the
                parameters, and to ``rgb`` where it is floating.
        Returns:
            [B, dim], in the dtype that autocast gives to convolutions, or the parameters' own.
        Raises:
            ValueError: another shape, or nothing to see. TypeError: pixels of another dtype.
        """
        return self.features(rgb).flatten(2).mean(2)

    def features(self, rgb: Tensor) -> Tensor:
        """The map before the mean over space and time, [B, dim, ceil(T / 16), ceil(H / 32), ceil(W / 32)]."""
        x = self.normalize(rgb)
        if self.conv1.weight.is_contiguous(memory_format=torch.channels_last_3d):
            x = x.contiguous(memory_format=torch.channels_last_3d)
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return x

    def normalize(self, rgb: Tensor) -> Tensor:
        """Pixels as the network wants them, (x - mean) / std; uint8 in the dtype of its parameters."""
        op = "R3D"
        checks.shapes(op, rgb=(rgb, "B 3 T H W"))
        checks.require(min(rgb.shape[2:]) > 0, op, "rgb", "have frames with pixels", list(rgb.shape))
        mean, std = self.mean.view(3, 1, 1, 1), self.std.view(3, 1, 1, 1)
        if rgb.dtype == torch.uint8:
            return torch.addcmul(-mean / std, rgb.to(mean.dtype), (255 * std).reciprocal())
        checks.floating(op, rgb=rgb)
        return (rgb - mean.to(rgb.dtype)) / std.to(rgb.dtype)


def r3d_state(state: Mapping[str, object], model: R3D) -> dict[str, Tensor]:
    """The state of an :class:`R3D` from a published checkpoint of the 3D ResNets of Hara et al.

    Args:
        state: names and tensors, or what their training writes, where these are under "state_dict". The "module." of
            DataParallel is taken off, the classifier ``fc`` left out.
        model: what it is for.
    Returns:
        Tensors for ``model.load_state_dict``; they share memory with ``state``.
    Raises:
        ValueError: a tensor is missing, has another shape, or has no place in ``model``.

    >>> model = R3D((1, 1, 1, 1), width=4)
    >>> published = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    >>> model.load_state_dict(r3d_state({"arch": "resnet-14", "state_dict": published}, model))
    <All keys matched successfully>
    """
    op = "r3d_state"
    if not isinstance(state, Mapping):
        raise TypeError(checks.message(op, "state", "be a mapping of names to tensors", type(state).__name__))
    for wrapper in _WRAPPERS:
        inner = state.get(wrapper)
        if isinstance(inner, Mapping):
            state = inner
            break
    given = {str(name).removeprefix("module."): tensor for name, tensor in state.items()}
    found = {name: x for name, x in given.items() if isinstance(x, Tensor) and not name.startswith("fc.")}
    wanted = model.state_dict()
    shape = f"R3D(layers={model.layers}, width={model.width})"
    for name, tensor in wanted.items():
        if name not in found:
            if name.endswith("num_batches_tracked"):  # torch before 0.4.1 had none
                found[name] = tensor
                continue
            raise ValueError(checks.message(op, "state", f"have {name} of {shape}", _names(found), _hint(found)))
        have = found[name]
        if have.shape != tensor.shape:
            rule = f"have shape {list(tensor.shape)} in {shape}"
            raise ValueError(checks.message(op, name, rule, list(have.shape), _hint(found)))
    extra = [name for name in found if name not in wanted]
    if extra:
        raise ValueError(checks.message(op, "state", f"be of {shape}", f"also {_names(extra)}", _hint(found)))
    return found


def load_r3d(model: R3D, path: str | os.PathLike) -> R3D:
    """Read a published checkpoint into a model: ``.safetensors``, or what ``torch.save`` wrote, of which only tensors
    and plain numbers, texts and containers are read: no code in the file is run.

    Args:
        model: is left as it was unless everything fits.
        path: such as "r3d50_K_200ep.pth" of kenshohara/3D-ResNets-PyTorch.
    Returns:
        The model.
    Raises:
        CheckpointError: the file cannot be read, or is of another network; the message says what does not fit.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "it holds more than tensors, numbers and texts, which is not run; save its state_dict alone"
        raise CheckpointError(one_line(f"{path}: is not read: {reason} ({str(error).splitlines()[0]})")) from error
    except (OSError, EOFError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise CheckpointError(one_line(f"{path}: cannot be read as a checkpoint ({lines[0]})")) from error
    try:
        model.load_state_dict(r3d_state(state, model))
    except (TypeError, ValueError) as error:
        raise CheckpointError(one_line(f"{path}: {error}")) from error
    return model


def _names(names: Mapping[str, object] | Sequence[str]) -> str:
    some = list(names)
    return ", ".join(some[:3]) + (f" and {len(some) - 3} more" if len(some) > 3 else "") if some else "no tensor"


def _hint(found: Mapping[str, Tensor]) -> str:
    """What kind of network the tensors are of, if it can be told."""
    if any(name.startswith(("conv1_s", "conv1_t")) for name in found):
        return "it is an R(2+1)D, whose convolutions are factored"
    if any(name.startswith("stem.") for name in found):
        return "it is a network of torchvision, with other names"
    stem = found.get("conv1.weight")
    if stem is None:
        return ""
    if stem.dim() == 4:
        return "it is a 2D ResNet"
    if "layer1.0.conv3.weight" not in found:
        return "it is a 3D ResNet of basic blocks (10, 18 or 34 layers), without bottlenecks"
    if "layer1.0.downsample.0.weight" not in found:
        return "it has no mapped shortcuts (shortcut A)"
    layers = tuple(len({name.split(".")[1] for name in found if name.startswith(f"layer{i}.")}) for i in (1, 2, 3, 4))
    return f"it is of R3D(layers={layers}, width={len(stem)})"
