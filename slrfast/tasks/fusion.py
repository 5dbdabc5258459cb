"""Two models are better than one: late fusion of class scores, and early fusion of features that train together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from slrfast import checks
from slrfast.data.wrapped import match, some
from slrfast.tasks.score_files import ScoreFileError, Scores

_MODES = ("sum", "concat", "adaptive")


def late_fusion(
    parts: Sequence[Scores], *, weights: Sequence[float] | None = None, of: str = "probabilities"
) -> Scores:
    """Weighted sum of several models' scores of the same clips, matched by name.

    ``s(clip) = sum over models m of weights[m] * p_m(clip)``, p the logits or their softmax. STC and MASA add their
    scores to those of a network on RGB, and do not write whether before or after the softmax; probabilities are our
    default, since the logits of different models have different scales.

    Args:
        parts: two or more. The first one's clips, in its order, are those of the result, and each other part must score
            them; names may differ in extension and folders. Classes are matched by name where two parts name them.
        weights: one per part, >= 0; None is 1 each.
        of: "probabilities" takes the softmax of every part that does not hold probabilities already (no entry below 0,
            every row sums to 1 up to 1e-3), or "logits", which sums what the files hold.
    Returns:
        Scores of the first part's clips, class names of the first part that has any. Accumulated in float64.
    Raises:
        ScoreFileError: a part lacks clips, or has other classes; with ``of="logits"``, only some are probabilities.
        ValueError: fewer than two parts, wrong weights or ``of``.

    >>> one = Scores.of(["a", "b"], torch.tensor([[0.9, 0.1], [0.6, 0.4]]))
    >>> two = Scores.of(["b.mp4", "a.mp4"], torch.tensor([[0.1, 0.9], [0.9, 0.1]]))
    >>> late_fusion([one, two], weights=[1, 2]).values.argmax(1)
    tensor([0, 1])
    """
    checks.require(len(parts) > 1, "late_fusion", "parts", "be two or more", len(parts))
    checks.choice("late_fusion", ("probabilities", "logits"), of=of)
    factors = [1.0] * len(parts) if weights is None else list(weights)
    checks.require(
        checks.are_numbers(factors, len(parts)),
        "late_fusion",
        "weights",
        f"be {len(parts)} numbers",
        repr(weights)[:80],
    )
    for weight in factors:
        checks.number_between("late_fusion", 0, float("inf"), weights=weight)
    checks.require(sum(factors) > 0, "late_fusion", "weights", "not all be 0", factors)
    first = parts[0]
    classes = next((part.class_names for part in parts if part.class_names), ())
    values = [first.values, *(_aligned(first, part) for part in parts[1:])]
    values = [_ordered(part, value, classes, first.values.shape[1]) for part, value in zip(parts, values, strict=True)]
    if of == "probabilities":
        values = [value if _are_probabilities(value) else value.softmax(1) for value in values]
    elif len({_are_probabilities(value) for value in values}) > 1:
        which = next(part.source for part, value in zip(parts, values, strict=True) if _are_probabilities(value))
        raise ScoreFileError(f"{which}: holds probabilities, others logits; fuse them with of='probabilities'")
    total = torch.stack([weight * value for weight, value in zip(factors, values, strict=True) if weight]).sum(0)
    return Scores(first.names, total, classes, "fused scores")


def _aligned(first: Scores, part: Scores) -> Tensor:
    """The part's rows in the order of the first part's clips."""
    rows = match(first.names, {name: i for i, name in enumerate(part.names)})
    lost = [name for name, row in zip(first.names, rows, strict=True) if row is None]
    if lost:
        many = f"{len(lost)} of the {len(rows)} clips of {first.source}"
        raise ScoreFileError(f"{part.source}: has no scores for {many}: {some(lost)}")
    found = [row for row in rows if row is not None]
    return part.values[found]


def _ordered(part: Scores, values: Tensor, classes: Sequence[str], count: int) -> Tensor:
    """The part's columns in the order of the classes."""
    if values.shape[1] != count:
        raise ScoreFileError(f"{part.source}: has scores of {values.shape[1]} classes, another part of {count}")
    if not part.class_names or part.class_names == tuple(classes):
        return values
    column = {name: i for i, name in enumerate(part.class_names)}
    unknown = [name for name in classes if name not in column]
    if unknown:
        raise ScoreFileError(f"{part.source}: lacks classes that another part has: {some(unknown)}")
    return values[:, [column[name] for name in classes]]


