"""Cut a model the better way that works: by its graph, else by hooks."""

from __future__ import annotations

import warnings

from torch import Tensor, nn

from .checks import check_choice
from .cut import Cut

CAPTURES = ("auto", "graph", "hooks")


def make_cut(model: nn.Module, layer: str, example: Tensor, capture: str = "auto") -> Cut:
    """A cut of `model` at the edge into `layer`; see `Cut` for the arguments.

    Args:
        capture: "auto" cuts the graph (1 to 3 seconds, exact, no computation twice) and, where the model cannot be
            captured, warns once and falls back to hooks (two full passes for class-conditional methods); "graph"
            raises instead of falling back; "hooks" never captures.

    Returns:
        A cut whose `kind` is "graph" or "hooks".
    """
    check_choice("capture", capture, CAPTURES)
    if capture == "hooks":
        return Cut(model, layer, example)
    from .graph import CaptureError, GraphCut  # torch.export takes its time to import

    try:
        return GraphCut(model, layer, example)
    except CaptureError as error:
        if capture == "graph":
            raise
        warnings.warn(
            f"{type(model).__name__} cannot be captured as a graph ({error}); class-conditional methods take two full "
            "passes instead of one and a tail, with the same logits",
            stacklevel=2,
        )
        return Cut(model, layer, example)
