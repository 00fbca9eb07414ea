"""Every defence of a grid behind one call: nothing, a neural polarizer, or a baseline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ...attempts import Attempts
from ...checks import check_choice
from ...config import FitConfig
from ...errors import InputError
from ...fit import purify
from ...methods import METHODS
from ..baselines.base import Defended
from ..baselines.registry import BASELINES, build_baseline
from ..datasets.base import ImageData

NONE = "none"
AUTO = "auto"  # `purify` with every choice left to it
AUTO_OPTIONS: dict[str, Any] = {"max_accuracy_drop": 0.01, "method": "auto", "layer": "auto"}
DEFENCES = (NONE, AUTO, *METHODS, *BASELINES)
LAYERS = {
    "preact_resnet18": "layer4.1.conv1",
    "small_resnet": "layer3",
    "vgg11_bn": "features.25",
    "vgg19_bn": "features.49",
}
FROM_DATA = ("shift", "mirror")  # how far images may be moved, and whether they may be mirrored
UNSAID = {"compile": False, "lambda_still": 0.0, "mix_views": False}  # younger than records, which do not name them
PUBLISHED = "published"  # an option of polarizers: start from the papers' settings of a data set


def options_of(
    name: str, options: Mapping[str, Any], arch: str, layer: str | None
) -> tuple[dict[str, Any], str | None]:
    """All options of a defence, with the defaults of those not given, and the layer where it stands, if it does.

    Those of `FROM_DATA` are not filled in: unless they are given, the data set says them when the defence runs.

    Raises:
        InputError: an unknown defence or option, no layer for a polarizer in an architecture that has no usual one.
    """
    check_choice("defences", name, DEFENCES)
    if name == NONE:
        if options:
            raise InputError(f"defences: none takes no options, found {sorted(options)}")
        return {}, None
    if name == AUTO:
        unknown = set(options) - set(AUTO_OPTIONS)
        if unknown:
            raise InputError(f"defences: auto takes {', '.join(AUTO_OPTIONS)} alone, found {sorted(unknown)}")
        return {**AUTO_OPTIONS, **options}, None
    if name in BASELINES:
        every = build_baseline(name, options).options()
        return {k: v for k, v in every.items() if k in options or k not in FROM_DATA}, None
    given = dict(options)
    where = given.pop("layer", None) or layer or LAYERS.get(arch)
    if not isinstance(where, str):
        raise InputError(f"layer: found none for {name} in {arch}, wanted the layer of the architecture in the grid")
    published = given.pop(PUBLISHED, None)
    if published is not None:
        start = FitConfig.published(published)
    else:
        start = FitConfig.in_rounds() if given.get("loop") == "rounds" else FitConfig()
    full = FitConfig.from_dict({**start.to_dict(), **given}).to_dict()
    return {k: v for k, v in full.items() if k not in UNSAID or v != UNSAID[k]}, where


def defend(
    name: str,
    options: Mapping[str, Any],
    layer: str | None,
    model: nn.Module,
    clean: tuple[Tensor, Tensor] | Tensor,
    data: ImageData,
    *,
    seed: int,
    precision: str = "float32",
    progress: bool = True,
    attempts: Attempts | None = None,
) -> Defended:
    """Run a defence with all its options on a model and a clean set (images (N, C, H, W) in [0, 1], labels (N,)), of
    which baselines want the labels.

    `precision` is that of baselines that train; polarizers and whatever is measured know none. `attempts` are for
    `auto`: see `purify`.
    """
    if name == NONE:
        return Defended(model, 0, {})
    if name in BASELINES:
        assert not isinstance(clean, Tensor)
        # Whoever fine-tunes augments as the data allow: the grid says otherwise where it wants to.
        usual = {name: getattr(data, name) for name in FROM_DATA}
        return build_baseline(name, {**usual, **options})(
            model, clean, seed=seed, precision=precision, progress=progress
        )
    if name == AUTO:
        purified = purify(model, clean, seed=seed, progress=progress, attempts=attempts, **options)
        assert purified.choice is not None
        found = {"layer": purified.layer, "method": purified.method, "choice": purified.choice.to_dict()}
        return Defended(purified, purified.get_nb_trainable_parameters()[0], found)
    assert layer is not None
    config = FitConfig.from_dict(dict(options))
    purified = purify(model, clean, method=name, layer=layer, config=config, seed=seed, progress=progress)
    return Defended(purified, purified.get_nb_trainable_parameters()[0], {"layer": layer})
