"""PolarizedModel: prefix -> polarizer -> tail. What `purify` returns, and what is saved and loaded."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from .checks import device_of
from .config import FitConfig
from .cut import Cut
from .errors import InputError
from .files import make_directory, read_json_object, write_atomically
from .history import History
from .polarizers import Polarizer
from .saved import CONFIG_FILE, FORMAT, WEIGHTS_FILE, SavedPolarizer

_disabled: ContextVar[frozenset[int]] = ContextVar("disabled", default=frozenset())


def applied(polarizer: Polarizer, m: Tensor) -> Tensor:
    """g(m) in the polarizer's own precision, handed on in that of `m` (half-precision bases)."""
    dtype = next(polarizer.parameters()).dtype
    return polarizer(m) if m.dtype == dtype else polarizer(m.to(dtype)).to(m.dtype)


class PolarizedModel(nn.Module):
    """A frozen classifier with a polarizer on the edge into one of its layers.

    `base` is the user's own model: `.to()` moves it as PyTorch does, but `.train()` and `.requires_grad_()` reach
    the polarizer alone, and the pass always runs in eval mode with running statistics.

    Args:
        base: the classifier, images (B, C, H, W) in [0, 1] -> logits (B, K).
        polarizer: what stands on the edge.
        layer: path in `base.named_modules()`.
        image_shape: (C, H, W) of the images that it was made for.
        method: the name under which it was trained.
        config: how it was trained, if it was.
        history: per epoch, what happened.

    Example:
        >>> purified = PolarizedModel.from_pretrained(model, "out/")            # doctest: +SKIP
        >>> logits = purified(images)                                           # doctest: +SKIP
    """

    def __init__(
        self,
        base: nn.Module,
        polarizer: Polarizer,
        layer: str,
        *,
        image_shape: tuple[int, int, int],
        method: str = "npd",
        config: FitConfig | None = None,
        history: History | None = None,
    ) -> None:
        super().__init__()
        self.base, self.polarizer, self.layer = base, polarizer, layer
        self.image_shape, self.method, self.config = tuple(image_shape), method, config
        self.history = History() if history is None else history
        self._cut: Cut | None = None
        self._lock = threading.Lock()
        if (self.cut.channels, self.cut.channel_dim) != (polarizer.channels, polarizer.channel_dim):
            raise InputError(
                f"polarizer: made for {polarizer.channels} channels at dim {polarizer.channel_dim}, but layer "
                f"{layer!r} receives {self.cut.channels} at dim {self.cut.channel_dim}"
            )

    # ---- the pass ----

    @property
    def cut(self) -> Cut:
        """The cut model; made again when the base has moved."""
        cut = self._cut
        if cut is None or cut.stale():
            with self._lock:
                cut = self._cut
                if cut is None or cut.stale():
                    example = torch.zeros(2, *self.image_shape, device=device_of(self.base))
                    cut = self._cut = Cut(self.base, self.layer, example)
        return cut

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of the purified model."""
        if images.ndim != 4 or images.shape[1] != self.image_shape[0]:
            raise InputError(
                f"images: found shape {tuple(images.shape)}, wanted (B, {self.image_shape[0]}, H, W) in [0, 1]"
            )
        if id(self) in _disabled.get():
            return self.cut.original(images)
        return self.cut.edited(images, lambda m: applied(self.polarizer, m))

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within, in this thread: the original logits."""
        token = _disabled.set(_disabled.get() | {id(self)})
        try:
            yield
        finally:
            _disabled.reset(token)

    # ---- behaving as a module, without ever touching the base ----

    def train(self, mode: bool = True) -> PolarizedModel:
        self.training = mode
        self.polarizer.train(mode)
        return self

    def requires_grad_(self, requires_grad: bool = True) -> PolarizedModel:
        self.polarizer.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.polarizer.zero_grad(set_to_none)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_cut", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._cut, self._lock = None, threading.Lock()

    def print_trainable_parameters(self) -> None:
        """Print what the polarizer costs, as PEFT does."""
        own = sum(p.numel() for p in self.polarizer.parameters())
        everything = own + sum(p.numel() for p in self.base.parameters())
        print(f"trainable params: {own:,} || all params: {everything:,} || trainable%: {100 * own / everything:.4f}")

    # ---- on disk ----

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write `polarizer.safetensors` and `polarizer_config.json`; the base is not written."""
        folder = make_directory("directory", directory)
        state = {k: v.detach().contiguous().cpu() for k, v in self.polarizer.state_dict().items()}
        weights = safetensors.torch.save(state)
        config = {
            "format": FORMAT,
            "method": self.method,
            "layer": self.layer,
            "structure": self.polarizer.structure,
            "channels": self.polarizer.channels,
            "channel_dim": self.polarizer.channel_dim,
            "options": self.polarizer.options(),
            "classes": self.cut.classes,
            "image_shape": list(self.image_shape),
            "fit": self.config.to_dict() if self.config else None,
            "history": list(self.history),
            "sha256": hashlib.sha256(weights).hexdigest(),  # the two files belong together
        }
        write_atomically(folder / WEIGHTS_FILE, weights)
        write_atomically(folder / CONFIG_FILE, json.dumps(config, indent=2, allow_nan=False) + "\n")

    @classmethod
    def from_pretrained(cls, model: nn.Module, directory: str | os.PathLike[str]) -> PolarizedModel:
        """Bring back what `save_pretrained` wrote, on the same base: bit-identical logits.

        Raises:
            InputError: no polarizer there, files that do not belong together, a polarizer for another layer or shape.
        """
        folder = Path(directory)
        if not (folder / CONFIG_FILE).is_file() or not (folder / WEIGHTS_FILE).is_file():
            raise InputError(f"directory: {str(folder)!r} holds no polarizer, wanted {CONFIG_FILE} and {WEIGHTS_FILE}")
        saved = SavedPolarizer(read_json_object(folder / CONFIG_FILE), str(folder / CONFIG_FILE))
        polarizer = saved.load(folder / WEIGHTS_FILE)
        try:
            purified = cls(
                model, polarizer.to(device_of(model)), saved.layer, image_shape=saved.image_shape,
                method=saved.method, config=saved.fit, history=saved.history,
            )  # fmt: skip
        except InputError as error:
            raise InputError(f"directory: the polarizer in {str(folder)!r} does not fit this model: {error}") from None
        if purified.cut.classes != saved.classes:
            raise InputError(
                f"directory: the polarizer in {str(folder)!r} was made for {saved.classes} classes, "
                f"the model has {purified.cut.classes}"
            )
        return purified
