"""Folders of Hugging Face: `config.json`, weights, and `preprocessor_config.json`, each read as input from strangers.

Neither a name nor an address in them is followed. Of the configuration only the numbers and choices that its class
knows are taken; the weights go through our own readers.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError, in_short
from ..files import read_json_object
from ..tensorfile import Stored, open_safetensors
from .elsewhere import FromElsewhere, import_library
from .filling import COUNTER, read_weights
from .normalization import Statistics, statistics_of
from .sketch import sketch
from .state_dict import find_state_dict
from .torch_file import read_torch_file

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
MAX_JSON = 8 << 20  # bytes; the labels of ImageNet-21k need 1.6 million
MAX_NUMBER = 32_768  # of any size in a configuration
MAX_ITEMS = 32  # of any list
MAX_BUFFERS = 1 << 26  # numbers that a network makes for itself, beside its weights
# What reaches beyond the network: other models, other files, other code.
NEVER = ("backbone", "timm", "quant", "kernel_config", "attn_impl")
UNUSED = (".pooler.", "relative_position_index", "position_ids", COUNTER)  # of a classifier's weights
LABELS = ("id2label", "label2id")


def read_hugging_face(
    folder: Path, *, classes: int | None = None, normalization: str | Statistics | None = None
) -> nn.Module:
    """The image classifier in a folder that `save_pretrained` of transformers wrote; takes images in [0, 1].

    Args:
        folder: with `config.json`, and `model.safetensors` or `pytorch_model.bin`; nothing is fetched, nothing in it is
            run.
        classes: only to insist on that many.
        normalization: see `statistics_of`; None takes `image_mean` and `image_std` of `preprocessor_config.json`.

    Raises:
        InputError: transformers is not installed, a configuration of no image classifier or one that brings its own
            code, weights that do not fit it or are damaged, no normalisation.

    Example:
        >>> read_hugging_face(Path("vit-base-patch16-224"))(torch.rand(1, 3, 224, 224)).shape  # doctest: +SKIP
        torch.Size([1, 1000])
    """
    values = read_json_object(folder / CONFIG, limit=MAX_JSON)
    if "auto_map" in values:
        raise InputError(
            f"model: {folder / CONFIG} brings its own code (auto_map), which is not run; where it is trusted, save the "
            "state dict, and name a function of your own that builds the network: --arch path/to/file.py:function"
        )
    stored = _weights(folder)
    transformers = import_library("transformers")
    config = _config(transformers, values, folder / CONFIG)
    build = partial(transformers.AutoModelForImageClassification.from_config, config, trust_remote_code=False)
    with _quiet(transformers):
        kind, channels = _compared(build, stored, folder)
        state = {name: value.clone() for name, value in read_weights(stored, str(folder)).items()}
        model = _loaded(kind, config, state, folder)
    if classes not in (None, config.num_labels):
        raise InputError(f"classes: found {classes}, but {folder / CONFIG} says {config.num_labels}; leave it out")
    mean, std = _statistics(folder) if normalization is None else statistics_of(normalization)
    if len(mean) not in (1, channels):
        raise InputError(f"normalization: found {len(mean)} means, wanted one or {channels}, a value per channel")
    return FromElsewhere(model, mean, std).eval()


def _weights(folder: Path) -> dict[str, Stored]:
    if (folder / "model.safetensors").exists():
        return open_safetensors(folder / "model.safetensors")
    if (folder / "pytorch_model.bin").exists():
        return find_state_dict(read_torch_file(folder / "pytorch_model.bin"), str(folder / "pytorch_model.bin"))
    raise InputError(
        f"model: {folder} holds neither model.safetensors nor pytorch_model.bin; weights in parts are not read"
    )


def _config(transformers: Any, values: Mapping[str, Any], source: Path) -> Any:
    """The configuration, with what its class knows and nothing else."""
    kind = values.get("model_type")
    known = transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    if not isinstance(kind, str) or kind not in known or any(word in kind for word in NEVER):
        raise InputError(f"model: {source}: found model_type {kind!r:.80}, wanted an image classifier of transformers")
    cls = transformers.models.auto.configuration_auto.CONFIG_MAPPING[kind]
    takes = inspect.signature(cls.__init__).parameters
    options = {}
    for name, value in values.items():
        if name in LABELS:
            if not isinstance(value, dict):
                raise InputError(f"model: {source}: {name}: found a {type(value).__name__}, wanted an object")
            options[name] = value
        elif (
            (name in takes or name == "num_labels")
            and not name.startswith("_")
            and not any(word in name for word in NEVER)
        ):
            options[name] = _checked(value, f"{source}: {name}")
    for name in ("dtype", "torch_dtype", "architectures", "transformers_version"):
        options.pop(name, None)
    try:
        return cls(**options)
    except Exception as error:  # whatever a class of theirs makes of a stranger's values
        raise InputError(f"model: {source} describes no {kind} ({in_short(error)})") from None


def _checked(value: Any, where: str, depth: int = 2) -> Any:
    """Numbers and lists of a believable size, short texts."""
    if isinstance(value, list) and len(value) <= MAX_ITEMS and depth:
        return [_checked(v, where, depth - 1) for v in value]
    fits = value is None or isinstance(value, bool) or (isinstance(value, str) and len(value) <= 80)
    if not fits and not (isinstance(value, (int, float)) and math.isfinite(value) and abs(value) <= MAX_NUMBER):
        raise InputError(
            f"model: {where}: found {value!r:.80}, wanted a number up to {MAX_NUMBER}, a word, or a few of them"
        )
    return value


def _compared(build: partial[Any], stored: Mapping[str, Stored], folder: Path) -> tuple[Any, int]:
    """The class of the network and its channels, once it is known that the file can fill it."""
    try:
        outline = sketch(build, len(stored))
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"model: {folder / CONFIG} describes no network ({in_short(error)})") from None
    state = outline.state_dict()
    wanted, held = (sum(math.prod(v.shape) for v in tensors.values()) for tensors in (state, stored))
    extra = sum(b.numel() for n, b in outline.named_buffers() if n not in state)
    if wanted > held or extra > MAX_BUFFERS:
        raise InputError(
            f"model: {folder / CONFIG} describes {wanted} weights and {extra} numbers more, the file holds {held}"
        )
    channels = next((v.shape[1] for v in state.values() if v.ndim == 4), 3)
    return type(outline), channels


def _loaded(kind: Any, config: Any, state: dict[str, torch.Tensor], folder: Path) -> nn.Module:
    """The network with its weights; transformers knows the names that older versions of it gave them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model, said = kind.from_pretrained(
                None,
                config=config,
                state_dict=state,
                local_files_only=True,
                output_loading_info=True,
                dtype=torch.float32,
            )
        except Exception as error:
            raise InputError(f"model: the weights in {folder} do not fit its {CONFIG} ({in_short(error)})") from None
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        odd = sorted(str(key) for key in said[what] if not any(part in str(key) for part in UNUSED))
        if odd:
            raise InputError(f"model: the weights in {folder} do not fit its {CONFIG}: {len(odd)} {what} ({odd[:3]})")
    return model


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without its bars and reports."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _statistics(folder: Path) -> Statistics:
    """Mean and std for images in [0, 1], out of what the preprocessor does to bytes."""
    if not (folder / PREPROCESSOR).exists():
        raise InputError(f"normalization: {folder} has no {PREPROCESSOR}; say which one the network was trained with")
    values = read_json_object(folder / PREPROCESSOR)
    scale, offset = values.get("rescale_factor", 1 / 255), bool(values.get("rescale_offset", False))
    if not values.get("do_rescale", True):
        scale = 1
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 1e-6 <= scale <= 1e6:
        raise InputError(
            f"{folder / PREPROCESSOR}: rescale_factor: found {scale!r:.80}, wanted a number, usually 1/255"
        )
    if values.get("do_normalize", True):
        found = values.get("image_mean"), values.get("image_std")
        if not all(isinstance(part, list) for part in found):
            raise InputError(f"{folder / PREPROCESSOR}: found no lists image_mean and image_std")
        mean, std = statistics_of(found)  # type: ignore[arg-type]  # checked there
    else:
        mean, std = [0.0], [1.0]
    twice = values.get("include_top", "EfficientNet" in str(values.get("image_processor_type"))[:80])
    white = 255 * scale  # what becomes of a 1
    return [(m + offset) / white for m in mean], [(s * s if twice else s) / white for s in std]
