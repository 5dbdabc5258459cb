"""Windows, changes and what is to become of clips, for the tests of the functions over packed clips."""

import numpy as np
from buffers import F64, bad_buffers, decode, encode, filled

OFFSETS, START, LENGTH = [0, 9, 10, 24], [[2, 0, 0], [0, 0, 13]], [[6, 1, 14], [9, 1, 1]]
WINDOWS = {"offsets": OFFSETS, "clips": 3, "start": START, "length": LENGTH, "views": 2}
WIDE = {F64: np.float64}


def windows(out_frames):
    arrays = {name: filled(np.array(value)) if np.ndim(value) else value for name, value in WINDOWS.items()}
    return {**arrays, "out_frames": out_frames}


def wide_of(dtype):
    """The type of computation."""
    return WIDE.get(dtype, np.float32)


def changes(dtype, clips, joints, parts, random, one_map=False):
    """In the order of the header; joints of the last part stay where they are when clips are swapped."""
    maps = random.normal(size=(clips, 1 if one_map else parts, 6)).repeat(parts if one_map else 1, axis=1)
    index = np.arange(joints)
    half = joints // 3
    index[: 2 * half] = np.roll(index[: 2 * half], half)
    maps = maps.astype(wide_of(dtype))
    return {
        "linear": filled(np.ascontiguousarray(maps[..., :4])),
        "center": filled(np.ascontiguousarray(maps[..., 4:])),
        "parts": parts,
        "part": filled(np.arange(joints) * parts // max(joints, 1)),
        "affected": filled((random.random((clips, joints)) < (2 if one_map else 0.7)).astype(np.uint8)),
        "drop": filled(((random.random((clips, joints)) < 0.2) & (np.arange(clips) % 3 > 0)[:, None]).astype(np.uint8)),
        "swap": filled((np.arange(clips) % 2).astype(np.uint8)),
        "swap_index": filled(index),
    }


def pose(dtype, frames, joints, random):
    """Coordinates and confidences with missing joints."""
    confidence = np.maximum(random.normal(size=(frames, joints)), 0)
    xy = random.normal(size=(frames, joints, 2)) * (confidence > 0)[..., None]
    return filled(encode(xy.astype(wide_of(dtype)), dtype)), filled(encode(confidence.astype(wide_of(dtype)), dtype))


def resampled(frames, done, mode="linear"):
    """Frames [views, clips, out_frames, ...] of numbers in the type of computation, each operation rounded."""
    wide, out = frames.dtype.type, done["out_frames"]
    results = np.zeros((*np.shape(START), out, *frames.shape[1:]), frames.dtype)
    for view, clip, i in np.ndindex(results.shape[:3]):
        length, first = LENGTH[view][clip], OFFSETS[clip] + START[view][clip]
        if mode == "nearest":
            results[view, clip, i] = frames[first + i * length // out]
            continue
        j, rest = divmod(max((2 * i + 1) * length - out, 0), 2 * out)
        a = frames[first + j]
        if rest and j + 1 < length:
            a = a + (frames[first + j + 1] - a) * (wide(rest) / wide(2 * out))
        results[view, clip, i] = a
    return results


def changed(x, confidence, plan, about_zero=False, seen=None):
    """Clips [B, T, V, 2] and [B, T, V] of the type of computation, after a plan."""
    linear, part = plan["linear"].reshape(*plan["center"].shape, 2)[:, plan["part"]], plan["part"]
    center = np.zeros_like(plan["center"]) if about_zero else plan["center"]
    center, m = center[:, None, part], linear[:, None]
    away = x - center
    mapped = m[..., 0] * away[..., :1] + m[..., 1] * away[..., 1:] + center
    seen = confidence > 0 if seen is None else seen
    y = np.where((plan["affected"][:, None].astype(bool) & seen)[..., None], mapped, x)
    kept = ~plan["drop"][:, None].astype(bool)
    y, sure = np.where(kept[..., None], y, x.dtype.type(0)), np.where(kept, confidence, x.dtype.type(0))
    swap = plan["swap"].astype(bool)[:, None, None]
    return np.where(swap[..., None], y[:, :, plan["swap_index"]], y), np.where(
        swap, sure[..., plan["swap_index"]], sure
    )


def plain(done):
    """Arrays of a finished call as they are, without their guards."""
    return {name: np.array(value) if isinstance(value, np.ndarray) else value for name, value in done.items()}


def numbers(done, name):
    return decode(np.array(done[name]), done["dtype"])


BAD_WINDOWS = [
    *(({"out_frames": wrong}, "out_frames must be in") for wrong in (0, -1, 2**31)),
    *(({"clips": wrong}, "impossible") for wrong in (-1, 2**63 - 1, 2**62)),
    *(({"views": wrong}, "impossible") for wrong in (-1, 2**62)),
    *(({"total": wrong}, "impossible|offsets must rise from 0 to") for wrong in (-1, 23, 25, 2**62)),
    *bad_buffers("offsets", "start", "length"),
]
BAD_CHANGES = [
    ({"joints": -1}, "impossible"),
    ({"joints": 2**60}, "impossible"),
    *(({"parts": wrong}, "impossible|part must be in") for wrong in (-1, 0, 1, 2**62)),
    *bad_buffers("linear", "center", "part", "swap_index"),
    *(({name: 0}, "null") for name in ("affected", "drop", "swap")),
]


def spoiled_windows(good):
    """Windows that leave their clips, one after the other in place, and the words for it."""
    for name, where, wrong, word in (
        ("offsets", 0, 1, "offsets must rise"),
        ("offsets", 1, 11, "offsets must rise"),
        ("offsets", 3, 23, "offsets must rise"),
        ("start", (0, 0), -1, "must lie inside the 9 frames of its clip, got 6 from -1"),
        ("start", (1, 1), 1, "window 4 must lie inside the 1 frames of its clip, got 1 from 1"),
        ("length", (1, 2), 2, "window 5 must lie inside the 14 frames of its clip, got 2 from 13"),
        ("length", (0, 2), 0, "must lie inside"),
        ("length", (0, 2), -(2**63), "must lie inside"),
        ("start", (0, 2), 2**63 - 1, "must lie inside"),
    ):
        kept = good[name][where].copy()
        good[name][where] = wrong
        yield word
        good[name][where] = kept


def spoiled_changes(good):
    """Parts and joints that do not exist, one after the other in place, and the words for it."""
    for name, wrong in (("part", -1), ("part", good["parts"]), ("swap_index", -1), ("swap_index", good["joints"])):
        kept = good[name][2]
        good[name][2] = wrong
        yield f"{name} must be in .*, got {wrong}"
        good[name][2] = kept
