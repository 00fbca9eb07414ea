"""Read a pickle of plain data without executing it.

A pickle is a program; `pickle.load` runs it, and it may call anything. Here its opcodes are walked as data: numbers,
strings, lists, dicts and numpy arrays are put together by this file, nothing is imported and nothing is called.
Whatever else is in there is an error that names it. Enough for the official python archives of CIFAR.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError


@dataclass(frozen=True)
class Name:
    """A global that the pickle names; never looked up."""

    path: str


@dataclass
class Array:
    """A numpy array in the making: what `_reconstruct` and the state that follows say about it."""

    tensor: Tensor | None = None


@dataclass(frozen=True)
class DType:
    """A numpy dtype by its code, `u1` for instance."""

    code: str


RECONSTRUCT = {"numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"}
ALLOWED = RECONSTRUCT | {"numpy ndarray", "numpy dtype", "_codecs encode"}
DTYPES = {"u1": torch.uint8, "i8": torch.int64, "i4": torch.int32, "f4": torch.float32, "f8": torch.float64}
MARK = object()
TEXT = {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
BYTES = {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}


def read_pickle(data: bytes, name: str) -> Any:
    """The value in a pickle: numbers, str, bytes, lists, tuples, dicts, and tensors for numpy arrays.

    Args:
        name: of the file, for errors.

    Raises:
        InputError: damaged, or holding anything else; the global that it wanted to call is named.
    """
    try:
        return _value(_walk(data, name))
    except InputError:
        raise
    except Exception as error:  # damaged in one of a thousand ways
        raise InputError(f"{name}: is no pickle of plain data ({type(error).__name__}: {error})") from None


def _walk(data: bytes, name: str) -> Any:
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        at = len(stack) - 1 - stack[::-1].index(MARK)
        items = stack[at + 1 :]
        del stack[at:]
        return items

    argument: Any
    for opcode, argument, _ in pickletools.genops(data):
        op = opcode.name
        if op in ("PROTO", "FRAME"):
            continue
        if op == "STOP":
            return stack.pop()
        if op in TEXT | BYTES | NUMBERS:
            stack.append(argument)
        elif op in ("NONE", "NEWTRUE", "NEWFALSE"):
            stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[op])
        elif op == "MARK":
            stack.append(MARK)
        elif op in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE"):
            stack.append({"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}[op]())
        elif op in ("LIST", "TUPLE"):
            items = since_mark()
            stack.append(items if op == "LIST" else tuple(items))
        elif op in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(op[-1])
            few = tuple(stack[-count:])
            del stack[-count:]
            stack.append(few)
        elif op == "APPEND":
            item = stack.pop()
            stack[-1].append(item)
        elif op == "APPENDS":
            items = since_mark()
            stack[-1].extend(items)
        elif op in ("SETITEM", "SETITEMS", "DICT"):
            flat = since_mark() if op != "SETITEM" else [stack.pop(-2), stack.pop()]
            pairs = dict(zip(flat[::2], flat[1::2], strict=True))
            if op == "DICT":
                stack.append(pairs)
            else:
                stack[-1].update(pairs)
        elif op in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[int(argument)] = stack[-1]
        elif op == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif op in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument)])
        elif op in ("GLOBAL", "STACK_GLOBAL"):
            path = argument if op == "GLOBAL" else f"{stack.pop(-2)} {stack.pop()}"
            if path not in ALLOWED:
                raise InputError(
                    f"{name}: wants to call {path.replace(' ', '.')!r}; wanted plain data, nothing was run"
                )
            stack.append(Name(path))
        elif op == "REDUCE":
            arguments = stack.pop()
            stack.append(_made(stack.pop(), arguments, name))
        elif op == "BUILD":
            state = stack.pop()
            _filled(stack[-1], state, name)
        else:
            raise InputError(f"{name}: holds the pickle opcode {op}; wanted plain data, nothing was run")
    raise InputError(f"{name}: is a pickle without an end")


def _made(what: Any, arguments: Any, name: str) -> Any:
    """What the few known globals would have made of their arguments."""
    if isinstance(what, Name) and what.path in RECONSTRUCT:
        return Array()
    if what == Name("numpy dtype"):
        return DType(str(arguments[0]))
    if what == Name("_codecs encode"):  # how Python 3 writes bytes in an old protocol
        return str(arguments[0]).encode("latin1")
    raise InputError(f"{name}: wants to call {what!r}; wanted plain data, nothing was run")


def _filled(what: Any, state: Any, name: str) -> None:
    """The state of an array: (version, shape, dtype, is_fortran, content)."""
    if isinstance(what, DType):
        return  # byte order of single bytes and little-endian numbers: nothing to keep
    if not isinstance(what, Array):
        raise InputError(f"{name}: sets the state of {type(what).__name__}; wanted plain data, nothing was run")
    _, shape, dtype, fortran, content = state
    if not isinstance(dtype, DType) or dtype.code not in DTYPES or fortran:
        raise InputError(f"{name}: holds an array of {dtype}, wanted plain numbers in C order")
    raw = content if isinstance(content, bytes) else str(content).encode("latin1")
    what.tensor = torch.frombuffer(bytearray(raw), dtype=DTYPES[dtype.code]).view(tuple(shape))


def _value(found: Any) -> Any:
    if isinstance(found, Array):
        return found.tensor
    if isinstance(found, dict):
        return {k: _value(v) for k, v in found.items()}
    if isinstance(found, (list, tuple)):
        return type(found)(_value(v) for v in found)
    return found
