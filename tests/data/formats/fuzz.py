"""Mutated pose files by the thousand: ``python fuzz.py --count 2000 --seed 0``, alone so that limits are its own.

Every reader must answer with a Pose or a PoseFileError, within seconds and a few hundred megabytes, without starting
anything or opening a file for writing. What breaks this is written to --keep and ends the run with code 1.
"""

import argparse
import io
import json
import os
import pickle
import random
import resource
import signal
import struct
import sys
import time
import traceback
import warnings
import zipfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from slrfast.data import FORMATS, Pose, PoseDataset, PreprocessOptions, load_pose, preprocess
from slrfast.errors import DatasetError, PoseFileError

STANDARD_LIBRARY = os.path.dirname(os.__file__)
SECONDS, MEGABYTES = 10, 768
FORBIDDEN = {
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.remove", "os.rename", "os.mkdir"),
    *("subprocess.Popen", "socket.connect", "shutil.rmtree", "ctypes.dlopen", "exec"),
}
HUGE = (2**7, 2**8, 2**15, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1)
TEXTS = [
    *(b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e308", b"null", b"true", b'"x"', b"[]", b"{}", b"[[]]", b"0"),
    *(b"99999999999999999999", b'{"keypoints":[]}', b"[" * 3000, b'"\\ud800"', b"9" * 5000, b"\xff\xfe", b"\x00"),
]
NUMBERS = [np.nan, np.inf, -np.inf, 1e300, -1e30, 0, -1, 2**70, None, "x", b"x", True, [], {}, (), 3.5, [[1]]]
DTYPES = ["f2", "f4", "f8", "i1", "i8", "u8", ">f4", "?", "S3", "U2", "c16"]


@lru_cache
def _pose(frames, people, layout="coco133", count=133):
    rng = np.random.default_rng(frames)
    xy = rng.uniform(50, 400, (frames, people, count, 2))
    return Pose(xy, rng.uniform(0, 1, (frames, people, count)), 25.0, (640, 480), layout)


@lru_cache
def _records():
    """The same clip in every shape a pickle may have; the last two are whole data sets."""
    pose = _pose(2, 1)
    whole = np.concatenate((pose.xy, pose.confidence[..., None]), -1)
    size = np.array([[640, 480]], np.float32)
    author = {"keypoints": whole[:, 0], "img_list": [f"a/img_{t:05d}.jpg" for t in range(len(whole) + 1)]}
    fractions = {"keypoints": list(pose.xy / np.float32(640)), "scores": list(pose.confidence), "start": 0, "end": 2}
    annotation = {
        "frame_dir": "clip", "label": 1, "img_shape": (480, 640), "total_frames": len(whole),
        "keypoint": pose.xy.swapaxes(0, 1), "keypoint_score": pose.confidence.swapaxes(0, 1),
    }  # fmt: skip
    cache = {"v": {"video_name": "v", "video_data": author, "label": 1, "img_size": size}}
    return [author, fractions, annotation, cache, {"split": {"train": ["clip"]}, "annotations": [annotation]}]


def originals(folder):
    """Valid files: format name -> list of bytes."""
    found = {}
    for name, form in FORMATS.items():
        found[name] = []
        for shape in ((1, 1), (2, 2), (3, 1, "holistic", 75), (2, 1, "holistic_face", 143)):
            if len(shape) > 2 and name.startswith("mmpose"):
                continue
            path = folder / f"valid{form.suffixes[0]}"
            try:
                form.write(path, _pose(*shape))
            except PoseFileError:  # pose-format is not installed
                break
            found[name].append(path.read_bytes())
    dumped = [[pickle.dumps(record, protocol=protocol) for protocol in (2, 4)] for record in _records()]
    found["mmpose_pickle"] += sum(dumped, [])
    found["data set"] = sum(dumped[-2:], [])
    return {name: files for name, files in found.items() if files}


def mutate_bytes(data, rng, other):
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 30))):
        kind = rng.randrange(9)
        area = min(len(data), 600) if rng.random() < 0.6 else len(data)
        at = rng.randrange(area) if area else 0
        span = rng.choice((1, 2, 4, 16, 300))
        if kind == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[at] = rng.randrange(256)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + span]
        elif kind == 4:
            data[at:at] = data[at : at + span] * rng.choice((1, 2, 50))
        elif kind == 5:
            start = rng.randrange(len(other))
            data[at : at + span] = other[start : start + span]
        elif kind == 6:
            value, size = rng.choice(HUGE), rng.choice((2, 4, 8))
            data[at : at + size] = (value % 2 ** (8 * size)).to_bytes(size, rng.choice(("little", "big")))
        elif kind == 7:
            data[at : at + 4] = struct.pack("<f", rng.choice((float("nan"), float("inf"), -1e38, 1e-45)))
        else:
            data[at : at + rng.choice((0, 1, span))] = rng.choice(TEXTS)
    return bytes(data)


