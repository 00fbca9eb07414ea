"""Purified models as files that run without this library: torch.export, ONNX, merged weights.

The prefix runs once and the tail once, or, for class-conditional polarizers, twice: the original prediction is the
condition. A file takes any number of images, of the size of the clean ones.
"""

from __future__ import annotations

import copy
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from ..checks import check_choice, device_of, dtype_of, optional_library
from ..conditional import ConditionalPolarizer
from ..cut import frozen_view, logits_of
from ..errors import InputError, in_short
from ..files import write_atomically
from ..graph import CaptureError, GraphCut
from ..polarized import PolarizedModel, applied
from ..polarizers import Polarizer
from .merging import AGREEMENT, merge


class _Deployed(nn.Module):
    """Images (B, C, H, W) -> purified logits (B, K), of the programs of a cut."""

    def __init__(self, cut: GraphCut, polarizer: Polarizer) -> None:
        super().__init__()
        self.prefix, self.tail = cut.programs
        self.polarizer = polarizer

    def forward(self, images: Tensor) -> Tensor:
        m, *alive = self.prefix(images)
        condition = None
        if isinstance(self.polarizer, ConditionalPolarizer):
            condition = self.tail(m, *alive).argmax(1)
        logits: Tensor = self.tail(applied(self.polarizer, m, condition), *alive)
        return logits


def to_exported(purified: PolarizedModel) -> ExportedProgram:
    """The purified model as one program, for all four methods; it shares nothing with the model.

    Returns:
        images (B, C, H, W) in [0, 1] -> logits (B, K), for any B, on the device of the base. ``.module()`` runs it.

    Raises:
        InputError: the network cannot be captured as a graph, or not for any number of images.

    Example:
        >>> program = to_exported(purified)                        # doctest: +SKIP
        >>> torch.export.save(program, "purified.pt2")             # doctest: +SKIP
        >>> logits = program.module()(images)                      # doctest: +SKIP
    """
    example = torch.zeros(2, *purified.image_shape, device=device_of(purified.base), dtype=dtype_of(purified.base))
    try:
        cut = purified.cut
        if not isinstance(cut, GraphCut):
            cut = GraphCut(purified.base, purified.layer, example)
        whole = copy.deepcopy(_Deployed(cut, purified.polarizer)).eval().requires_grad_(False)
        with torch.no_grad():
            return export(whole, (example,), dynamic_shapes=({0: Dim.DYNAMIC},), strict=False)
    except InputError:
        raise
    except CaptureError as error:
        reason = str(error)
    except Exception as error:  # export fails in as many ways as there are models
        reason = in_short(error)
    raise InputError(f"purified: its network cannot be exported as one graph for any number of images ({reason})")


def write_exported(
    purified: PolarizedModel, path: str | os.PathLike[str], format: str = "torch", *, network: str = ""
) -> float:
    """Write a purified model to a file, once what is to be written gives the model's logits.

    Args:
        path: in a folder that exists.
        format: "torch", a program for `torch.export.load`; "onnx", one file below 2 GB, with input `images` and output
            `logits` (extra `export`); "safetensors", the state dict of the merged model under the base's own names and
            shapes, see `merge`.
        network: with "safetensors": the submodule whose state dict is wanted, where the base is a wrapper; "model"
            behind `with_normalization`.

    Returns:
        The largest difference of the logits of 1 and 7 random images from the model's, divided by the largest logit
        where that is above 1. At most 1e-4; 2e-2 for networks in half precision.

    Raises:
        InputError: another format, a library that is missing, a model that cannot be captured or merged, or a file that
            would give other logits; nothing is written then.

    Example:
        >>> write_exported(purified, "purified.onnx", "onnx")      # doctest: +SKIP
        1.7e-08
    """
    check_choice("format", format, FORMATS)
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"path: found {str(path)!r}, wanted a file in a folder that exists")
    if network and (format != "safetensors" or network not in dict(purified.base.named_modules())):
        raise InputError(f"network: found {network!r} for {format}, wanted a submodule of the base, for safetensors")
    make, load = FORMATS[format]
    data = make(purified, network)
    found = _difference(purified, load(data, purified, network))
    bound = AGREEMENT if dtype_of(purified.base) in (torch.float32, torch.float64) else 2e-2
    if not found <= bound:
        raise InputError(f"format: the logits of {format} differ by {found:.2g} from the model's, wanted {bound:g}")
    write_atomically(path, data)
    return found


