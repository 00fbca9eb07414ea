"""Read a pickle of plain data without executing it.

A pickle is a program; `pickle.load` runs it, and it may call anything. Here its opcodes are walked as data: numbers,
strings, lists, dicts and numpy arrays are put together by this file, nothing is imported and nothing of the pickle's
choice is called. Whatever else is in there is an error that names it.

`torch.load(weights_only=True)` allows more than is needed here, makes what it reads before anybody can compare sizes,
and had holes of its own (CVE-2025-32434, for one); so torch's files go through this walker too, see `torch_file.py`.
"""

from __future__ import annotations

import io
import math
import pickletools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import InputError, in_short

MAX_OPCODES = 2_000_000
MAX_PICKLES = 16  # in a row; PyTorch wrote five
MAX_NAMED = 64  # foreign globals that are remembered for the message
# What is remembered once can be used a million times, by two bytes each: every use is bounded, and their sum.
MAX_NAME = 512  # characters of a global
MAX_ARGUMENTS = 16
MAX_MADE = 16 << 20  # bytes that are made by calls, beside a few times the bytes of the pickle

Maker = Callable[..., Any]


@dataclass(frozen=True)
class Name:
    """A global that the pickle names and somebody here knows; never looked up."""

    path: str


@dataclass(frozen=True)
class Foreign:
    """What only running the pickle would make."""

    path: str


class NotPlain(InputError):
    """A pickle that would call something; `foreign` has the names."""

    def __init__(self, message: str, foreign: list[str]) -> None:
        super().__init__(message)
        self.foreign = foreign


