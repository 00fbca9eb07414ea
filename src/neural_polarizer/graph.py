"""A real cut of the graph: prefix and tail as two programs, captured by `torch.export`.

A marker operation is put on the edge into the layer, the model is exported, and the program is split where the
marker stands, in its own order: what was computed before is the prefix, the rest the tail, and every value that the
tail reads from before passes over. In-place operations stay as they are; only where the tail would overwrite what
passed over does it work on a copy, so that one activation can be sent through the tail many times.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export

from .checks import dtype_of
from .cut import Activation, Cut, Edit, logits_of
from .fold import folded

# What export adds to check shapes and types: it has no output, and the cut is checked as a whole.
_CHECKS = ("_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range")
CAPTURED, FOLDED = 1e-5, 1e-4  # of the logits, may differ: the same operations, and weights that were rounded anew
# Operations that may hand their input on without saying so in their schema.
_PASSES_ON = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")


class CaptureError(Exception):
    """The model cannot be captured, or the captured cut is not the model."""


@torch.library.custom_op("neural_polarizer::edge", mutates_args=())
def edge(m: Tensor) -> Tensor:
    """The marker. Only ever traced."""
    return m.clone()


@edge.register_fake
def _(m: Tensor) -> Tensor:
    return torch.empty_like(m)


edge.register_autograd(lambda _, gradient: gradient)


class _Logits(nn.Module):
    def __init__(self, view: nn.Module) -> None:
        super().__init__()
        self.view = view

    def forward(self, images: Tensor) -> Tensor:
        return logits_of(self.view(images))


class GraphCut(Cut):
    """A `Cut` whose prefix and tail are programs of their own: nothing is computed twice, and no hook runs.

    Raises:
        CaptureError: the model cannot be exported, or prefix and tail together do not give its logits for every
            batch size; `make_cut` then falls back to hooks.
    """

    kind = "graph"
    _is_lean = False

    def __init__(self, model: nn.Module, layer: str, example: Tensor) -> None:
        super().__init__(model, layer, example)
        example = example.to(dtype_of(model))
        # With a gradient to keep, attention does not take its fast path, which has none.
        example = torch.cat([example, example])[:2].detach().requires_grad_()
        try:
            with torch.enable_grad(), self._editing(edge):
                program = export(_Logits(self.view), (example,), dynamic_shapes=({0: Dim.AUTO},), strict=False)
            self._prefix, self._tail = split(program)
            self._check(example)
        except CaptureError:
            raise
        except Exception as error:  # export fails in as many ways as there are models
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CaptureError(f"{type(error).__name__}: {reason}") from error

    @property
    def programs(self) -> tuple[fx.GraphModule, fx.GraphModule]:
        """Prefix, images -> (m, *alive), and tail, (m, *alive) -> logits."""
        return self._prefix, self._tail

    def edited(self, images: Tensor, edit: Edit) -> Tensor:
        m, *alive = self._prefix(images)
        logits: Tensor = self._tail(edit(m), *alive)
        return logits

    def paired(self, images: Tensor, edit: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        m, *alive = self._prefix(images)
        original: Tensor = self._tail(m, *alive)
        logits: Tensor = self._tail(edit(m, original), *alive)
        return logits, original

    def prefix(self, images: Tensor) -> Activation:
        m, *alive = self._prefix(images)
        return Activation(m, tuple(alive))

    def tail(self, activation: Activation) -> Tensor:
        logits: Tensor = self._tail(activation.m, *activation.alive)
        return logits

    def original(self, images: Tensor) -> Tensor:
        return self.edited(images, lambda m: m) if self._is_lean else super().original(images)

    def lean(self, example: Tensor, compile: bool = False) -> Cut:
        found = copy.copy(self)
        try:
            found._prefix, found._tail = folded(self._prefix), folded(self._tail)
            found._check(example, FOLDED)
            found._is_lean = True
        except Exception:  # a BatchNorm of a form that is not expected: fold nothing
            found = self
        return found._with_compiler(example) if compile else found

    def _with_compiler(self, example: Tensor) -> Cut:
        found = copy.copy(self)
        try:
            found._prefix, found._tail = (cast(fx.GraphModule, torch.compile(p)) for p in self.programs)
            found._check(example, FOLDED)
            found._is_lean = True
            few = example.detach().clone().requires_grad_()
            torch.autograd.grad(found.edited(few, lambda m: m).sum(), few)
        except Exception as error:  # no compiler on this machine, an operation that it does not know, ...
            warnings.warn(f"compile: failed ({type(error).__name__}), the fit runs without it", stacklevel=2)
            return self
        return found

    @torch.no_grad()
    def _check(self, example: Tensor, tolerance: float = CAPTURED) -> None:
        """The cut gives the model's logits, with and without an edit, twice in a row, for other batch sizes."""
        example = torch.cat([example, example])[:2]

        def nudge(m: Tensor) -> Tensor:
            return m * 1.05 + 0.05

        for count in (1, 2, 3):
            images = torch.cat([example, example.flip(-1)])[:count]
            activation = self.prefix(images)
            for found, wanted in (
                (self.tail(activation), super().original(images)),
                (self.tail(activation), super().original(images)),
                (self.edited(images, nudge), super().edited(images, nudge)),
            ):
                wide = wanted.dtype in (torch.float32, torch.float64)
                scale = (tolerance if wide else 2e-2) * (1 + wanted.abs().max())
                if found.shape != wanted.shape or not (found - wanted).abs().max() <= scale:
                    raise CaptureError(f"the captured program does not give the model's logits for {count} images")


