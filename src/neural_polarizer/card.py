"""The model card: the README.md beside a saved polarizer, for whoever finds the folder, here or on a hub.

Names in it (a layer, a method) may come from files of strangers: they are shown as code, and cannot be anything else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from .files import write_atomically
from .version import __version__

CARD_FILE = "README.md"
# A card with this line is ours and is written anew; any other README.md is somebody's own.
OURS = "<!-- Written by neural-polarizer, and again with the next save; without this line it is left as it is. -->"
MOST = 200  # characters of a name

_CARD = """---
library_name: neural-polarizer
pipeline_tag: image-classification
tags:
- neural-polarizer
- backdoor-defense
---
{ours}

# A neural polarizer

A small layer for the edge into one layer of a frozen image classifier, trained on clean images alone to keep what a
backdoor's trigger leaves in the features from passing. The classifier itself is not here.

- Method: {method}
- Before the layer: {layer}
- Structure: {structure}, {channels} channels, {parameters:,} parameters
- Images: {shape}, in [0, 1]; {classes} classes
- Clean images: {clean}
- Made with neural-polarizer {version} and torch {torch}

## Figures

{figures}

## Use

`pip install neural-polarizer`, and have the classifier that it was made for:

```python
from neural_polarizer import PolarizedModel

purified = PolarizedModel.from_pretrained(model, {source})  # model: images in [0, 1] -> logits
logits = purified(images)
suspect = purified.predict(images).suspect  # the images on which the model and the purified model disagree
```

## What it does not guarantee

- No proof that the classifier had a backdoor, nor that none is left. A polarizer stops the kinds of trigger that its
  training could imitate; a trigger of another kind, or an attacker who knows the defence, may pass.
- It fits this classifier alone, with the weights that it had. On any other it is noise.
- It costs some accuracy on clean images. The figures above, where there are any, are from few images.

Sources: NPD ([arXiv 2306.16697](https://arxiv.org/abs/2306.16697)), CNPD
([arXiv 2502.18520](https://arxiv.org/abs/2502.18520)).
"""


def write_card(
    folder: Path,
    *,
    method: str,
    layer: str,
    structure: str,
    channels: int,
    parameters: int,
    shape: Sequence[int],
    classes: int,
    clean_images: int | None,
    judged: Mapping[str, float] | None,
    source: str,
) -> None:
    """Write the card of a polarizer into its folder, unless a README.md is there that is not ours.

    Args:
        shape: (C, H, W) of the images.
        clean_images: how many were given, where that is known.
        judged: see `Choice.judged`; None where nothing was held back to judge with.
        source: what `from_pretrained` is to be given: a folder, or a repository.
    """
    path = folder / CARD_FILE
    if path.exists() and not (path.is_file() and OURS in path.read_text(encoding="utf-8", errors="replace")):
        return
    text = _CARD.format(
        ours=OURS,
        method=as_code(method),
        layer=as_code(layer),
        structure=as_code(structure),
        channels=channels,
        parameters=parameters,
        shape=" x ".join(map(str, shape)),
        classes=classes,
        clean="not known" if clean_images is None else clean_images,
        version=__version__,
        torch=torch.__version__,
        figures=_figures(judged),
        source=f'"{source}"',
    )
    write_atomically(path, text)


def as_code(text: str) -> str:
    """`text` as a code span of Markdown that it cannot leave: one line, printable, its backticks inside longer ones.

    Example:
        >>> as_code("a`b")
        '``a`b``'
    """
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:MOST])
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    space = " " if shown[:1] in ("`", " ", "") or shown[-1:] in ("`", " ") else ""
    return f"{fence}{space}{shown}{space}{fence}"


def _figures(judged: Mapping[str, float] | None) -> str:
    if judged is None:
        return "None are recorded: where layer, method and settings are all given, nothing is held back to judge with."
    j = judged
    what = "accuracy" if j["labelled"] else "agreement with the original classifier (there were no labels)"
    out = [
        f"On {j['held_back']} clean images that no fit has seen, {what} went from {j['accuracy_before']:.1%} to "
        f"{j['accuracy_after']:.1%} (drop {j['accuracy_drop']:+.1%}, 95 % interval {j['drop_low']:+.1%} to "
        f"{j['drop_high']:+.1%}).",
        f"Of {j['perturbed']} perturbed images that fool the original classifier, {j['repaired']:.1%} get their class "
        "back (the mean over the kinds of perturbation).",
    ]
    if not j["within_budget"]:
        budget = f"{j['max_accuracy_drop']:.1%}"
        out.insert(0, f"**Nothing stayed within the budget of {budget} accuracy: this polarizer changes nothing.**")
    return "\n".join(out)