def read_pickle(
    data: bytes | bytearray,
    name: str,
    *,
    makers: Mapping[str, Maker] | None = None,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """The value in a pickle: numbers, str, bytes, lists, tuples, dicts, and tensors for numpy arrays.

    Args:
        name: of the file, for errors.
        makers: for more globals, by "module name": what stands for the outcome of calling them. They get arguments
            that a stranger chose.
        persistent: what stands for a persistent id; without it there may be none.

    Raises:
        InputError: damaged, or holding anything else; the globals that it wanted to call are named.
    """
    walk = Walk(io.BytesIO(data), {**NUMPY, **(makers or {})}, persistent, budget=MAX_MADE + 4 * len(data))
    try:
        value = _plain(walk.run(), {})
    except Exception as error:  # damaged in one of a thousand ways
        if not walk.foreign:
            raise InputError(f"{name}: is no pickle of plain data ({in_short(error)}); nothing was run") from None
    if walk.foreign:
        raise NotPlain(f"{name}: wants to call {said(walk.foreign)}; wanted plain data, nothing was run", walk.foreign)
    return value


def foreign_globals(file: BinaryIO, makers: Mapping[str, Maker]) -> list[str]:
    """What the pickles at the beginning of a file would call beside `makers`, as far as they can be followed."""
    found: list[str] = []
    known = {**NUMPY, **makers}
    try:
        for _ in range(MAX_PICKLES):
            if file.read(1) != b"\x80":
                break
            file.seek(-1, io.SEEK_CUR)
            walk = Walk(file, known, lambda key: None)
            try:
                walk.run()
            finally:
                found += walk.foreign
    except Exception:  # what comes after the pickles is of no interest
        return found
    return found


def said(names: list[str], count: int = 6) -> str:
    """The first of them, quoted and shortened: they are the words of a stranger."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(repr(n[:80]) for n in names[:count]) + more


TEXT = {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
BYTES = {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
LITERALS = TEXT | BYTES | NUMBERS
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}


class Walk:
    """One pickle, walked opcode by opcode."""

    def __init__(
        self,
        file: BinaryIO,
        makers: Mapping[str, Maker],
        persistent: Callable[[Any], Any] | None = None,
        *,
        budget: int = MAX_MADE,
    ) -> None:
        self.foreign: list[str] = []
        self._file, self._makers, self._persistent, self._budget = file, makers, persistent, budget
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks that lie below each mark
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(self._file)):
            if count > MAX_OPCODES:
                raise InputError(f"more than {MAX_OPCODES} opcodes")
            if opcode.name == "STOP":
                return self._stack.pop()
            self._step(opcode.name, argument)
        raise InputError("no end")

    def _step(self, op: str, argument: Any) -> None:
        stack, memo = self._stack, self._memo
        if op in ("PROTO", "FRAME"):
            return
        if op in LITERALS:
            stack.append(argument)
        elif op in CONSTANTS:
            stack.append(CONSTANTS[op])
        elif op == "MARK":
            self._below.append(stack)
            self._stack = []
        elif op in EMPTY:
            stack.append(EMPTY[op]())
        elif op in ("LIST", "TUPLE"):
            items = self._since_mark()
            self._stack.append(items if op == "LIST" else tuple(items))
        elif op in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(op[-1])
            few = tuple(stack[-count:])
            del stack[-count:]
            stack.append(few)
        elif op == "APPEND":
            item = stack.pop()
            self._extend(stack[-1], [item])
        elif op == "APPENDS":
            items = self._since_mark()
            self._extend(self._stack[-1], items)
        elif op in ("SETITEM", "SETITEMS", "DICT"):
            flat = self._since_mark() if op != "SETITEM" else [stack.pop(-2), stack.pop()]
            if op == "DICT":
                self._stack.append({})
            self._update(self._stack[-1], flat)
        elif op in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[int(argument)] = stack[-1]
        elif op == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif op in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument)])
        elif op == "GLOBAL":
            stack.append(self._named(argument))
        elif op == "STACK_GLOBAL":
            stack.append(self._named(f"{_text(stack.pop(-2), MAX_NAME)} {_text(stack.pop(), MAX_NAME)}"))
        elif op in ("REDUCE", "NEWOBJ"):
            arguments = stack.pop()
            stack.append(self._made(stack.pop(), arguments))
        elif op == "INST":
            arguments = self._since_mark()
            self._stack.append(self._made(self._named(argument), arguments))
        elif op == "OBJ":
            what, *arguments = self._since_mark()
            self._stack.append(self._made(what, arguments))
        elif op == "BUILD":
            state = stack.pop()
            self._spend(_build(stack[-1], state))
        elif op == "BINPERSID" and self._persistent:
            stack.append(self._persistent(stack.pop()))
        else:
            raise InputError(f"the opcode {op}")

    def _since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _named(self, path: str) -> Name | Foreign:
        if len(path) > MAX_NAME:
            raise InputError(f"a global with a name of {len(path)} characters")
        if path in self._makers:
            return Name(path)
        written = path.replace(" ", ".")
        if written not in self.foreign and len(self.foreign) < MAX_NAMED:
            self.foreign.append(written)
        return Foreign(path)

    def _made(self, what: Any, arguments: Any) -> Any:
        """What stands for the outcome of a call."""
        if isinstance(what, Foreign):
            return what
        if not isinstance(what, Name) or not isinstance(arguments, (tuple, list)) or len(arguments) > MAX_ARGUMENTS:
            raise InputError(f"a call of a {type(what).__name__} with a {type(arguments).__name__}")
        made = self._makers[what.path](*arguments)
        self._spend(sys.getsizeof(made))
        return made

    def _spend(self, size: int) -> None:
        self._budget -= size
        if self._budget < 0:
            raise InputError("much more than there is room for in the file")

    def _extend(self, target: Any, items: list[Any]) -> None:
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Foreign):
            raise InputError(f"items for a {type(target).__name__}")

    def _update(self, target: Any, flat: list[Any]) -> None:
        if isinstance(target, dict):
            target.update(zip(map(_key, flat[::2]), flat[1::2], strict=True))
        elif not isinstance(target, Foreign):
            raise InputError(f"items for a {type(target).__name__}")


def _text(value: Any, limit: float = math.inf) -> str:
    """A string; anything else is not turned into one, for a list of lists of lists may be endless when written out."""
    if not isinstance(value, str) or len(value) > limit:
        raise InputError(f"a {type(value).__name__} where a text belongs, or a text that is too long")
    return value


def are_sizes(numbers: Any) -> bool:
    """A few whole numbers that may be the size of something."""
    few = isinstance(numbers, (tuple, list)) and len(numbers) <= MAX_DIMENSIONS
    return few and all(type(n) is int and 0 <= n < 1 << 62 for n in numbers)


def as_dict(items: Any = ()) -> dict[Any, Any]:
    """What a class like `dict` makes of a dict or pairs."""
    pairs = items.items() if isinstance(items, dict) else items
    if not isinstance(items, (dict, list, tuple)):
        raise InputError(f"a dict of a {type(items).__name__}")
    return {_key(k): v for k, v in pairs}


def _key(key: Any) -> Any:
    """The key of a dict: of a type whose hashes nobody can make collide by the million."""
    if isinstance(key, int) and not -(1 << 63) <= key < 1 << 63:
        raise InputError("a key that is a huge number")
    if not isinstance(key, (str, bytes, int, float, Foreign)):
        raise InputError(f"a key that is a {type(key).__name__}")
    return key


@dataclass
class Array:
    """A numpy array in the making: what `_reconstruct` and the state that follows say about it."""

    tensor: Tensor | None = None


@dataclass(frozen=True)
class DType:
    """A numpy dtype by its code, `u1` for instance."""

    code: str


MAX_DIMENSIONS = 64
DTYPES = {
    "u1": torch.uint8, "i8": torch.int64, "i4": torch.int32, "i2": torch.int16, "i1": torch.int8, "b1": torch.bool,
    "f2": torch.float16, "f4": torch.float32, "f8": torch.float64,
}  # fmt: skip


def _build(what: Any, state: Any) -> int:
    """Give an object its state; the bytes that it takes."""
    if isinstance(what, DType):
        if state[1] not in ("<", "|", "="):
            raise InputError("numbers whose first byte is the highest")
    elif isinstance(what, Array):
        _, shape, dtype, fortran, content = state
        if fortran:
            raise InputError("an array in Fortran's order")
        what.tensor = _numbers(content, dtype, shape)
        return what.tensor.nbytes
    elif not isinstance(what, (dict, Foreign)):  # of a dict: attributes, such as a state dict's _metadata
        raise InputError(f"a state for a {type(what).__name__}")
    return 0


def _numbers(content: bytes | str, dtype: DType, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(dtype, DType) or not are_sizes(shape):
        raise InputError("an array of no plain numbers")
    raw = content if isinstance(content, bytes) else _text(content).encode("latin1")
    if dtype.code not in DTYPES:
        raise InputError(f"an array of the type {dtype.code!r:.20}")
    kind = DTYPES[dtype.code]
    if math.prod(shape) * kind.itemsize != len(raw):
        raise InputError(f"an array of {len(raw)} bytes that claims another size")
    return torch.frombuffer(bytearray(raw), dtype=kind).view(shape) if raw else torch.zeros(shape, dtype=kind)


def _scalar(dtype: DType, content: bytes | str) -> bool | int | float:
    return _numbers(content, dtype, ()).item()


# What the globals of numpy's own pickles make of their arguments.
NUMPY: dict[str, Maker] = {
    "numpy ndarray": Array,
    "numpy dtype": lambda code, *_: DType(_text(code, MAX_NAME)),
    "_codecs encode": lambda text, *_: _text(text).encode("latin1"),  # how Python 3 writes bytes in an old protocol
    **{f"numpy.{core}.multiarray _reconstruct": lambda *_: Array() for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray scalar": _scalar for core in ("core", "_core")},
}


def _plain(found: Any, done: dict[int, Any]) -> Any:
    """The value with tensors for arrays; what is there many times is gone through once."""
    if isinstance(found, Array):
        return found.tensor
    if not isinstance(found, (dict, list, tuple)):
        return found
    if id(found) not in done:
        if isinstance(found, tuple):
            done[id(found)] = tuple(_plain(v, done) for v in found)
        elif isinstance(found, list):
            new: list[Any] = []
            done[id(found)] = new
            new.extend(_plain(v, done) for v in found)
        else:
            table: dict[Any, Any] = {}
            done[id(found)] = table
            table.update((k, _plain(v, done)) for k, v in found.items())
    return done[id(found)]