def split(program: ExportedProgram) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Prefix (images) -> (m, *alive) and tail (m, *alive) -> logits of a program with one marker."""
    nodes = [n for n in program.graph.nodes if not any(check in str(n.target) for check in _CHECKS)]
    markers = [n for n in nodes if n.target is torch.ops.neural_polarizer.edge.default]
    if len(markers) != 1:
        raise CaptureError(f"found the layer's input {len(markers)} times in the graph, wanted once")
    if program.graph_signature.buffers_to_mutate:
        raise CaptureError("the model changes its own buffers in eval mode")
    constants = _constants(program)
    marker, output = markers[0], nodes[-1]
    before = nodes[: nodes.index(marker)]
    after = nodes[nodes.index(marker) + 1 : -1]
    passing = {n for n in before if n.name not in constants and n.op != "get_attr"}
    batch = marker.args[0].meta["val"].shape[0]

    prefix = _Builder(program, constants)
    for node in before:
        if node in passing:
            prefix.copy(node)
    tail = _Builder(program, constants)
    tail.env[marker] = tail.graph.placeholder("m")
    alive: list[fx.Node] = []
    for reader in (*after, output):
        for node in reader.all_input_nodes:
            if node in passing and node not in tail.env and not tail.count(node, marker, batch):
                alive.append(node)
                tail.env[node] = tail.graph.placeholder(f"alive_{len(alive)}")
    for node in after:
        tail.copy(node)
    (logits,) = output.args[0]
    return (
        prefix.finish((prefix.get(marker.args[0]), *[prefix.get(n) for n in alive])),
        tail.finish(tail.get(logits)),
    )


class _Builder:
    """Copies nodes of an exported program into a graph of its own; parameters become attributes."""

    def __init__(self, program: ExportedProgram, constants: dict[str, Any]) -> None:
        self.graph, self.root = fx.Graph(), nn.Module()
        self.env: dict[fx.Node, fx.Node] = {}
        self._module, self._constants = program.graph_module, constants

    def get(self, node: fx.Node) -> fx.Node:
        """The copy of `node`; a parameter, constant or subgraph is fetched at its first use."""
        if node not in self.env:
            name = f"c{len(self.env)}_{node.name}"
            if node.name in self._constants:
                value = self._constants[node.name]
            elif node.op == "get_attr":
                value = getattr(self._module, str(node.target))
            else:
                raise CaptureError(f"{node.name} is read before it is computed")
            if isinstance(value, Tensor):
                self.root.register_buffer(name, value)
            else:
                setattr(self.root, name, value)
            self.env[node] = self.graph.get_attr(name)
        return self.env[node]

    def copy(self, node: fx.Node) -> None:
        self.env[node] = self.graph.node_copy(node, self.get)

    def count(self, node: fx.Node, marker: fx.Node, batch: Any) -> bool:
        """Whether `node` is a number that follows from the batch size alone; it is then computed here, from m."""
        value = node.meta.get("val")
        if not isinstance(value, (int, torch.SymInt)):
            return False
        if isinstance(value, torch.SymInt) and isinstance(batch, torch.SymInt) and value.node.expr == batch.node.expr:
            size = self.graph.call_function(torch.ops.aten.sym_size.int, (self.env[marker], 0))
            self.env[node] = size
            return True
        numbers = node.all_input_nodes
        if node.op != "call_function" or any(isinstance(n.meta.get("val"), Tensor) for n in numbers):
            return False
        if all(n in self.env or self.count(n, marker, batch) for n in numbers):
            self.copy(node)
            return True
        return False

    def finish(self, result: Any) -> fx.GraphModule:
        self.graph.output(result)
        _protect_inputs(self.graph)
        self.graph.lint()
        return fx.GraphModule(self.root, self.graph)


def _constants(program: ExportedProgram) -> dict[str, Any]:
    """Placeholder name -> the model's own tensor, for everything that is not the images."""
    signature = program.graph_signature
    found: dict[str, Any] = {}
    for names, source in (
        (signature.inputs_to_parameters, program.state_dict),
        (signature.inputs_to_buffers, program.state_dict),
        (signature.inputs_to_buffers, program.constants),  # buffers that are not persistent
        (signature.inputs_to_lifted_tensor_constants, program.constants),
        (signature.inputs_to_lifted_custom_objs, program.constants),
    ):
        found.update({name: source[target] for name, target in names.items() if target in source})
    return found


def _arguments(node: fx.Node) -> Iterable[tuple[fx.Node, bool, bool]]:
    """(input, may the output alias it, is it written to) for every tensor that an operation takes."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        for other in node.all_input_nodes:  # no schema (subgraphs, getitem): the output may alias everything
            yield other, True, False
        return
    passes_on = any(name == schema.name.split("::")[-1] for name in _PASSES_ON)
    for i, argument in enumerate(schema.arguments):
        value = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)
        alias = argument.alias_info
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, fx.Node):
                yield item, alias is not None or passes_on, alias is not None and alias.is_write


def _protect_inputs(graph: fx.Graph) -> None:
    """Put a copy behind every input that the graph would overwrite."""
    roots: dict[fx.Node, set[fx.Node]] = {}
    written: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            roots[node] = {node}
            continue
        mine: set[fx.Node] = set()
        if node.op == "call_function":
            for other, aliased, is_written in _arguments(node):
                if aliased:
                    mine |= roots.get(other, set())
                if is_written:
                    written |= roots.get(other, set())
        roots[node] = mine
    last = [n for n in graph.nodes if n.op == "placeholder"][-1]
    for node in sorted(written, key=lambda n: n.name):
        with graph.inserting_after(last):
            copy = graph.call_function(torch.ops.aten.clone.default, (node,))
        node.replace_all_uses_with(copy, delete_user_cb=lambda user, copy=copy: user is not copy)  # type: ignore[misc]
