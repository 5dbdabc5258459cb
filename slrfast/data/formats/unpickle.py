"""Reading a pickle without running it.

A pickle is a program. This interpreter executes only its data instructions; the few names it may look up are exact
(module, name) pairs, and what they stand for is written here: no function of NumPy or of the standard library is
ever handed to the file. Sizes are checked before anything is built, so a small file cannot ask for a large array.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from types import MethodType
from typing import Any

import numpy as np

from slrfast.errors import PoseFileError

_DTYPE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248]|[SU][1-9][0-9]{0,3})")
_ENCODINGS = ("latin1", "latin-1", "iso-8859-1")
_INERT = (
    "PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT "
    "BINBYTES SHORT_BINBYTES BINBYTES8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 TUPLE EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT "
    "PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET"
).split()


def load(path: str, data: bytes) -> Any:
    """The numbers, texts, lists, dicts and plain arrays in a pickle.

    Raises:
        PoseFileError: it looks up any other name, uses an instruction that could run something, or claims arrays larger
            than itself. Damaged bytes raise whatever the interpreter stumbles over.
    """
    return _DataUnpickler(path, data).load()


class _Array(np.ndarray):
    """An array under construction; nothing but :meth:`_DataUnpickler.load_build` fills it."""


class _Dtype:
    """A plain dtype by its code, with the byte order that follows as its state."""

    def __init__(self, code: str) -> None:
        self.code = code

    def numpy(self) -> np.dtype:
        return np.dtype(self.code)


class _Dispatch(dict):
    """Instruction byte -> method; what is not listed is refused by name."""

    def __missing__(self, code: int) -> Any:
        name = {ord(op.code): op.name for op in pickletools.opcodes}.get(code)
        what = f"the pickle instruction {name}" if name else f"the byte {code:#04x}"
        raise pickle.UnpicklingError(f"{what} is not admitted")


_Interpreter: Any = pickle._Unpickler  # the one written in Python: its memo is a dict and its table can be replaced


class _DataUnpickler(_Interpreter):
    dispatch = _Dispatch((getattr(pickle, name)[0], _Interpreter.dispatch[getattr(pickle, name)[0]]) for name in _INERT)

    def __init__(self, path: str, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.path = path
        self.budget = 4 * len(data) + 4096
        arrays = {"_reconstruct": self._reconstruct, "scalar": self._scalar}
        self.names: dict[tuple[str, str], object] = {
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): self._dtype,
            ("_codecs", "encode"): self._encode,
            ("collections", "OrderedDict"): self._ordered_dict,
            **{(f"numpy.{core}.multiarray", name): make for core in ("core", "_core") for name, make in arrays.items()},
        }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.names:
            hint = "; save it again with protocol=4" if name == "_frombuffer" else ""
            raise PoseFileError(self.path, f"refused: the pickle asks for {module[:80]}.{name[:80]}{hint}")
        return self.names[module, name]

    def persistent_load(self, pid: object) -> Any:
        raise PoseFileError(self.path, "refused: the pickle asks for an object outside the file")

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        if not isinstance(function, MethodType) or not isinstance(arguments, tuple):
            raise PoseFileError(self.path, f"refused: the pickle calls a {type(function).__name__}")
        self.stack[-1] = function(*arguments)

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, _Dtype):
            self._set_dtype(target, state)
        elif type(target) is _Array:
            self._set_array(target, state)
        else:
            raise PoseFileError(self.path, f"refused: the pickle sets the state of a {type(target).__name__}")

    def load_inst(self) -> None:
        module, name = (self.readline()[:-1].decode("ascii") for _ in range(2))
        self.find_class(module, name)
        raise PoseFileError(self.path, f"refused: the pickle makes an instance of {module}.{name}")

    def load_setitem(self) -> None:
        self._fill(self.stack[-3], self.stack[-2:])
        del self.stack[-2:]

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self._fill(self.stack[-1], items)

    def load_dict(self) -> None:
        items = self.pop_mark()
        made: dict = {}
        self._fill(made, items)
        self.append(made)

    dispatch.update(
        {
            pickle.GLOBAL[0]: _Interpreter.load_global,
            pickle.STACK_GLOBAL[0]: _Interpreter.load_stack_global,
            pickle.REDUCE[0]: load_reduce,
            pickle.BUILD[0]: load_build,
            pickle.INST[0]: load_inst,
            pickle.SETITEM[0]: load_setitem,
            pickle.SETITEMS[0]: load_setitems,
            pickle.DICT[0]: load_dict,
        }
    )

    def _fill(self, target: object, items: list) -> None:
        """Only texts and integers are keys: hashing a deeply nested tuple would overflow the stack."""
        if type(target) is not dict or len(items) % 2:
            raise TypeError("items for something that is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, (str, int)):
                raise TypeError(f"a dict key of type {type(key).__name__}")
            target[key] = value

    def _spend(self, size: int) -> None:
        self.budget -= size
        if self.budget < 0:
            raise PoseFileError(self.path, "refused: the pickle builds far more data than it holds")

    def _ordered_dict(self) -> dict:
        return {}

    def _encode(self, text: str, encoding: str) -> bytes:
        if not isinstance(text, str) or encoding not in _ENCODINGS:
            raise TypeError("bytes in an unknown encoding")
        self._spend(len(text))
        return text.encode("latin1")

    def _dtype(self, code: str, align: object = False, copy: object = True) -> _Dtype:
        if not isinstance(code, str):
            raise TypeError("a dtype without code")
        if not _DTYPE.fullmatch(code):
            raise PoseFileError(self.path, f"refused: an array of dtype {code[:40]!r}; only numbers and text are read")
        return _Dtype(code)

    def _set_dtype(self, dtype: _Dtype, state: object) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "|", "="):
            raise TypeError("a dtype without byte order")
        if any(part is not None for part in state[2:5]):
            raise PoseFileError(self.path, "refused: an array of a structured dtype; only numbers and text are read")
        dtype.code = state[1] + dtype.code.lstrip("<>=|")

    def _reconstruct(self, kind: object, shape: object, code: object) -> _Array:
        if kind is not _Array or shape != (0,):
            raise PoseFileError(self.path, "refused: the pickle asks for an array with memory but without data")
        return np.empty(0, np.int8).view(_Array)

    def _set_array(self, array: _Array, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes) or not isinstance(shape, tuple):
            raise TypeError("an array without dtype, shape or bytes")
        itemsize, count = dtype.numpy().itemsize, 1
        for size in shape:
            if not isinstance(size, int) or size < 0 or len(shape) > 8:
                raise ValueError("an array with an impossible shape")
            count *= size
        if count * itemsize != len(raw):
            shown = list(shape) if count < 1 << 60 else "enormous"
            raise PoseFileError(
                self.path, f"an array of shape {shown} and dtype {dtype.code} has {len(raw)} bytes of data"
            )
        self._spend(len(raw))
        np.ndarray.__setstate__(array, (1, shape, dtype.numpy(), bool(fortran), raw))  # type: ignore[arg-type]

    def _scalar(self, dtype: object, raw: object) -> Any:
        if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes) or len(raw) != dtype.numpy().itemsize:
            raise TypeError("a scalar without dtype or bytes")
        self._spend(len(raw))
        return np.frombuffer(raw, dtype.numpy())[0].item()
