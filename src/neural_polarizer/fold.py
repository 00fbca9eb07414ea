"""Fold the BatchNorms of a frozen program away.

In eval mode a BatchNorm is ``s x + t`` per channel. Behind a convolution it goes into that convolution; elsewhere it
becomes one multiplication and addition, whose backward pass is a multiplication, while that of BatchNorm also sums up
what its own weights would want.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx

_CONVOLUTIONS = (torch.ops.aten.conv1d.default, torch.ops.aten.conv2d.default, torch.ops.aten.conv3d.default)
_NOT_SAVED = (*_CONVOLUTIONS, torch.ops.aten.addcmul.default)


def folded(program: fx.GraphModule) -> fx.GraphModule:
    """The same program without BatchNorm, up to rounding; weights that do not change are shared with the original."""
    root = fx.GraphModule(program, copy.deepcopy(program.graph))
    graph = root.graph
    norms = [n for n in graph.nodes if n.target is torch.ops.aten.batch_norm.default and n.args[5] is False]

    def get(node: Any) -> Tensor | None:
        return None if node is None else getattr(root, str(node.target))

    def put(name: str, value: Tensor) -> fx.Node:
        root.register_buffer(name, value)
        return graph.get_attr(name)

    for i, norm in enumerate(norms):
        entering, (gain, shift, mean, var), eps = norm.args[0], map(get, norm.args[1:5]), norm.args[7]
        assert mean is not None
        assert var is not None
        # In double precision: rounded once, and not at every step of the way.
        scale = (var.double() + eps).rsqrt() * (1 if gain is None else gain.double())
        offset = (0 if shift is None else shift.double()) - mean.double() * scale
        args = entering.args
        if entering.target in _CONVOLUTIONS and len(entering.users) == 1 and len(args) > 1:
            weight, bias = get(args[1]), get(args[2] if len(args) > 2 else None)
            assert weight is not None
            wide = weight.double() * scale.view(-1, *[1] * (weight.ndim - 1))
            moved = offset if bias is None else offset + bias.double() * scale
            with graph.inserting_before(entering):
                own = put(f"fold{i}_weight", wide.to(weight.dtype)), put(f"fold{i}_bias", moved.to(weight.dtype))
            entering.args = (args[0], *own, *args[3:])
            norm.replace_all_uses_with(entering)
        else:
            sizes = (1, -1, *[1] * (norm.meta["val"].ndim - 2))
            with graph.inserting_before(norm):
                own = put(f"fold{i}_scale", scale.to(var.dtype)), put(f"fold{i}_offset", offset.to(var.dtype))
                views = [graph.call_function(torch.ops.aten.view.default, (n, sizes)) for n in own]
                # As large as an image, in its dtype and order: bfloat16 is ten times as slow with one number a channel.
                like = graph.call_function(torch.ops.aten.slice.Tensor, (entering, 0, 0, 1))
                wide = [graph.call_function(torch.ops.aten.empty_like.default, (like,)) for _ in views]
                for made, view in zip(wide, views, strict=True):
                    graph.call_function(torch.ops.aten.copy_.default, (made, view))
                sum_ = graph.call_function(torch.ops.aten.addcmul.default, (wide[1], entering, wide[0]))
            norm.replace_all_uses_with(sum_)
        graph.erase_node(norm)
    for node in graph.nodes:
        if node.target is torch.ops.aten.relu.default:
            (made,) = node.all_input_nodes
            if made.target in _NOT_SAVED and len(made.users) == 1:
                node.target = torch.ops.aten.relu_.default  # nobody else reads it, and no gradient is made from it
    graph.lint()
    return fx.GraphModule(root, graph)
