"""PolarizedModel: prefix -> polarizer -> tail. What `purify` returns, and what is saved and loaded."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from .capture import make_cut
from .card import write_card
from .checks import check_images, device_of, dtype_of
from .choice import Choice
from .conditional import ConditionalPolarizer
from .config import FitConfig
from .cut import Cut
from .errors import InputError
from .files import MAX_JSON, make_directory, write_atomically
from .history import History
from .hub import download, is_repository, upload
from .polarizers import Polarizer
from .saved import CONFIG_FILE, FORMAT, WEIGHTS_FILE, read_saved
from .tensorfile import MAX_FILE

_disabled: ContextVar[frozenset[int]] = ContextVar("disabled", default=frozenset())


class Prediction(NamedTuple):
    """What one pass says of a batch.

    Attributes:
        logits: (B, K) of the purified model.
        original: (B, K) of the model as it came.
        suspect: (B,) bool: the two disagree on the class.
        score: (B,) p_f(c) - p_fθ(c) for the class c that the original model gives: how much of it the polarizer took.
    """

    logits: Tensor
    original: Tensor
    suspect: Tensor
    score: Tensor


def applied(polarizer: Polarizer, m: Tensor, condition: Tensor | None = None) -> Tensor:
    """g(m) or g(m, c) in the polarizer's own precision, handed on in that of `m` (half-precision bases)."""
    dtype = next(polarizer.parameters()).dtype
    inside = m if m.dtype == dtype else m.to(dtype)
    out: Tensor = polarizer(inside, condition) if isinstance(polarizer, ConditionalPolarizer) else polarizer(inside)
    return out if m.dtype == dtype else out.to(m.dtype)


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
        clean_images, judged: for its card: how many it was made with, and `Choice.judged` where there was a choice.
        capture: how to cut: "auto", "graph" or "hooks"; see `make_cut`.
        cut: a cut of `base` at `layer`, where there is one already.

    Attributes:
        choice: how `purify` chose, where it did.
        outside_budget: the best that it found where nothing kept the budget.

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
        clean_images: int | None = None,
        judged: dict[str, float] | None = None,
        capture: str = "auto",
        cut: Cut | None = None,
    ) -> None:
        super().__init__()
        self.base, self.polarizer, self.layer = base, polarizer, layer
        self.image_shape, self.method, self.config = tuple(image_shape), method, config
        self.history = History() if history is None else history
        self.clean_images, self._judged = clean_images, judged
        self.capture = capture
        self.choice: Choice | None = None
        self.outside_budget: PolarizedModel | None = None
        self._cut, self._lock = cut, threading.Lock()
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
                    cut = self._cut = make_cut(self.base, self.layer, example, self.capture)
        return cut

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """Logits (B, K) of the purified model.

        Args:
            images: (B, C, H, W) in [0, 1].
            condition: for CNPD, classes (B,) to use instead of the original model's prediction.
        """
        self._check(images)
        if id(self) in _disabled.get():
            return self.cut.original(images)
        if isinstance(self.polarizer, ConditionalPolarizer) and condition is None:
            return self._paired(images)[0]
        return self.cut.edited(images, lambda m: applied(self.polarizer, m, condition))

    def predict(self, images: Tensor) -> Prediction:
        """Purified and original logits of images (B, C, H, W) and what follows from them, from one prefix pass.

        Source: CNPD (arXiv 2502.18520), test-time detection. Without gradients.
        """
        self._check(images)
        with torch.no_grad():
            logits, original = self._paired(images)
            given = original.argmax(1, keepdim=True)
            before, after = (z.float().softmax(1).gather(1, given)[:, 0] for z in (original, logits))
            return Prediction(logits, original, logits.argmax(1) != given[:, 0], before - after)

    def detect(self, loader: Iterable[Any]) -> Prediction:
        """`predict` over all that `loader` yields: batches of images, or (images, ...) of which the first counts.

        Returns:
            One `Prediction` on the CPU, in the order of the loader. Works on the model's device.

        Example:
            >>> found = purified.detect(DataLoader(uploads, batch_size=64))          # doctest: +SKIP
            >>> found.suspect.nonzero()                                              # doctest: +SKIP
        """
        device, found = device_of(self.base), []
        with torch.random.fork_rng(devices=[]):  # a DataLoader draws a seed from the global generator
            for batch in [loader] if isinstance(loader, Tensor) else loader:
                images = check_images("loader", batch[0] if isinstance(batch, (tuple, list)) else batch)
                said = self.predict(images.to(device, dtype_of(self.base)))
                found.append([part.cpu() for part in said])
        if not found:
            raise InputError("loader: found no batch at all, wanted at least one")
        return Prediction(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def _paired(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(purified, original) logits."""
        if id(self) in _disabled.get():
            return (original := self.cut.original(images)), original
        return self.cut.paired(images, lambda m, original: applied(self.polarizer, m, original.detach().argmax(1)))

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != self.image_shape[0]:
            raise InputError(
                f"images: found shape {tuple(images.shape)}, wanted (B, {self.image_shape[0]}, H, W) in [0, 1]"
            )

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

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Parameters of the polarizer, and of everything, under PEFT's name."""
        own = sum(p.numel() for p in self.polarizer.parameters())
        return own, own + sum(p.numel() for p in self.base.parameters())

    def print_trainable_parameters(self) -> None:
        """Print what the polarizer costs, as PEFT does."""
        own, everything = self.get_nb_trainable_parameters()
        print(f"trainable params: {own:,} || all params: {everything:,} || trainable%: {100 * own / everything:.4f}")

    # ---- on disk ----

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write `polarizer.safetensors`, `polarizer_config.json` and a card, `README.md`; the base is not written.

        A README.md that is somebody's own is left as it is.
        """
        self._save(make_directory("directory", directory), "path/to/this/folder")

    def _save(self, folder: Path, source: str) -> None:
        state = {k: v.detach().contiguous().cpu() for k, v in self.polarizer.state_dict().items()}
        weights = safetensors.torch.save(state)
        classes, judged = self.cut.classes, self._judged if self.choice is None else self.choice.judged()
        config = {
            "format": FORMAT,
            "method": self.method,
            "layer": self.layer,
            "structure": self.polarizer.structure,
            "channels": self.polarizer.channels,
            "channel_dim": self.polarizer.channel_dim,
            "options": self.polarizer.options(),
            "classes": classes,
            "image_shape": list(self.image_shape),
            "fit": self.config.to_dict() if self.config else None,
            "history": list(self.history),
            "clean_images": self.clean_images,
            "judged": judged,
            "sha256": hashlib.sha256(weights).hexdigest(),  # the two files belong together
        }
        write_atomically(folder / WEIGHTS_FILE, weights)
        write_atomically(folder / CONFIG_FILE, json.dumps(config, indent=2, allow_nan=False) + "\n")
        write_card(
            folder, method=self.method, layer=self.layer, structure=self.polarizer.structure,
            channels=self.polarizer.channels, parameters=self.get_nb_trainable_parameters()[0],
            shape=self.image_shape, classes=classes, clean_images=self.clean_images, judged=judged,
            source=source,
        )  # fmt: skip

    def push_to_hub(
        self, repo_id: str, *, token: str | None = None, private: bool | None = None, endpoint: str | None = None
    ) -> str:
        """Put what `save_pretrained` writes on the Hugging Face Hub (extra `hub`), in one commit.

        Args:
            repo_id: ``user/repo``, made where it is missing; a card that is there is replaced.
            token: the user's; None: the one that `hf auth login` left.
            private: whether a repository that is made is; None: as the user has it set there.
            endpoint: address of another hub.

        Returns:
            The address of the repository.

        Example:
            >>> purified.push_to_hub("me/resnet18-polarizer")                     # doctest: +SKIP
        """
        with tempfile.TemporaryDirectory() as folder:
            self._save(Path(folder), repo_id)
            message = f"Add a neural polarizer ({self.method})"
            return upload(Path(folder), repo_id, private=private, token=token, endpoint=endpoint, message=message)

    @classmethod
    def from_pretrained(
        cls,
        model: nn.Module,
        directory: str | os.PathLike[str],
        *,
        capture: str = "auto",
        revision: str | None = None,
        token: str | None = None,
        endpoint: str | None = None,
    ) -> PolarizedModel:
        """Bring back what `save_pretrained` or `push_to_hub` wrote, on the same base: bit-identical logits.

        Args:
            directory: a folder, or, where there is none of that name, ``user/repo`` on the Hugging Face Hub (extra
                `hub`), of which the two files of the polarizer are fetched and read as all input from strangers.
            revision, token, endpoint: of the hub: branch, tag or commit; the user's token; address of another hub.

        Raises:
            InputError: no polarizer there, files that do not belong together, a polarizer for another layer or shape.
        """
        folder = Path(directory)
        if not folder.exists() and is_repository(directory):
            limits = {CONFIG_FILE: MAX_JSON, WEIGHTS_FILE: MAX_FILE}
            folder = download(str(directory), limits, revision=revision, token=token, endpoint=endpoint)
        saved = read_saved(folder)
        polarizer = saved.load(folder / WEIGHTS_FILE)
        try:
            purified = cls(
                model, polarizer.to(device_of(model)), saved.layer, image_shape=saved.image_shape,
                method=saved.method, config=saved.fit, history=saved.history, clean_images=saved.clean_images,
                judged=saved.judged, capture=capture,
            )  # fmt: skip
        except InputError as error:
            raise InputError(
                f"directory: the polarizer in {str(folder)!r} does not fit this model: {error}; "
                "give the one that it was made for"
            ) from None
        if purified.cut.classes != saved.classes:
            raise InputError(
                f"directory: the polarizer in {str(folder)!r} was made for {saved.classes} classes, "
                f"the model has {purified.cut.classes}"
            )
        return purified
