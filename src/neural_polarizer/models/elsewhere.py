"""Architectures of other libraries by name: `transformers:vit`, `timm:resnet18`, `torchvision:resnet18`.

Randomly initialised, nothing is downloaded. The libraries are imported when they are asked for; each network is wrapped
so that it takes images in [0, 1] and returns logits, and its layers are named `model.<name>`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_choice, near
from ..errors import InputError

LIBRARIES = ("transformers", "timm", "torchvision")
PREFIX = "model."  # of the names of their layers


class FromElsewhere(nn.Module):
    """Images (B, C, H, W) in [0, 1] -> logits (B, K) of a network that expects normalised images.

    Args:
        mean, std: of the normalisation, one value per channel or one for all; not saved in the state dict.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(list(values)).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        out = self.model((images - self.mean) / self.std)
        logits: Tensor = getattr(out, "logits", out)
        return logits


def build_elsewhere(
    arch: str,
    *,
    classes: int,
    channels: int = 3,
    size: int = 32,
    width: int | None = None,
    depth: int | None = None,
    mean: float = 0.5,
    std: float = 0.25,
    seed: int = 0,
) -> nn.Module:
    """A network of another library.

    Args:
        arch: `transformers:` with a name of `FAMILIES`; `timm:` or `torchvision:` with a name of theirs.
        size: side of the images in pixels, which ViT and Swin are made for.
        width, depth: channels (of the first stage, or of the tokens) and blocks (of each stage, or in all), for
            transformers' families; None takes one that suits small images. timm and torchvision have their sizes in
            their names.
        mean, std: normalisation inside the model, one value each for all channels; not saved in the state dict.
        seed: of the initial weights.

    Raises:
        InputError: the library is not installed, or does not know the name.

    Example:
        >>> build_elsewhere("transformers:vit", classes=10, size=32)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    library, _, name = arch.partition(":")
    check_choice("arch", library, LIBRARIES)
    if library != "transformers" and (width or depth):
        raise InputError(f"arch: {arch} has its size in its name and takes neither width nor depth")
    makers: dict[str, Callable[[], nn.Module]] = {
        "transformers": lambda: _transformers(name, classes, channels, size, width, depth),
        "timm": lambda: _timm(name, classes, channels, size),
        "torchvision": lambda: _torchvision(name, classes, channels),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = makers[library]()
    return FromElsewhere(model, [mean], [std])


def import_library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision beside a torch it was not built for
        raise InputError(f"arch: {name} cannot be imported here ({error}); pip install {name}") from None


def _vit(t: Any, common: dict[str, Any], size: int, width: int, depth: int) -> Any:
    heads = max(1, width // 32)
    return t.ViTForImageClassification, t.ViTConfig(
        image_size=size, patch_size=max(2, size // 8), hidden_size=width, num_hidden_layers=depth,
        num_attention_heads=heads, intermediate_size=4 * width, **common,
    )  # fmt: skip


def _convnext(t: Any, common: dict[str, Any], size: int, width: int, depth: int) -> Any:
    stages = 3 if size < 64 else 4
    return t.ConvNextForImageClassification, t.ConvNextConfig(
        hidden_sizes=[width * 2**i for i in range(stages)], depths=[depth] * stages, num_stages=stages,
        patch_size=2 if size < 64 else 4, **common,
    )  # fmt: skip


def _swin(t: Any, common: dict[str, Any], size: int, width: int, depth: int) -> Any:
    return t.SwinForImageClassification, t.SwinConfig(
        image_size=size, patch_size=2 if size < 64 else 4, embed_dim=width, depths=[depth] * 3,
        num_heads=[max(1, width * 2**i // 24) for i in range(3)], window_size=4 if size % 112 else 7, **common,
    )  # fmt: skip


def _resnet(t: Any, common: dict[str, Any], size: int, width: int, depth: int) -> Any:
    return t.ResNetForImageClassification, t.ResNetConfig(
        embedding_size=width, hidden_sizes=[width * 2**i for i in range(4)], depths=[depth] * 4, layer_type="basic",
        **common,
    )  # fmt: skip


def _regnet(t: Any, common: dict[str, Any], size: int, width: int, depth: int) -> Any:
    return t.RegNetForImageClassification, t.RegNetConfig(
        embedding_size=width, hidden_sizes=[width * 2**i for i in range(4)], depths=[depth] * 4, groups_width=width,
        **common,
    )  # fmt: skip


def _mobilenet(t: Any, common: dict[str, Any], size: int, width: int, depth: int) -> Any:
    if depth != 1:
        raise InputError("arch: transformers:mobilenet_v2 has its depth built in and takes no other")
    return t.MobileNetV2ForImageClassification, t.MobileNetV2Config(
        depth_multiplier=width / 32, image_size=size, **common
    )


def _efficientnet(t: Any, common: dict[str, Any], size: int, width: int, depth: int) -> Any:
    if size < 32:
        raise InputError(f"arch: transformers:efficientnet needs images of 32 pixels or more, found {size}")
    return t.EfficientNetForImageClassification, t.EfficientNetConfig(
        image_size=size, width_coefficient=width / 32, depth_coefficient=float(depth), hidden_dim=1280, **common
    )


# Name: how its configuration is made, and the width and depth that suit small images.
FAMILIES: dict[str, tuple[Callable[..., Any], int, int]] = {
    "vit": (_vit, 128, 6),
    "convnext": (_convnext, 32, 2),
    "swin": (_swin, 48, 2),
    "resnet": (_resnet, 32, 2),
    "regnet": (_regnet, 32, 1),
    "mobilenet_v2": (_mobilenet, 16, 1),
    "efficientnet": (_efficientnet, 32, 1),
}


def _transformers(name: str, classes: int, channels: int, size: int, width: int | None, depth: int | None) -> nn.Module:
    check_choice("arch", name, FAMILIES)
    module = import_library("transformers")
    make, usual_width, usual_depth = FAMILIES[name]
    common = {"num_labels": classes, "num_channels": channels}
    cls, config = make(module, common, size, width or usual_width, depth or usual_depth)
    model: nn.Module = cls(config)
    return model


def _timm(name: str, classes: int, channels: int, size: int) -> nn.Module:
    module = import_library("timm")
    if name not in module.list_models():
        raise InputError(f"arch: timm knows no {name!r}{near(name, module.list_models())}")
    options = {"num_classes": classes, "in_chans": channels, "pretrained": False}
    try:
        model: nn.Module = module.create_model(name, img_size=size, **options)
    except TypeError:  # only some of its networks are made for one size of image
        model = module.create_model(name, **options)
    return model


def _torchvision(name: str, classes: int, channels: int) -> nn.Module:
    module = import_library("torchvision")
    if channels != 3:
        raise InputError(f"arch: torchvision's networks take 3 channels, found {channels}")
    known = module.models.list_models(module=module.models)
    if name not in known:
        raise InputError(f"arch: torchvision knows no classifier {name!r}{near(name, known)}")
    model: nn.Module = module.models.get_model(name, weights=None, num_classes=classes)
    return model
