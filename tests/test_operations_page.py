"""docs/operations.md: every operation is there, and the costs it gives are those of the recorded runs."""

import re

import pytest

from benchmarks import report, roofline
from slrfast import graphs, ops
from tests.pages import ROOT

PAGE = (ROOT / "docs" / "operations.md").read_text()
LISTED = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
_ROW = re.compile(r"^\| `(\w+)` \| `([^`]+)` \| `([^`]+)` \|", re.MULTILINE)
ROWS = {name: formulas for name, *formulas in _ROW.findall(PAGE)}
OPS = {name for name in ops.__all__ if name.islower()}


def sizes(*tensors):
    """Sizes by letter from shapes: ``("query", "B D"), ...``."""

    def read(shapes, flops):
        found = {}
        for name, letters in tensors:
            found |= dict(zip(letters.split(), shapes[name], strict=True))
        return found

    return read


def elements(name, divisor=1):
    def read(shapes, flops):
        n = 1
        for size in shapes[name]:
            n *= size
        return {"n": n // divisor}

    return read


def with_masked(read, per_row):
    """M is in no shape: what the recorded operations say about it."""

    def both(shapes, flops):
        found = read(shapes, flops)
        return found | {"M": round(flops / eval(per_row, {}, found))}

    return both


def graph(shapes, flops):
    (r, v, i), (p, _, o) = shapes["x"], shapes["weight"]
    return {"R": r, "V": v, "I": i, "O": o, "P": p, "E": len(graphs.HAND21.edges), "min": min}


def block(shapes, flops):
    (r, v, i), o, p = shapes["x"], shapes["out"][-1], graphs.HAND21.num_partitions
    parameters = p * i * o + p * o + o * o + 5 * o
    return {"R": r, "V": v, "I": i, "O": o, "P": p, "E": len(graphs.HAND21.edges), "J": 0, "G": parameters}


BANK = ("query", "B D"), ("bank", "N D")
RECORDED = {
    "info_nce": ("paper, forward + backward", sizes(*BANK)),
    "mined_bce": ("one modality, mined already, forward + backward", sizes(*BANK, ("positives", "B M"))),
    "bank_losses": (
        "CCL-SLR, one bank, forward + backward", sizes(("query", "R D"), ("bank", "N D"), ("positives", "P M"))
    ),
    "neighbor_kl": ("paper, forward + backward", sizes(("student", "B D"), ("student_bank", "N D"))),
    "feature_kl": ("paper, forward + backward", sizes(("student", "B D"))),
    "topk_similarity": ("half a bank", sizes(*BANK, ("k", "K"))),
    "enqueue_": ("paper", sizes(("keys", "B D"))),
    "motion": ("paper, forward + backward", elements("x")),
    "augment": ("paper", sizes(("x", "B T V C"))),
    "pose_views": ("two views, paper", lambda shapes, flops: {"F": shapes["xy"][0], "V": 49, "W": 2 * 64, "T": 64}),
    "motion_mask": ("paper", sizes(("x", "B T V C"))),
    "masked_motion_loss": (
        "paper, forward + backward", with_masked(sizes(("prediction", "B T V C")), "12 * V")
    ),
    "masked_pose_loss": ("paper, forward + backward", with_masked(sizes(("prediction", "B T V C")), "10")),
    "gather_visible": ("paper, forward + backward", sizes(("x", "B T D"), ("packed", "S D"))),
    "scatter_tokens": (
        "paper, forward + backward", with_masked(sizes(("packed", "S D"), ("out", "B T D")), "D")
    ),
    "graph_conv": ("hand 128 to 256, 21 nodes, forward + backward", graph),
    "gcn_block": ("hand 128 to 128, 21 nodes, forward + backward", block),
    "part_max": (
        "hand, 21 joints to 6 parts, forward + backward", lambda s, f: sizes(("x", "R V C"))(s, f) | {"Q": 6}
    ),
    "sign_text_similarity": ("small, forward + backward", sizes(("sign", "B L D"), ("text", "M K D"))),
    "channel_mask": ("one clip", elements("z")),
    "otsu_mask": ("one clip", elements("frames", 3)),
}  # fmt: skip
NOT_RECORDED = {"resample", "part_gcn"}  # what their runs read, and how large their blocks are, is in no shape


def value(formula, names):
    """A formula in which what stands side by side is multiplied."""
    code = re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", formula)
    return eval(code, {"__builtins__": {}}, names)


@pytest.mark.parametrize("name", RECORDED)
def test_costs_are_those_of_the_recorded_runs(name):
    wanted, read = RECORDED[name]
    runs = [run for runs in report.newest(report.RESULTS).values() for run in runs if run["op"] == name.rstrip("_")]
    cases = [(run, case) for run in runs for case in run["cases"] if case["name"] == wanted]
    assert cases
    for run, case in cases:
        position = roofline.position(run, case, case["baseline"])
        names = read(case["shapes"], position.flops)
        assert value(ROWS[name][0], names) == pytest.approx(position.flops, rel=1e-9)
        assert value(ROWS[name][1], names) == pytest.approx(position.bytes, rel=1e-9)


def test_every_operation_is_on_the_page():
    headings = set(re.findall(r"^### (\w+)$", PAGE, re.MULTILINE))
    assert headings == OPS and LISTED == OPS
    assert RECORDED.keys() | NOT_RECORDED == OPS
