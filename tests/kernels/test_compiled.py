"""GPU kernels are compiled and their resources checked where there is no GPU."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from slrfast import kernels
from slrfast.kernels import native

ROOT = Path(__file__).resolve().parents[2]
SHARED_MEMORY = {80: 163 << 10, 90: 227 << 10}  # bytes a block may use


def cuobjdump():
    """The tool of the CUDA toolkit, or the copy that comes with triton."""
    triton = pytest.importorskip("triton")
    bundled = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    tool = shutil.which("cuobjdump") or (str(bundled) if bundled.is_file() else None)
    return tool or pytest.skip("cuobjdump is neither on PATH nor in triton")


def resources(file):
    """(function, {REG, STACK, SHARED, LOCAL ...}) of every kernel in an object file."""
    text = subprocess.run([cuobjdump(), "-res-usage", str(file)], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"Function (\S+):\s+(REG:.*)", text)
    return [(name, {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line)}) for name, line in found]


def meta(*shape, dtype="float32", transposed=False):
    """A tensor without memory: a launcher looks at its type, sizes and strides only."""
    if transposed:
        return meta(*shape[::-1], dtype=dtype).T
    return torch.empty(shape, dtype=getattr(torch, dtype), device="meta")


def motion_calls():
    from slrfast.kernels.triton.motion import motion

    for dtype in ("float32", "float64", "bfloat16", "float16"):
        for shape in ((64, 64, 49, 2), (1, 2**25, 49, 2)):  # the second needs 64-bit sizes
            motion(meta(*shape, dtype=dtype), 1, True)


def info_nce_calls():
    from slrfast.kernels.triton.info_nce import info_nce

    for b, n, d, query, bank, rank in (
        (64, 16384, 128, "float32", "float32", False),
        (64, 16384, 128, "float32", "float32", True),
        (64, 16384, 128, "float32", "bfloat16", False),
        (64, 16384, 128, "bfloat16", "bfloat16", False),
        (256, 65536, 2048, "float32", "float32", True),
        (64, 16384, 128, "float64", "float64", True),
    ):
        q = meta(b, d, dtype=query)
        info_nce(q, q, meta(n, d, dtype=bank), 0.07, True, rank)
    q = meta(64, 128)
    info_nce(q, q, meta(65536, 128, transposed=True), 0.07, True, False)  # queue.T of MoCo
    info_nce(q, q, meta(65536, 128, transposed=True), 0.07, True, True)
    info_nce(q, q, meta(2**25, 128, transposed=True), 0.07, True, True)  # offsets beyond 32 bits
    info_nce(q, q, meta(16384, 128), 0.07, False, False)


def mined_bce_calls():
    from slrfast.kernels.triton.mined_bce import mined_bce

    positives = meta(64, 20, dtype="int64")
    for query, bank in (("float32", "float32"), ("bfloat16", "bfloat16"), ("float32", "float64")):
        mined_bce(meta(64, 128, dtype=query), meta(16384, 128, dtype=bank), positives, 0.02, True)
    mined_bce(meta(64, 128), meta(65536, 128, transposed=True), positives, 0.02, True)
    mined_bce(meta(64, 2048), meta(16384, 2048, dtype="bfloat16"), positives, 0.02, True)


def bank_losses_calls():
    from slrfast.kernels.triton.bank_losses import bank_losses

    positives = meta(128, 20, dtype="int64")
    for d, query, bank in (
        (128, "float32", "float32"),
        (128, "float32", "bfloat16"),
        (128, "bfloat16", "bfloat16"),
        (2048, "float32", "float32"),
    ):
        q = meta(128, d, dtype=query)
        bank_losses(q, q, meta(16384, d, dtype=bank), positives, 0.07, 0.02, True)
    q = meta(128, 123)  # rows that are not aligned
    bank_losses(q, q, meta(16384, 123), positives, 0.07, 0.02, True)


def feature_kl_calls():
    from slrfast.kernels.triton.feature_kl import feature_kl

    for d, teacher, student in (
        (128, "float32", "float32"),
        (8192, "bfloat16", "float16"),
        (128, "float64", "float32"),
    ):
        feature_kl(meta(64, d, dtype=teacher), meta(64, d, dtype=student), 0.1, True)


def enqueue_calls():
    from slrfast.kernels.triton.enqueue import enqueue_

    for d, bank, keys in (
        (128, "float32", "float32"),
        (2048, "bfloat16", "float32"),
        (128, "float16", "float64"),
        (128, "bfloat16", "float64"),
    ):
        enqueue_(meta(16384, d, dtype=bank), meta(dtype="int64"), meta(64, d, dtype=keys), True)
    enqueue_(meta(65536, 128, transposed=True), meta(dtype="int64"), meta(64, 128), False)


def neighbor_kl_calls():
    from slrfast.kernels.triton.neighbor_kl import neighbor_kl

    for n, query, bank in (
        (16384, "float32", "float32"),
        (16384, "float32", "bfloat16"),
        (16384, "bfloat16", "bfloat16"),
        (1000, "float16", "float32"),
        (8192, "float64", "float64"),
        (65536, "float32", "float32"),  # more scores than the registers hold
        (65536, "float32", "float64"),
    ):
        q, m = meta(64, 128, dtype=query), meta(n, 128, dtype=bank)
        neighbor_kl(q, m, q, m, n // 2, 0.05, 0.1, True)
    narrow, wide = meta(2**25, 123, transposed=True), meta(2**25, 512, transposed=True)  # offsets beyond 32 bits
    neighbor_kl(meta(3, 123), narrow, meta(3, 512), wide, 7, 0.05, 0.1, True)
    neighbor_kl(meta(20, 123), meta(999, 123), meta(20, 77), meta(999, 77, dtype="bfloat16"), 7, 0.05, 0.1, False)


def topk_similarity_calls():
    from slrfast.kernels.triton.topk_similarity import topk_similarity, topk_similarity_grad

    for dtypes in (("float32", "float32"), ("float32", "bfloat16"), ("float16", "float16"), ("float64", "float32")):
        query, bank = meta(64, 128, dtype=dtypes[0]), meta(16384, 128, dtype=dtypes[1])
        for k in (10, 8192):
            values, indices = topk_similarity(query, bank, k, True)
            topk_similarity_grad(values, indices, bank)
    for k in (20, 40, 128):
        topk_similarity(meta(64, 128), meta(2**20, 128), k, False)
    queue = meta(2**25, 123, transposed=True)  # offsets beyond 32 bits, rows that are not aligned
    for k in (10, 1000):
        topk_similarity_grad(*topk_similarity(meta(20, 123), queue, k, True), queue)


def graph_conv_calls():
    from slrfast.kernels.triton.graph_conv import graph_conv, graph_conv_grad

    for dtype, weights, rows, nodes, inputs, outputs in (
        ("bfloat16", "float32", 8192, 21, 2, 128),
        ("bfloat16", "float32", 8192, 21, 128, 256),
        ("bfloat16", "bfloat16", 2**25, 6, 512, 512),  # offsets beyond 32 bits
        ("float16", "float16", 1000, 7, 5, 24),
        ("float32", "float32", 8192, 21, 128, 128),
        ("float32", "float32", 3, 7, 24, 5),
        ("float64", "float64", 64, 7, 5, 24),
    ):
        x, edges = meta(rows, nodes, inputs, dtype=dtype), (meta(93, 3, dtype="int32"), meta(93))
        weight, bias = meta(4, inputs, outputs, dtype=weights), meta(4, outputs, dtype=weights)
        graph_conv_grad(graph_conv(x, weight, bias, *edges), x, weight, *edges)
        graph_conv(x, weight, None, *edges)
    one, edges = meta(1, 1, 1), (meta(1, 3, dtype="int32"), meta(1))  # every size is a constant here
    graph_conv_grad(graph_conv(one, one, one[0], *edges), one, one, *edges)


def gcn_block_calls():
    from slrfast.kernels.triton.gcn_block import gcn_block, gcn_block_grad

    for dtype, rows, nodes, inputs, outputs, dropout, groups, residual in (
        ("bfloat16", 8192, 21, 2, 128, 0.05, 2, "none"),
        ("bfloat16", 8192, 21, 128, 256, 0.05, 2, "linear"),
        ("bfloat16", 8192, 6, 512, 512, 0.05, 2, "identity"),
        ("float16", 3, 7, 24, 24, 0.0, 1, "identity"),  # one block of rows
        ("float16", 1, 7, 1, 1, 0.5, 1, "linear"),
        ("float32", 8192, 6, 256, 512, 0.05, 1, "linear"),
        ("float64", 64, 7, 5, 24, 0.05, 2, "linear"),
    ):
        x, wide = meta(rows, nodes, inputs, dtype=dtype), "float64" if dtype == "float64" else "float32"
        shapes = [(4, inputs, outputs), (4, outputs), (outputs,), (outputs,), (outputs, outputs), *[(outputs,)] * 3]
        extra = [meta(*shape, dtype=wide) for shape in ((outputs, inputs), *[(outputs,)] * 3)]
        parameters = [meta(*shape, dtype=wide) for shape in shapes] + (extra if residual == "linear" else [None] * 4)
        constants = (
            meta(93, 3, dtype="int32"),
            meta(93),
            meta(dtype="int64"),
            dropout,
            1e-5,
            groups,
            residual == "identity",
        )
        out, *kept = gcn_block(x, parameters, *constants)
        gcn_block_grad(out, x, parameters, *constants, *kept)


def part_max_calls():
    from slrfast.kernels.triton.part_max import part_max, part_max_grad

    for dtype, channels in (("float32", 256), ("bfloat16", 256), ("float16", 5), ("float64", 24)):
        x, members = meta(2**22, 21, channels, dtype=dtype), meta(6, 6, dtype="int32")
        part_max_grad(*part_max(x, members), members, 21)


def motion_mask_calls():
    from slrfast.kernels.triton.motion_mask import motion_mask

    numbers = (3, 0.4, 5.0, 0.5, 0.9)
    for dtypes, clips, frames, joints, norm in (
        (("float32", "float32", "float32"), 64, 64, 49, False),
        (("float32", "float32", "float32"), 64, 64, 49, True),
        (("float64", "float64", "float64"), 64, 150, 49, True),
        (("float32", "float64", "float32"), 64, 150, 49, False),
        (("bfloat16", "float32", "float16"), 2**20, 8192, 133, False),  # offsets beyond 32 bits
        (("float16", "float16", "float64"), 2, 8192, 2048, True),  # the most frames and joints
        (("float32", "float32", "float32"), 1, 1, 1, False),  # every size is a constant here
    ):
        x, confidence, keys = (
            meta(clips, frames, *rest, dtype=dtype)
            for dtype, rest in zip(dtypes, ((joints, 2), (joints,), ()), strict=True)
        )
        for lengths in (None, meta(clips, dtype="int64")):
            motion_mask(x, confidence, lengths, keys, *numbers, norm)


def masked_motion_loss_calls():
    from slrfast.kernels.triton.masked_motion_loss import masked_motion_loss

    for prediction, other, weights, clips, frames, joints in (
        ("float32", "float32", (), 64, 64, 49),
        ("bfloat16", "float32", (2,), 64, 64, 49),
        ("float16", "float16", (), 2**20, 5000, 133),  # offsets beyond 32 bits
        ("float64", "float32", (2,), 64, 150, 49),
        ("float64", "float64", (), 2, 3, 5000),
        ("float32", "float32", (), 1, 1, 1),
    ):
        y, m = (meta(clips, frames, joints, 2, dtype=dtype) for dtype in (prediction, other))
        weight = meta(clips, frames, joints, *weights, dtype=other)
        for squared, average, want_grad in ((True, True, True), (False, True, True), (True, False, False)):
            masked_motion_loss(y, m, weight, meta(clips, frames, dtype="bool"), 1 / 256, squared, average, want_grad)


def masked_pose_loss_calls():
    from slrfast.kernels.triton.masked_pose_loss import masked_pose_loss

    for prediction, other, clips, frames, joints in (
        ("float32", "float32", 64, 256, 79),
        ("bfloat16", "float32", 1, 16384, 79),
        ("float16", "float16", 2**20, 5000, 133),  # offsets beyond 32 bits
        ("float64", "float64", 64, 150, 79),
        ("float32", "float32", 1, 1, 1),
    ):
        y, x = (meta(clips, frames, joints, 2, dtype=dtype) for dtype in (prediction, other))
        mask, confidence = meta(clips, frames, joints, dtype="bool"), meta(clips, frames, joints, dtype=other)
        for want_grad in (True, False):
            masked_pose_loss(y, x, mask, confidence, want_grad)


def sign_text_similarity_calls():
    from slrfast.kernels.triton.sign_text_similarity import sign_text_similarity, sign_text_similarity_grad

    for sign, text, b, ls, m, lt, d in (
        ("float32", "float32", 64, 64, 64, 128, 512),
        ("bfloat16", "bfloat16", 64, 64, 64, 128, 512),
        ("float16", "float16", 32, 32, 512, 33, 123),
        ("float32", "bfloat16", 64, 64, 64, 128, 512),
        ("float64", "float32", 4, 64, 4, 128, 512),
        ("float32", "float32", 2**20, 256, 2, 128, 512),  # offsets beyond 32 bits
        ("float32", "float32", 1, 1, 1, 1, 1),  # every size is a constant here
    ):
        s, t = meta(b, ls, d, dtype=sign), meta(m, lt, d, dtype=text)
        grad = meta(b, m, dtype="float64" if sign == "float64" else "float32")
        masked = meta(b, ls, dtype="bool"), meta(m, lt, dtype="bool")
        for masks in ((None, None), masked) if sign == text else (masked,):
            sign_text_similarity(s, t, *masks, 1.0)
            sign_text_similarity_grad(grad, s, t, *masks, 1.0, True, True)


def clip_plan(dtype, clips, joints, parts):
    linear, center = meta(clips, parts, 2, 2, dtype=dtype), meta(clips, parts, 2, dtype=dtype)
    flags = [meta(clips, joints, dtype="bool") for _ in range(2)]
    part, swap_index = (meta(joints, dtype="int64") for _ in range(2))
    return linear, center, part, *flags, meta(clips, dtype="bool"), swap_index


def clip_windows(views, clips):
    return meta(clips + 1, dtype="int64"), *(meta(views, clips, dtype="int64") for _ in range(2))


def resample_calls():
    from slrfast.kernels.triton.resample import resample

    for dtype in ("float32", "float64", "bfloat16", "float16"):
        for joints, out_frames in ((49, 64), (133, 32), (1, 1)):
            resample(meta(4096, joints, 2, dtype=dtype), *clip_windows(2, 64), out_frames, "linear")
    resample(meta(2**26, 49, 2), *clip_windows(2, 2**20), 64, "linear")  # offsets beyond 32 bits
    for dtype in ("float32", "bool", "int64"):
        resample(meta(4096, 49, 1, dtype=dtype), *clip_windows(1, 64), 64, "nearest")


def augment_calls():
    from slrfast.kernels.triton.augment import augment

    for dtype, confidence in (("float32",) * 2, ("float64",) * 2, ("bfloat16",) * 2, ("float16", "float32")):
        for clips, joints, parts in ((128, 49, 3), (2**22, 133, 5), (1, 1, 1)):
            x, sure = meta(clips, 64, joints, 2, dtype=dtype), meta(clips, 64, joints, dtype=confidence)
            augment(x, sure, *clip_plan("float32", clips, joints, parts))


def pose_views_calls():
    from slrfast.kernels.triton.pose_views import pose_views

    for dtype in ("float32", "float64", "bfloat16", "float16"):
        for clips, joints, parts in ((64, 49, 3), (2**20, 133, 5), (1, 1, 1)):
            for direction in (-1, 0, 1):
                xy, confidence = meta(57 * clips, joints, 2, dtype=dtype), meta(57 * clips, joints, dtype=dtype)
                plan = clip_plan("float32", 2 * clips, joints, parts)
                pose_views(xy, confidence, *clip_windows(2, clips), *plan, 64, direction)


def channel_mask_calls():
    from slrfast.kernels.triton.channel_mask import channel_mask, channel_variance

    for dtype in ("float32", "float64", "bfloat16", "float16"):
        for shape in ((4, 32, 150528), (1, 2, 123), (2**10, 64, 150528), (1, 1, 1)):  # the third has 64-bit offsets
            z = meta(*shape, dtype=dtype)
            channel_mask(z, channel_variance(z)[:, 0])


def otsu_mask_calls():
    from slrfast.kernels.triton.otsu_mask import grey_levels

    for dtype, other in (("float32",) * 2, ("float64", "float32"), ("bfloat16", "float32"), ("float16", "float64")):
        for clips, frames, height, width in ((4, 32, 224, 224), (2**10, 64, 224, 224), (1, 1, 1, 1)):
            x = meta(clips, frames, 3, height, width, dtype=dtype)
            grey_levels(x, None)
            grey_levels(x, meta(3, height, width, dtype=other))


# op -> calls of its launchers: every kernel that they launch is compiled, in the configuration that they choose
VARIANTS = {
    "motion": motion_calls,
    "info_nce": info_nce_calls,
    "mined_bce": mined_bce_calls,
    "bank_losses": bank_losses_calls,
    "feature_kl": feature_kl_calls,
    "enqueue": enqueue_calls,
    "neighbor_kl": neighbor_kl_calls,
    "topk_similarity": topk_similarity_calls,
    "graph_conv": graph_conv_calls,
    "gcn_block": gcn_block_calls,
    "part_max": part_max_calls,
    "resample": resample_calls,
    "augment": augment_calls,
    "pose_views": pose_views_calls,
    "motion_mask": motion_mask_calls,
    "masked_motion_loss": masked_motion_loss_calls,
    "channel_mask": channel_mask_calls,
    "otsu_mask": otsu_mask_calls,
    "masked_pose_loss": masked_pose_loss_calls,
    "sign_text_similarity": sign_text_similarity_calls,
}


def specialized(kernel, arguments):
    """Signature, constants and attributes of a launch, as Triton derives them: 1 is a constant, 16 divides or not."""
    from triton.runtime.jit import mangle_type

    signature, constants, attributes = {}, {}, {}
    for position, (parameter, value) in enumerate(zip(kernel.params, arguments, strict=True)):
        name, integer = parameter.name, isinstance(value, int) and not isinstance(value, bool)
        if parameter.is_constexpr or (integer and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name] = parameter.annotation_type or mangle_type(value)
        if isinstance(value, torch.Tensor) or (integer and value % 16 == 0):
            attributes[(position,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


@pytest.mark.parametrize("capability", SHARED_MEMORY)
@pytest.mark.parametrize("op", VARIANTS)
def test_triton_kernels_compile_without_spills(op, capability, tmp_path, monkeypatch):
    triton = pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the interpreter replaces the compiler")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from slrfast.kernels.triton import _bank

    launches = {}

    def record(kernel, *arguments, grid, warmup, **options):
        specialization = specialized(kernel, arguments)
        launches[repr((kernel, specialization, options))] = (kernel, *specialization, options)

    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", record)
    monkeypatch.setattr(_bank, "is_hopper", lambda device: capability >= 90)
    VARIANTS[op]()
    assert launches
    for kernel, signature, constants, attributes, options in launches.values():
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert compiled.metadata.shared <= SHARED_MEMORY[capability]
        cubin = tmp_path / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        ((_, usage),) = resources(cubin)
        assert usage["LOCAL"] == 0 and usage["STACK"] == 0, (signature, constants, usage)


def test_cuda_kernels_do_not_spill():
    if native.LIBRARY is None:
        pytest.skip(native.LOAD_ERROR)
    if not native.build_info()["cuda"].startswith("built"):
        pytest.skip(f"CUDA {native.build_info()['cuda']}")
    found = resources(native.LIBRARY.__file__)
    architectures = native.build_info()["cuda"].count("sm_")
    assert (
        len(found) == 13 * architectures
    )  # packs of 16 bytes down to one element: 4 for a half type, 3, and 2 for double
    assert [(name, usage) for name, usage in found if usage["LOCAL"] or usage["STACK"]] == []


# Files whose tests share one process of the interpreter: most of a process is the import of torch and its compiler.
GRAPH_NETWORK = ("graph_conv", "gcn_block", "part_max")
BANK_LOSSES = [op for op in VARIANTS if op in ("info_nce", "mined_bce", "bank_losses")]
# All tests of the graph network take the interpreter five minutes; these name what each of its kernels computes.
SHORT = "by_hand or float32 or equals_loops or one_after_the_other or nan or strid or ties"
CLIPS = [op for op in VARIANTS if op in ("resample", "augment", "pose_views", "motion_mask", "masked_motion_loss")]
KEYWORDS = {"graph network": f"cpu-triton and ({SHORT})", "parts": ""}
WITHOUT_REGISTRATION = "cpu-triton and not opcheck"  # which is the same for every backend
INTERPRETED = {
    "clips": [f"ops/test_{op}.py" for op in CLIPS],
    "bank_losses": [f"ops/test_{op}.py" for op in BANK_LOSSES],
    "graph network": [f"ops/test_{op}.py" for op in GRAPH_NETWORK],
    "other ops": [f"ops/test_{op}.py" for op in VARIANTS if op not in (*BANK_LOSSES, *GRAPH_NETWORK, *CLIPS)],
    "parts": ["kernels/test_select.py", "kernels/test_rounding.py", "kernels/test_gcn.py"],
}


@pytest.mark.parametrize("group", INTERPRETED)
def test_triton_kernels_in_the_interpreter(group):
    """The ops' own tests, and those of parts of the kernels, with Triton's CPU interpreter as the backend."""
    pytest.importorskip("triton")
    got = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-v",
            "-p",
            "no:cacheprovider",
            "-k",
            KEYWORDS.get(group, WITHOUT_REGISTRATION),
        ]
        + [str(ROOT / "tests" / file) for file in INTERPRETED[group]],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert got.returncode == 0, got.stdout
    assert "SKIPPED" not in got.stdout
    assert [file for file in INTERPRETED[group] if not re.search(rf"{file}::.* PASSED", got.stdout)] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_both_gpu_backends_say_so(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if kernels.triton_installed():
        assert kernels.availability("triton", "cuda") == "torch sees no CUDA device"
    assert "CUDA" in kernels.availability("cuda", "cuda")
    assert kernels.availability("cuda", "cpu") == "the CUDA kernels run on CUDA tensors only"
    assert kernels.availability("native", "cuda") == "the native kernels run on CPU tensors only"
