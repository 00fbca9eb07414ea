"""Name a layer and cut the model there: prefix -> (activation, what else is alive) -> tail.

The polarizer acts on the *edge* into the named layer: where another branch reads the same tensor (the shortcut
beside `layer4.0.conv1`), that branch sees it unchanged. All work happens on a frozen *view* of the model: its own
module objects over the same storage, in eval mode and without gradients, so that no mode, flag, hook or bit of the
user's model ever changes and several threads can use one cut.
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .checks import check_images, device_of, dtype_of, near
from .errors import InputError

Edit = Callable[[Tensor], Tensor]


class Activation(NamedTuple):
    """What passes the cut: the tensor `m` that enters the layer, and everything else that the tail reads."""

    m: Tensor
    alive: tuple[Any, ...]


class LayerInfo(NamedTuple):
    """A candidate layer: `channel_dim` is 1 or -1, `spatial` the sizes of the positions, `parameters` = C² + 2C."""

    name: str
    kind: str
    channels: int
    spatial: tuple[int, ...]
    channel_dim: int
    parameters: int


class _Stop(Exception):
    """Leaves the forward pass at the cut."""


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():  # weight_norm and its like keep tensors as plain attributes
        yield from (v for v in vars(module).values() if isinstance(v, Tensor))


def frozen_view(model: nn.Module) -> nn.Module:
    """The same network over the same storage: own module objects, eval mode, no parameter that wants a gradient."""
    memo: dict[int, Any] = {
        id(t): nn.Parameter(t.detach(), requires_grad=False) if isinstance(t, nn.Parameter) else t.detach()
        for t in _tensors(model)
    }
    try:
        view = copy.deepcopy(model, memo)
    except Exception as error:
        raise InputError(
            f"model: {type(model).__name__} cannot be copied ({error}); wanted a module that copy.deepcopy accepts"
        ) from error
    return view.eval()


def logits_of(output: Any) -> Tensor:
    """Logits (B, K) from what a classifier returns: a tensor, or an object that has `.logits`."""
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or not logits.is_floating_point():
        found = f"{type(output).__name__}" + (f" of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else "")
        raise InputError(f"model: returned {found}, wanted logits (B, K) or an object that has .logits")
    return logits


def first_pass(view: nn.Module, example: Tensor) -> Tensor:
    """Logits of the example; whatever the model raises is the input's fault and says so."""
    try:
        return logits_of(view(example))
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"model: failed on images of shape {tuple(example.shape)} ({type(error).__name__}: {error}); wanted a size "
            "and channels that it takes"
        ) from error