@torch.no_grad()
def _difference(purified: PolarizedModel, forward: Callable[[Tensor], Tensor]) -> float:
    worst, order = torch.zeros(()), torch.Generator().manual_seed(0)
    for count in (1, 7):
        images = torch.rand(count, *purified.image_shape, generator=order)
        wanted = purified(images.to(device_of(purified.base), dtype_of(purified.base))).cpu()
        found = forward(images.to(wanted.dtype)).cpu()
        worst = torch.maximum(worst, (found - wanted).abs().max() / wanted.abs().max().clamp_min(1))  # keeps NaN
    return worst.item()


def _torch_file(purified: PolarizedModel, _: str) -> bytes:
    file = io.BytesIO()
    torch.export.save(to_exported(purified), file)
    return file.getvalue()


def _from_torch(data: bytes, purified: PolarizedModel, _: str) -> Callable[[Tensor], Tensor]:
    run: Callable[[Tensor], Tensor] = torch.export.load(io.BytesIO(data)).module()
    return lambda images: run(images.to(device_of(purified.base)))


def _onnx_file(purified: PolarizedModel, _: str) -> bytes:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        optional_library("format", name, "export")
    if dtype_of(purified.base) == torch.bfloat16:
        raise InputError("format: found a network in bfloat16, which onnxruntime does not run; wanted model.float()")
    program = to_exported(purified)
    with _quiet():
        try:
            made: Any = torch.onnx.export(
                program, dynamo=True, input_names=["images"], output_names=["logits"], verbose=False
            )
            data: bytes = made.model_proto.SerializeToString()
        except Exception as error:  # an operation without a counterpart, or more than 2 GB
            raise InputError(f"format: the network cannot be written as ONNX ({in_short(error)})") from None
    return data


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of operations that it could have handled, too, and of its own deprecated calls."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _from_onnx(data: bytes, purified: PolarizedModel, _: str) -> Callable[[Tensor], Tensor]:
    runtime = optional_library("format", "onnxruntime", "export")
    try:
        session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no base of their own
        raise InputError(f"format: onnxruntime does not take the file ({in_short(error)})") from None
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _merged_file(purified: PolarizedModel, network: str) -> bytes:
    state = merge(purified).get_submodule(network).state_dict()
    added = sorted(set(state) - set(purified.base.get_submodule(network).state_dict()))
    if added:
        raise InputError(
            f"purified: merged, its layer {purified.layer!r} needs a bias ({added[0]}), which the original has not: "
            "the file would not fit the architecture; call merge(), or purify with FitConfig(mergeable=True)"
        )
    return safetensors.torch.save({k: v.detach().cpu().contiguous().clone() for k, v in state.items()})


def _from_merged(data: bytes, purified: PolarizedModel, network: str) -> Callable[[Tensor], Tensor]:
    whole = copy.deepcopy(frozen_view(purified.base))
    whole.get_submodule(network).load_state_dict(safetensors.torch.load(data))
    return lambda images: logits_of(whole(images.to(device_of(purified.base))))


# How a file is made, and how what is in it runs; the text is `network` of `write_exported`.
Make = Callable[[PolarizedModel, str], bytes]
Load = Callable[[bytes, PolarizedModel, str], Callable[[Tensor], Tensor]]
FORMATS: dict[str, tuple[Make, Load]] = {
    "torch": (_torch_file, _from_torch),
    "onnx": (_onnx_file, _from_onnx),
    "safetensors": (_merged_file, _from_merged),
}
