"""Pickles that would create a file, put together opcode by opcode: nothing here is run, or imported, to make them."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from typing import Any


def plain(value: Any, protocol: int = 2) -> bytes:
    """The opcodes of plain data, without the frame around them."""
    if protocol < 2:
        return pickle.dumps(value, protocol)[:-1]
    return pickle.dumps(value, 2)[2:-1]


def text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def named(path: str) -> bytes:
    module, _, name = path.rpartition(".")
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def on_stack(path: str) -> bytes:
    module, _, name = path.rpartition(".")
    return text(module) + text(name) + b"\x93"


def call(path: str, *arguments: Any) -> bytes:
    return named(path) + plain(arguments) + b"R"


def whole(body: bytes, protocol: int = 2) -> bytes:
    return (b"\x80" + bytes([protocol]) if protocol >= 2 else b"") + body + b"."


def payloads(canary: str) -> dict[str, bytes]:
    """What would create the file `canary` if it were run, by the global that does it."""
    touch, python = f"touch '{canary}'", f"open({canary!r}, 'w').close()"
    inner = whole(call("os.system", touch))
    simple: dict[str, tuple[Any, ...]] = {
        "os.system": (touch,),
        "posix.system": (touch,),
        "os.popen": (touch,),
        "os.mkdir": (canary,),
        "os.mkfifo": (canary,),
        "os.symlink": ("/etc/passwd", canary),
        "posix.mkdir": (canary,),
        "subprocess.Popen": (["touch", canary],),
        "subprocess.call": (["touch", canary],),
        "subprocess.check_output": (["touch", canary],),
        "subprocess.getoutput": (touch,),
        "pty.spawn": (["touch", canary],),
        "builtins.eval": (python,),
        "__builtin__.eval": (python,),
        "builtins.exec": (python,),
        "builtins.open": (canary, "w"),
        "io.open": (canary, "w"),
        "_io.FileIO": (canary, "w"),
        "codecs.open": (canary, "w"),
        "gzip.open": (canary, "w"),
        "zipfile.ZipFile": (canary, "w"),
        "tarfile.open": (canary, "w"),
        "sqlite3.connect": (canary,),
        "shelve.open": (canary,),
        "logging.FileHandler": (canary,),
        "shutil.copyfile": ("/etc/hostname", canary),
        "timeit.timeit": (python,),
        "cProfile.run": (python,),
        "profile.run": (python,),
        "pdb.run": (python,),
        "runpy._run_code": (python, {}),
        "code.interact": (None, None, {}),
        "pickle.loads": (inner,),
        "_pickle.loads": (inner,),
        "importlib.import_module": ("antigravity",),
        "ctypes.CDLL": ("libc.so.6",),
        "numpy.save": (canary, 1),
        "numpy.testing._private.utils.runstring": (python, {}),
        "torch.load": (canary,),
        "torch.save": (1, canary),
        "torch.storage._load_from_bytes": (inner,),
        "torch.jit.load": (canary,),
        "torch.hub.load": ("a/b", "c"),
        "torch.hub.load_state_dict_from_url": (f"file://{canary}",),
        "torch.utils.cpp_extension.load_inline": ("x", python),
        "torch.serialization.load": (canary,),
        "torch._utils._rebuild_wrapper_subclass": (1, 2),
        "torch._tensor._rebuild_from_type_v2": (print, int, (), {}),
        "torch.nn.modules.linear.Linear": (2, 2),
        "collections.defaultdict": (list,),
        "argparse.Namespace": (),
        "safetensors.torch.save_file": ({}, canary),
    }
    return {path: call(path, *arguments) for path, arguments in simple.items()}


def spellings(canary: str) -> dict[str, bytes]:
    """Other opcodes, and detours, to the same end."""
    touch = f"touch '{canary}'"
    system, arguments = named("os.system"), plain((touch,))
    return {
        "stack-global": whole(on_stack("os.system") + arguments + b"R", 4),
        "memoized-names": whole(text("os") + b"\x94" + text("system") + b"\x94" + b"h\x00h\x01\x93" + arguments + b"R", 4),
        "inst": whole(b"(" + text(touch) + b"ios\nsystem\n"),
        "obj": whole(b"(" + system + text(touch) + b"o"),
        "newobj": whole(system + arguments + b"\x81"),
        "newobj-ex": whole(system + arguments + b"}\x92", 4),
        "protocol-0": whole(b"cos\nsystem\n(V" + touch.encode() + b"\ntR", 0),
        "setstate": whole(named("collections.OrderedDict") + b")R" + b"}" + text("__setstate__") + system + b"sb" + text(touch) + b"b"),
        "getattr": whole(call("builtins.getattr", 1, "x") + arguments + b"R"),
        "attrgetter": whole(call("operator.attrgetter", "system") + b"\x85R" + arguments + b"R"),
        "partial": whole(named("functools.partial") + system + arguments + b"\x86R" + b")R"),
        "map": whole(named("builtins.list") + named("builtins.map") + system + plain([touch]) + b"\x86R\x85R"),
        "import": whole(named("builtins.getattr") + call("builtins.__import__", "os") + text("system") + b"\x86R" + arguments + b"R"),
        "popped": whole(system + arguments + b"R0" + plain({"fine": 1})),
        "dict-key": whole(b"}" + system + arguments + b"R" + b"K\x01s"),
        "extension": whole(b"\x82\x01" + arguments + b"R"),
        "hidden-module": whole(named("torch.serialization.os.system") + arguments + b"R"),
        "allowed-alias": whole(named("torch._utils.sys.modules") + arguments + b"R"),
        "called-storage": whole(named("torch.FloatStorage") + arguments + b"R"),
        "called-dtype": whole(named("numpy.dtype") + arguments + b"R" + arguments + b"R"),
        "state-of-array": whole(named("numpy._core.multiarray._reconstruct") + b")R" + system + arguments + b"Rb"),
    }  # fmt: skip


def torch_zip(pickled: bytes, storages: dict[str, bytes] | None = None, **more: bytes) -> bytes:
    """An archive as torch.save writes it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        members = {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n", **more}
        for name, content in {**members, **{f"data/{k}": v for k, v in (storages or {}).items()}}.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)
    return out.getvalue()


def edited(saved: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """What torch.save wrote, with another pickle inside."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved)) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            new.writestr(
                zipfile.ZipInfo(info.filename), change(content) if info.filename.endswith("data.pkl") else content
            )
    return out.getvalue()


def with_entry(value: bytes) -> Callable[[bytes], bytes]:
    """One more entry in the dict that a pickle ends with."""
    return lambda pickled: pickled[:-1] + text("one more") + value + b"s."


def tensor(
    size: tuple[int, ...], stride: tuple[int, ...], *, count: int = 4, offset: int = 0, kind: str = "FloatStorage"
) -> bytes:
    """A tensor of torch.save's own spelling, with whatever sizes."""
    key = b"(" + text("storage") + named(f"torch.{kind}") + text("0") + text("cpu") + plain(count) + b"tQ"
    rest = plain(offset) + plain(size) + plain(stride) + b"\x89" + named("collections.OrderedDict") + b")R"
    return named("torch._utils._rebuild_tensor_v2") + b"(" + key + rest + b"tR"


def state_of(**tensors: bytes) -> bytes:
    return whole(b"}" + b"".join(text(k) + v + b"s" for k, v in tensors.items()))