def mutate_value(value, rng, depth=0):
    """A record with one wrong thing in it, somewhere."""
    if rng.random() < 0.2 + 0.1 * depth:
        return rng.choice(NUMBERS)
    if isinstance(value, dict) and value:
        key, out = rng.choice(list(value)), dict(value)
        if rng.random() < 0.15:
            del out[key]
        else:
            out[key] = mutate_value(out[key], rng, depth + 1)
        return out
    if isinstance(value, (list, tuple)) and len(value):
        out = list(value)
        at = rng.randrange(len(out))
        out[at] = mutate_value(out[at], rng, depth + 1)
        out = out * rng.choice((1, 1, 2)) if len(out) < 100 else out
        return type(value)(out)
    if isinstance(value, np.ndarray):
        return mutate_array(value, rng)
    return rng.choice(NUMBERS)


def mutate_array(array, rng):
    kind = rng.randrange(6)
    with np.errstate(all="ignore"):
        if kind == 0:
            try:
                return array.astype(rng.choice(DTYPES))
            except (ValueError, OverflowError):
                return array
        if kind == 1:
            return array.reshape(rng.choice(((-1,), (1, -1), (-1, 1), (*array.shape, 1), (1, *array.shape))))
        if kind == 2:
            return array[(*[slice(None)] * rng.randrange(array.ndim + 1), slice(0, rng.randrange(3)))[: array.ndim]]
        if kind == 3:
            return np.repeat(array, rng.choice((0, 2, 3)), axis=rng.randrange(array.ndim)) if array.ndim else array
        if kind == 4 and array.dtype.kind == "f" and array.size:
            out = array.copy()
            out.flat[rng.randrange(out.size)] = rng.choice((np.nan, np.inf, 1e38, -1e7))
            return out
        return np.asfortranarray(array).swapaxes(0, -1) if array.ndim else array