def _are_probabilities(values: Tensor) -> bool:
    return bool((values >= 0).all()) and bool(((values.sum(1) - 1).abs() < 1e-3).all())


class EarlyFusion(nn.Module):
    """One feature vector out of several models', trained together with them.

    With the vectors ``x_m [B, widths[m]]`` and ``z_m = P_m x_m``, where P_m is a learned matrix without bias if
    ``widths[m] != width`` and else the identity:

    - "sum": ``y = sum_m z_m``
    - "concat": ``y = [x_1; ...; x_M]``, of width ``sum(widths)``
    - "adaptive": ``y = sum_m a_m z_m`` with ``a = softmax over m of (v_m . z_m + c_m)``, per clip

    STC (journal version, Tab. XIV) compares summation, concatenation and adaptive average of its features and those of
    I3D, trained jointly, and gives neither widths nor the average's weights. The projections and the weights are ours;
    v and c start at zero, so the adaptive average starts as the mean.

    Args:
        widths: of the feature vectors, one per model, two or more.
        mode: "sum", "concat" or "adaptive".
        width: of y for "sum" and "adaptive"; None takes the first one's.
    Attributes:
        width: of y.
    Raises:
        ValueError, TypeError: another mode, fewer than two widths, a width below 1, ``width`` with "concat".

    >>> fusion = EarlyFusion([4, 6], "adaptive")
    >>> fusion([torch.ones(2, 4), torch.ones(2, 6)]).shape, EarlyFusion([4, 6], "concat").width
    (torch.Size([2, 4]), 10)
    """

    def __init__(self, widths: Sequence[int], mode: str = "concat", width: int | None = None) -> None:
        super().__init__()
        checks.choice("EarlyFusion", _MODES, mode=mode)
        checks.require(len(widths) > 1, "EarlyFusion", "widths", "be two or more", len(widths))
        for each in widths:
            checks.integer_between("EarlyFusion", 1, 1 << 20, widths=each)
        self.widths, self.mode = tuple(widths), mode
        if mode == "concat":
            checks.require(width is None, "EarlyFusion", "width", "be None for mode 'concat'", width)
            self.width = sum(widths)
            return
        self.width = widths[0] if width is None else width
        checks.integer_between("EarlyFusion", 1, 1 << 20, width=self.width)
        self.projections = nn.ModuleList(
            nn.Identity() if each == self.width else nn.Linear(each, self.width, bias=False) for each in widths
        )
        if mode == "adaptive":
            self.gate = nn.Parameter(torch.zeros(len(widths), self.width))
            self.offset = nn.Parameter(torch.zeros(len(widths)))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features [B, widths[m]] of every model -> [B, width]; gradient flows to all."""
        checks.require(
            len(features) == len(self.widths),
            "EarlyFusion",
            "features",
            f"be {len(self.widths)} tensors",
            len(features),
        )
        shaped = {
            f"features{m}": (x, f"B {each}") for m, (x, each) in enumerate(zip(features, self.widths, strict=True))
        }
        checks.shapes("EarlyFusion", **shaped)
        if self.mode == "concat":
            return torch.cat(list(features), 1)
        z = torch.stack([project(x) for project, x in zip(self.projections, features, strict=True)], 1)
        return z.sum(1) if self.mode == "sum" else (self.attention(z).unsqueeze(2) * z).sum(1)

    def attention(self, z: Tensor) -> Tensor:
        """Weights of the adaptive average, [B, M] from the projected features [B, M, width]; each row sums to 1."""
        return torch.softmax((z * self.gate).sum(2) + self.offset, 1)