def _swap_first(value: Any, edit: Edit) -> tuple[Any, bool]:
    """`value` with its first floating tensor replaced by edit(tensor); looks into tuples, lists and dicts."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return edit(value), True
    if isinstance(value, (tuple, list)):
        items, done = list(value), False
        for i, item in enumerate(items):
            items[i], done = _swap_first(item, edit)
            if done:
                break
        named = isinstance(value, tuple) and hasattr(value, "_fields")
        return (type(value)(*items) if named else type(value)(items)), done
    if isinstance(value, dict):
        for key in value:
            new, done = _swap_first(value[key], edit)
            if done:
                return {**value, key: new}, True
    return value, False


def _swap_input(args: Any, kwargs: Any, edit: Edit) -> tuple[Any, Any]:
    args, done = _swap_first(args, edit)
    return args, kwargs if done else _swap_first(kwargs, edit)[0]


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """The module at a `named_modules()` path; an error with near names where there is none."""
    modules = dict(model.named_modules())
    modules.pop("", None)
    if not isinstance(name, str) or name not in modules:
        raise InputError(f"layer: found {name!r}, wanted a path of model.named_modules(){near(str(name), modules)}")
    return modules[name]


def _channel_dim(layer: nn.Module, m: Tensor) -> int:
    """1 or -1. Vectors and tokens end in their channels; for maps the first layer inside that fits m tells."""
    if m.ndim != 4:
        return -1
    for module in layer.modules():
        if isinstance(module, nn.Linear) and module.in_features == m.shape[-1]:
            return -1
        if isinstance(module, nn.LayerNorm) and module.normalized_shape == (m.shape[-1],):
            return -1
        if isinstance(module, (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)):
            return 1
    return 1


class Probe(NamedTuple):
    """What one pass with the example said of the cut."""

    m: Tensor
    changes_input: bool  # the layer works in place on the tensor that it was given
    changed_later: bool  # somebody after it does
    logits: Tensor


class Cut:
    """A model cut at the edge into `layer`, by hooks on a frozen view of it.

    Args:
        model: images (B, C, H, W) in [0, 1] -> logits (B, K); never changed.
        layer: its path in `model.named_modules()`.
        example: images to probe with, at least one, on the model's device.

    Attributes:
        kind: ``"hooks"``.
        channels, channel_dim, shape: of `m`; `shape` is without the batch.
        classes: K.

    Raises:
        InputError: no such layer; a layer that is not called exactly once, or not with a floating tensor of two to
            four dimensions whose first is the batch; a model that does not return logits of two or more classes.
    """

    kind = "hooks"

    def __init__(self, model: nn.Module, layer: str, example: Tensor) -> None:
        find_layer(model, layer)
        device_of(model)
        self.layer = layer
        self.view = frozen_view(model)
        self._slots = [(d, k) for m in model.modules() for d in (m._parameters, m._buffers) for k in d]
        self._seen = self._addresses()
        self._local = threading.local()
        self._layer = find_layer(self.view, layer)
        probe = self._probe(example[:2].to(dtype_of(model)))
        m = probe.m
        self.channel_dim = _channel_dim(self._layer, m)
        self.channels, self.shape = m.shape[self.channel_dim], tuple(m.shape[1:])
        self.classes = probe.logits.shape[1]
        self._in_place = probe.changes_input
        self._keep = probe.changes_input or probe.changed_later
        self._layer.register_forward_pre_hook(self._before, with_kwargs=True)
        if self._in_place:
            self._layer.register_forward_hook(self._after, with_kwargs=True)

    # ---- use ----

    def original(self, images: Tensor) -> Tensor:
        """Logits (B, K) of the model as it is."""
        return logits_of(self.view(images))

    def edited(self, images: Tensor, edit: Edit) -> Tensor:
        """Logits (B, K) with `edit` on the edge: one pass."""
        with self._editing(edit):
            return logits_of(self.view(images))

    def paired(self, images: Tensor, edit: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """(edited, original) logits, where `edit` takes m and the original logits; with hooks, two full passes."""
        original = self.original(images)
        return self.edited(images, lambda m: edit(m, original)), original

    def prefix(self, images: Tensor) -> Activation:
        """Run up to the cut."""

        def stop(m: Tensor) -> Tensor:
            found.append(m)
            raise _Stop

        found: list[Tensor] = []
        with self._editing(stop):
            try:
                self.view(images)
            except _Stop:
                return Activation(found[0], (images,))
        raise InputError(f"layer: {self.layer!r} was not called for a batch of {len(images)} images")

    def tail(self, activation: Activation) -> Tensor:
        """Logits (B, K) from the cut on; with hooks, a whole pass in which `m` replaces what arrives."""
        return self.edited(activation.alive[0], lambda _: activation.m.clone())  # the tail may work in place

    def lean(self, example: Tensor, compile: bool = False) -> Cut:
        """The same cut with less to compute, for as long as the model does not change; else the cut itself.

        Args:
            example: images to check it with; where it does not give the model's logits, up to rounding, it is not used.
            compile: with `torch.compile`, too; where that fails, a warning says so.
        """
        if compile:
            warnings.warn("compile: a cut by hooks is not compiled, the fit runs without it", stacklevel=2)
        return self

    def stale(self) -> bool:
        """Whether the model's tensors have moved (`.to()`, `load_state_dict(assign=True)`) since this cut was made."""
        return self._addresses() != self._seen

    # ---- how ----

    def _addresses(self) -> tuple[int, ...]:
        return tuple([0 if t is None else t.data_ptr() for t in [d.get(k) for d, k in self._slots]])

    @contextmanager
    def _editing(self, edit: Edit) -> Iterator[None]:
        before = getattr(self._local, "edit", None)
        self._local.edit = edit
        try:
            yield
        finally:
            self._local.edit = before

    def _before(self, layer: nn.Module, args: Any, kwargs: Any) -> Any:
        edit = getattr(self._local, "edit", None)
        if edit is None:
            return None

        def swap(m: Tensor) -> Tensor:
            # A tensor that the network overwrites later must not be what the polarizer's gradient is computed from.
            out: Tensor = edit(m.clone() if self._keep else m)
            if self._in_place:
                self._local.pair = (m, out)
            return out

        return _swap_input(args, kwargs, swap)

    def _after(self, layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        # The layer overwrote the polarized copy; whoever reads the original tensor next expects it overwritten too.
        pair = getattr(self._local, "pair", None)
        if pair is not None:
            self._local.pair = None
            pair[0].copy_(pair[1])

    @torch.no_grad()
    def _probe(self, example: Tensor) -> Probe:
        seen: list[tuple[Tensor, int]] = []
        after: list[int] = []

        def before(layer: nn.Module, args: Any, kwargs: Any) -> None:
            _swap_input(args, kwargs, lambda m: (seen.append((m, m._version)), m)[1])  # type: ignore[func-returns-value]

        def behind(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if seen:
                after.append(seen[-1][0]._version)

        calls: list[int] = []
        handles = [
            self._layer.register_forward_pre_hook(lambda *_: calls.append(1)),
            self._layer.register_forward_pre_hook(before, with_kwargs=True),
            self._layer.register_forward_hook(behind, with_kwargs=True),
        ]
        try:
            logits = first_pass(self.view, example)
        finally:
            for handle in handles:
                handle.remove()
        if len(logits) != len(example) or logits.shape[1] < 2:
            raise InputError(
                f"model: returned logits of shape {tuple(logits.shape)} for {len(example)} images, "
                "wanted (B, K) with K >= 2 classes"
            )
        if len(calls) != 1:
            raise InputError(
                f"layer: {self.layer!r} is called {len(calls)} times in one pass, wanted one that is called once (see "
                "list_layers)"
            )
        if not seen or not 2 <= seen[0][0].ndim <= 4 or seen[0][0].shape[0] != len(example):
            found = f"a tensor of shape {tuple(seen[0][0].shape)}" if seen else "no floating tensor"
            raise InputError(
                f"layer: {self.layer!r} receives {found}, wanted (B, C), (B, N, C), (B, C, H, W) or (B, H, W, C)"
            )
        m, version = seen[0]
        return Probe(m, after[0] > version, m._version > after[0], logits)


def list_layers(model: nn.Module, example: Tensor) -> list[LayerInfo]:
    """Candidate layers in the order in which they are called: those that a polarizer can stand before.

    Args:
        model: the classifier, never changed.
        example: a few images (B, C, H, W) in [0, 1] on its device, B >= 2 so that the batch can be told from a 1.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
        >>> [(c.name, c.channels, c.spatial) for c in list_layers(net, torch.rand(2, 3, 8, 8))]
        [('0', 3, (8, 8)), ('1', 8, (6, 6)), ('2', 8, (6, 6)), ('3', 288, ())]
    """
    view = frozen_view(model)
    names = {module: name for name, module in view.named_modules() if name}
    calls: dict[str, int] = {}
    found: dict[str, LayerInfo] = {}

    def note(layer: nn.Module, args: Any, kwargs: Any) -> None:
        name = names[layer]
        calls[name] = calls.get(name, 0) + 1

        def look(m: Tensor) -> Tensor:
            if 2 <= m.ndim <= 4 and m.shape[0] == len(example):
                dim = _channel_dim(layer, m)
                sizes = list(m.shape[1:])
                channels = sizes.pop(dim if dim == -1 else 0)
                cost = channels * channels + 2 * channels
                found[name] = LayerInfo(name, type(layer).__name__, channels, tuple(sizes), dim, cost)
            return m

        _swap_input(args, kwargs, look)

    for module in names:
        module.register_forward_pre_hook(note, with_kwargs=True)
    with torch.no_grad():
        first_pass(view, check_images("example", example).to(dtype_of(model)))
    return [info for name, info in found.items() if calls[name] == 1]