def npy(array, rng, damage):
    """The bytes of a member: whole, with a header that lies, or damaged anywhere."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    data = buffer.getvalue()
    if damage == "header":
        shape = tuple(rng.choice((*HUGE, 0, -1, 3)) for _ in range(rng.randrange(5)))
        return data.replace(str(array.shape).encode(), str(shape).encode())
    if damage == "bomb":
        return data + bytes(160 << 20)
    if damage == "archive":
        inner = io.BytesIO()
        with zipfile.ZipFile(inner, "w") as nested:
            nested.writestr("xy.npy", data)
        return inner.getvalue()
    return mutate_bytes(data, rng, data) if damage == "bytes" else data


def build_npz(rng):
    """An archive whose table is right and one of whose members is not."""
    pose = _pose(2, 1)
    arrays = {
        "xy": pose.xy, "confidence": pose.confidence, "fps": np.float64(25), "size": np.array((640, 480)),
        "layout": np.array("coco133"),
    }  # fmt: skip
    name = rng.choice(list(arrays))
    damage = "bomb" if rng.random() < 0.005 else rng.choice(("value", "value", "header", "archive", "bytes", "bytes"))
    if damage == "value":
        changed = np.asarray(mutate_value(arrays[name], rng))
        arrays[name] = np.array("object") if changed.dtype == object else changed
    buffer = io.BytesIO()
    packing = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(buffer, "w", packing, compresslevel=1) as archive:
        for key, array in arrays.items():
            archive.writestr(f"{key}.npy", npy(array, rng, damage if key == name else ""))
        if rng.random() < 0.1:
            archive.writestr("../../escape.npy", b"x")
    return buffer.getvalue()


def build_json(rng):
    pose = _pose(2, 2)
    people = [
        [{"keypoints": pose.xy[t, p].tolist(), "keypoint_scores": pose.confidence[t, p].tolist()} for p in range(2)]
        for t in range(2)
    ]
    content = {
        "meta_info": {"image_size": [640, 480], "fps": 25.0},
        "instance_info": [{"frame_id": t, "instances": found} for t, found in enumerate(people)],
    }
    content = mutate_value(rng.choice((content, people)), rng)
    return json.dumps(content, default=str).encode()


def build_pickle(rng):
    return pickle.dumps(mutate_value(rng.choice(_records()), rng), protocol=rng.choice((2, 3, 4)))


def build_data_set(rng):
    return pickle.dumps(mutate_value(rng.choice(_records()[-2:]), rng), protocol=4)


BUILDERS = {"npz": build_npz, "mmpose_json": build_json, "mmpose_pickle": build_pickle, "data set": build_data_set}


def files(name, valid, rng, count):
    for _ in range(count):
        if name in BUILDERS and rng.random() < (0.8 if name == "npz" else 0.4):
            yield BUILDERS[name](rng)
        else:
            pool = valid[rng.choice(list(valid))] if rng.random() < 0.1 else valid[name]
            yield mutate_bytes(rng.choice(valid[name]), rng, rng.choice(pool))


class Watch:
    """Forbids, while armed, what a reader of data has no business to do."""

    armed = False

    def __call__(self, event, arguments):
        if not self.armed:
            return
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        late = event == "exec" and arguments[0].co_filename.startswith(STANDARD_LIBRARY)  # an import, such as a codec
        if (event in FORBIDDEN or writes) and not late:
            raise AssertionError(f"a reader caused {event} {arguments!r:.200}")


def read(name, path):
    """The pose in a file, pre-processed where it shows a hand; or all clips of a data set."""
    if name == "data set":
        for clip in PoseDataset(path, options=PreprocessOptions(size=(640, 480))):
            assert torch.isfinite(clip.xy).all() and torch.isfinite(clip.confidence).all()
        return
    pose = load_pose(path, size=(640, 480))
    assert np.isfinite(pose.xy).all() and np.isfinite(pose.confidence).all()
    try:
        clip = preprocess(pose, PreprocessOptions(layout=133))
        assert torch.isfinite(clip.xy).all() and torch.isfinite(clip.confidence).all()
    except PoseFileError as error:
        assert error.__cause__ is None, error


def attempt(name, path, watch):
    """Read one file: "read", "refused", or what went wrong."""
    signal.alarm(SECONDS)
    watch.armed = True
    try:
        with warnings.catch_warnings(record=True) as noise:
            warnings.simplefilter("always")
            read(name, path)
        noise = [str(warning.message) for warning in noise if "skipped" not in str(warning.message)]
        return f"a warning: {noise[0]}" if noise else "read"
    except (PoseFileError, DatasetError) as error:
        text, cause = str(error), error.__cause__
        while cause is not None and not isinstance(cause, (MemoryError, AssertionError, TimeoutError)):
            cause = cause.__cause__
        if cause is not None:
            return f"{type(cause).__name__}: {text}"
        return "refused" if text.isprintable() and len(text) < 500 else f"not one sentence: {text!r}"
    except BaseException:
        return traceback.format_exc()
    finally:
        watch.armed = False
        signal.alarm(0)


def _too_slow(*_):
    raise TimeoutError(f"more than {SECONDS} s")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=500, help="files per format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    valid = originals(options.folder)
    for name, found in valid.items():  # imports whatever is imported late
        for data in found:
            path = options.folder / "clip.pkl"
            path.write_bytes(data)
            try:
                read(name, path)
            except PoseFileError as error:
                assert "PoseDataset opens it" in str(error), error
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = in_use + (MEGABYTES << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGALRM, _too_slow)
    watch = Watch()
    sys.addaudithook(watch)
    results = {}
    for name in valid:
        began, rng = time.perf_counter(), random.Random(f"{name} {options.seed}")
        counts = {"read": 0, "refused": 0}
        for number, data in enumerate(files(name, valid, rng, options.count)):
            path = options.folder / f"clip{FORMATS[name].suffixes[0] if name in FORMATS else '.pkl'}"
            path.write_bytes(data)
            outcome = attempt(name, path, watch)
            if outcome not in counts:
                kept = path.with_name(f"broke-{number}{path.suffix}")
                kept.write_bytes(data)
                print(f"{name}, file {number}, kept as {kept}: {outcome}", file=sys.stderr)
                return 1
            counts[outcome] += 1
        results[name] = counts | {"seconds": round(time.perf_counter() - began, 2)}
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
