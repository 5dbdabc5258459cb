"""A pickle is a program; none of these may run, crash the process or use it up."""

import collections
import os
import pickle
import struct
import subprocess
import time
import tracemalloc

import numpy as np
import pytest

from slrfast.data import load_pose
from slrfast.data.formats.unpickle import load
from slrfast.errors import PoseFileError


class Call:
    """Pickles as a call of ``function(*arguments)``, like any exploit."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced


def test_what_numpy_and_python_write_is_read():
    content = {
        "keypoints": np.arange(24, dtype=np.float32).reshape(2, 4, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3, dtype=">i2"),
        "names": np.array(["a_1.jpg", "b_2.jpg"]),
        "empty": np.zeros((0, 133, 3)),
        "flags": np.array([True, False]),
        "label": np.int64(7),
        "score": np.float32(0.5),
        "ordered": collections.OrderedDict(a=1, b=[None, True, -3, 2**40, 1.5, "ü", b"x", (1, 2, 3, 4)]),
        3: {},
    }
    content["again"] = content["keypoints"]
    for protocol in range(4, -1, -1):
        if protocol < 3:
            content.pop("empty", None)  # written as a call of builtins.bytes, which is refused
        got = load("clip.pkl", pickle.dumps(content, protocol))
        assert list(got) == list(content)
        for key, value in content.items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(got[key], value)
                assert got[key].dtype.kind == value.dtype.kind
            else:
                assert got[key] == value
        assert got["again"] is got["keypoints"]
        assert isinstance(got["label"], int) and isinstance(got["score"], float)


def test_arrays_of_numpy_before_and_after_2_are_both_read():
    data = pickle.dumps(np.arange(3.0), protocol=2)
    for core in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        renamed = data.replace(b"numpy._core.multiarray", core).replace(b"numpy.core.multiarray", core)
        np.testing.assert_array_equal(load("clip.pkl", renamed), np.arange(3.0))


def marker(tmp_path):
    return tmp_path / "it ran"


EXPLOITS = {
    "posix.system": lambda path: Call(os.system, f"touch '{path}'"),
    "builtins.eval": lambda path: Call(eval, f"open({str(path)!r}, 'w')"),
    "builtins.exec": lambda path: Call(exec, f"open({str(path)!r}, 'w')"),
    "builtins.open": lambda path: Call(open, str(path), "w"),
    "builtins.getattr": lambda path: Call(getattr, np.ndarray, "tofile"),
    "builtins.list": lambda path: collections.defaultdict(list),
    "numpy.load": lambda path: Call(np.load, str(path)),
    "numpy.save": lambda path: Call(np.save, str(path), 1),
    "numpy.memmap": lambda path: Call(np.memmap, str(path), "u1", "w+", 0, (9,)),
    "subprocess.Popen": lambda path: Call(subprocess.Popen, ["touch", str(path)]),
}


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", EXPLOITS)
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"keypoints": [x]}, lambda x: (1, {"a": x})])
def test_code_is_refused_by_name_and_never_runs(tmp_path, name, protocol, wrap):
    path = tmp_path / "clip.pkl"
    path.write_bytes(pickle.dumps(wrap(EXPLOITS[name](marker(tmp_path))), protocol))
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(PoseFileError) as raised:
        load_pose(path)
    reason = raised.value.reason
    wanted = {
        "numpy.load": ("numpy.load", "numpy.lib._npyio_impl.load", "numpy.lib.npyio.load"),
        "numpy.save": ("numpy.save", "numpy.lib._npyio_impl.save", "numpy.lib.npyio.save"),
        "builtins.open": ("io.open", "_io.open"),
        "subprocess.Popen": ("subprocess.Popen", "commands.Popen"),
        "builtins.list": ("collections.defaultdict",),
    }.get(name, (name,))
    spelled = [w.replace("builtins", "__builtin__") if protocol < 3 else w for w in wanted] + list(wanted)
    assert reason.startswith("refused: the pickle asks for "), reason
    assert any(reason.endswith(w) for w in spelled), reason
    assert sorted(os.listdir(tmp_path)) == before


def test_the_admitted_names_cannot_be_turned_into_others():
    attempts = {
        b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.dump\x93.": "numpy.ndarray.dump",
        b"\x80\x04\x8c\x05numpy\x8c\x0fcore.multiarray\x93.": "numpy.core.multiarray",
        b"cnumpy.core.multiarray\nfrombuffer\n.": "numpy.core.multiarray.frombuffer",
        b"cnumpy\nfromfile\n.": "numpy.fromfile",
        b"c_codecs\ndecode\n.": "_codecs.decode",
        b"ccopyreg\n_reconstructor\n.": "copyreg._reconstructor",
        b"(ios\nsystem\n.": "os.system",
    }
    for data, name in attempts.items():
        with pytest.raises(PoseFileError) as raised:
            load("clip.pkl", data)
        assert str(raised.value).endswith(f"asks for {name}")


def test_instructions_that_make_objects_are_refused():
    for data, name in {
        b"\x80\x02cnumpy\nndarray\n)\x81.": "NEWOBJ",
        b"\x80\x04cnumpy\nndarray\n)}\x92.": "NEWOBJ_EX",
        b"(cnumpy\nndarray\no.": "OBJ",
        b"\x80\x02\x82\x01.": "EXT1",
        b"\x80\x02Pid\n.": "PERSID",
        b"\x80\x02NQ.": "BINPERSID",
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".": "BYTEARRAY8",
        b"\x80\x05\x97.": "NEXT_BUFFER",
        b"\x80\x04\x8f.": "EMPTY_SET",
    }.items():
        with pytest.raises(pickle.UnpicklingError, match=f"^the pickle instruction {name} is not admitted$"):
            load("clip.pkl", data)
    with pytest.raises(pickle.UnpicklingError, match="the byte 0xff is not admitted"):
        load("clip.pkl", b"\x80\x04\xff.")


def test_only_the_admitted_names_are_called_and_only_arrays_are_filled():
    for data, what in {
        b"\x80\x02cnumpy\nndarray\nK\x01\x85R.": "calls a type",
        b"\x80\x02X\x01\x00\x00\x00aK\x01\x85R.": "calls a str",
        b"\x80\x02}}b.": "sets the state of a dict",
        b"\x80\x02ccollections\nOrderedDict\n}b.": "sets the state of a method",
        b"\x80\x02cnumpy\nndarray\n}b.": "sets the state of a type",
    }.items():
        with pytest.raises(PoseFileError, match=what):
            load("clip.pkl", data)


ARRAY = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"


def array_with(shape, code="f8", raw=b"", dtype_state=("<", None, None, None)):
    """The instructions of an array with this state."""
    state = (3, *dtype_state, -1, -1, 0)
    dumped = [pickle.dumps(part, 3)[2:-1] for part in (code, state, shape, raw)]
    dtype = b"cnumpy\ndtype\n" + dumped[0] + b"\x89\x88\x87R" + dumped[1] + b"b"
    return ARRAY + b"K\x00\x85X\x01\x00\x00\x00b\x87R(K\x01" + dumped[2] + dtype + b"\x89" + dumped[3] + b"tb."


def test_arrays_that_are_not_plain_or_not_there_are_refused():
    assert load("clip.pkl", array_with((1,), raw=struct.pack("<d", 2.5))) == 2.5
    for data, message in {
        array_with((1,), "O8", b"x" * 8): "refused: an array of dtype 'O8'; only numbers and text are read",
        array_with((1,), "V8", b"x" * 8): "refused: an array of dtype 'V8'",
        array_with((1,), "f8,f8", b"x" * 16): "refused: an array of dtype 'f8,f8'",
        array_with((1,), "M8[s]", b"x" * 8): "refused: an array of dtype",
        array_with((1,), "f8", b"x" * 8, ("<", None, ("a",), {})): "refused: an array of a structured dtype",
        array_with((10**12,), "f8", b"x" * 8): "an array of shape .* has 8 bytes of data",
        array_with((10**30, 10**30), "f8"): "an array of shape enormous and dtype <f8 has 0 bytes of data",
        ARRAY + b"J\xff\xff\xff\x7f\x85X\x01\x00\x00\x00b\x87R.": "refused: .* array with memory but without data",
    }.items():
        with pytest.raises(PoseFileError, match=message):
            load("clip.pkl", data)
    with pytest.raises(ValueError, match="impossible shape"):
        load("clip.pkl", array_with((-1,)))
    assert load("clip.pkl", array_with((0, 5))).shape == (0, 5)


def test_protocol_5_arrays_are_refused_with_the_way_out():
    with pytest.raises(PoseFileError, match=r"_frombuffer; save it again with protocol=4"):
        load("clip.pkl", pickle.dumps(np.arange(3.0), protocol=5))


def nested(depth):
    return b"\x80\x02)" + b"\x85" * depth


BOMBS = {
    "a memo of 2^32 entries": b"\x80\x02}r\xff\xff\xff\xff.",
    "a text of 2^60 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"x.",
    "a frame of 2^60 bytes": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b".",
    "a hash of a tuple 300,000 deep": b"\x80\x02}" + nested(300_000)[2:] + b"K\x01s.",
    "a tuple 300,000 deep": nested(300_000) + b".",
    "a list 300,000 deep": b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b".",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "an integer of a million digits": b"I" + b"9" * 1_000_000 + b"\n.",
    "a text encoded a hundred thousand times": (
        b"\x80\x02(c_codecs\nencode\nq\x00X\xa0\x86\x01\x00" + b"x" * 100_000 + b"q\x01X\x06\x00\x00\x00latin1q\x02"
        b"\x86R" + b"h\x00h\x01h\x02\x86R" * 100_000 + b"l."
    ),
    "keypoints of 10^20 shared numbers": (
        b"\x80\x02}X\x09\x00\x00\x00keypoints"
        + b"](K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01eq\x00"
        + b"".join(b"0](" + b"h%c" % i * 10 + b"eq%c" % (i + 1) for i in range(20))
        + b"h\x14s."
    ),
    "keypoints of 10^9 shared empty lists": (
        b"\x80\x02}X\x09\x00\x00\x00keypoints]q\x000"
        + b"".join(b"](" + b"h%c" % i * 1000 + b"eq%c0" % (i + 1) for i in range(3))
        + b"](h\x03es."
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_small_files_cannot_exhaust_memory_time_or_the_stack(tmp_path, name):
    path = tmp_path / "clip.pkl"
    path.write_bytes(BOMBS[name])
    tracemalloc.start()
    started = time.monotonic()
    with pytest.raises(PoseFileError):
        load_pose(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * len(BOMBS[name]) + (16 << 20)
    assert time.monotonic() - started < 20
