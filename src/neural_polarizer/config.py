"""All hyper-parameters of a fit, in one place, with the reason for the unusual ones beside them.

Sources: the authors' code and papers (arXiv 2306.16697, 2502.18520); `FitConfig.published(...)` has theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from .checks import check_choice, check_number
from .errors import InputError
from .mixture import Family, read_mixture
from .perturb import NORMS, SHARES, STEP_RULES, Additive, Descent, Share, ThreatModel
from .polarizers import STRUCTURES

CONDITIONINGS = ("predicted", "none", "label", "random")
REFERENCE = 3 * 32 * 32  # the image size for which the published radius was given
PASS_VALUES = 1 << 22  # of images in a pass: 27 of 3x224x224, more than a batch of 3x64x64
CPU_PASS = 64  # images in a pass on a CPU: as fast as a batch of 128, and half its memory

_PUBLISHED: dict[str, dict[str, Any]] = {
    "cifar10": {"radius": 3.0},
    "gtsrb": {"radius": 5.0, "lambda_ce": 0.5, "lambda_max": 0.5, "lambda_asr": 0.5},
    "tiny": {
        "radius": 6.0, "step_rule": "plain", "lambda_ce": 1.0, "lambda_max": 0.1, "lambda_asr": 0.1,
        "warmup_epochs": 0, "statistics": "batch",
    },
}  # fmt: skip
_PUBLISHED_LINF: dict[str, Any] = {"norm": "linf", "radius": 0.2, "step": 0.44, "steps": 10, "start": 0.2}
_ONE_FAMILY = ("norm", "radius", "share", "start", "steps", "step", "step_rule", "early_exit")
# Chosen on BadNets all-to-one, Blended and WaNet alone, narrow PreAct-ResNet18 on CIFAR-10; figures in docs/method.md.
_IN_ROUNDS: dict[str, Any] = {
    "loop": "rounds",
    "mixture": (
        Family(threat="l2", radius=1.0, share="target", steps=20, step=0.2, focus=2),
        Family(threat="l2", radius=3.0, share="target", steps=20, step=0.2, focus=2),
        Family(threat="smooth", radius=2.0, grid=16, share="target", steps=20, step=0.2, focus=2),
        Family(threat="wave", radius=4.5, grid=24, share="target", steps=0, focus=2),
        Family(threat="wave", radius=9.0, grid=24, share="target", steps=0, focus=2),
        Family(threat="flow", radius=1.5, share="target", steps=20, step=0.2, rule="sign", focus=2),
        Family(threat="patch", radius=3, share="target", steps=20, step=0.2, focus=2),
        Family(threat="patch", radius=5, share="target", steps=20, step=0.2, focus=2),
        Family(threat="pixels", radius=16, share="target", steps=20, step=0.2, focus=2),
        Family(threat="quantised", radius=8, share="target", steps=20, step=0.5, rule="sign", focus=2),
    ),
    "views": 3,  # without them the clean images are learned by heart: 0.5 to 0.8 points more of accuracy lost
    "clip": 1.0,  # the first steps on kept copies have gradients that throw e-CNPD away and cost NPD accuracy
    "condition": "reached", "aim": "label", "benign": "original", "lambda_ce": 0.1, "lambda_max": 0.1,
    "lambda_asr": 0.1, "warmup_epochs": 0, "epochs": 15, "least_steps": 240, "schedule": "cosine", "weight_decay": 0.0,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How a polarizer is trained: batch by batch as in the papers, or in rounds.

    Args:
        loop: "batch" perturbs every batch against the model as it is, then steps. "rounds" (ours) perturbs all clean
            images at once, keeps what changed the original model's prediction, and fits on that; see `rounds`.
        rounds: how often, each time with `epochs` of fitting: the first against the original model, later ones as
            `fool` says, and what earlier ones found is kept.
        views: with "rounds": of every clean image so many further views (of few images more), moved and mirrored, on
            which the original output is kept as well; wants benign="original".
        mix_views: of few images every second one of the views that are more is mixed with another image.
        least_steps: with "rounds": a round has more epochs than `epochs` where those would be fewer steps than this.
        mixture: with "rounds": what perturbs, instead of the one ball of the next two lines; see `Family`.
        norm, radius, start: the ball of the inner problem. Radius None keeps the per-pixel RMS of L2 3.0 on
            3x32x32 at any image size (L∞: 0.2; L1: the L2 radius times √(C·H·W)/4).
        share: one perturbation per "sample", per "batch", or per "target" class (the universal variants).
        steps, step, step_rule, early_exit: the descent; see `Descent`.
        target: "runner-up" (the polarized model's, sample by sample), "random" (uniform over the wrong classes), a
            class index, "none" (untargeted), or None: the method's own, runner-up for NPD and random for CNPD.
        fool: the inner problem fools the "polarized" model, the "original" one, or "both" (ours: under attack CNPD's
            condition is the original model's prediction, so a perturbation that does not change it is none).
        condition: CNPD: perturbed images carry their "target", or the class that they "reached" in the original model.
        conditioning: CNPD, for the ablation: the class that stands for an image is what is "predicted" (and aimed at),
            "none" (one for all), its "label" (an oracle), or "random".
        embedding: dimension d of e- and a-CNPD.
        lambda_bn, lambda_ce, lambda_max, lambda_asr: weights of the outer losses.
        lambda_still: with "rounds": weight of L_still (ours): how far clean activations move at the cut, see `losses`.
        benign: L_bn is the cross-entropy with the "label", or the KL divergence from the "original" model's output.
        aim: L_ce aims at the polarized model's own "prediction" on the clean image, or at the "label".
        structure, rank, hidden: the polarizer (`polarizers.STRUCTURES`); rank for "low-rank", hidden for "relu".
        mergeable: NPD: train it without a constant part, g(m) = A m, so that `merge` can fold it into a convolution
            with zero padding as well; what the means and biases of its BatchNorm could do is given up.
        warmup_epochs, warmup_lr: first on clean images alone, with batch statistics.
        statistics: BatchNorm of the polarizer in the main loop: "running", or "batch" on the clean images and
            frozen on the perturbed ones.
        epochs, batch_size, lr, momentum, weight_decay: SGD.
        micro_batch: images in a pass at a time; their gradients are added up, so that a step is that of the batch up to
            rounding (and to the patience of `early_exit`). None: on a GPU the batch, or of large images so many
            that memory stays bounded (`PASS_VALUES`); on a CPU at most `CPU_PASS`.
        compile: `torch.compile` for the frozen network of a fit. It takes its time first, and on a CPU a compiler; what
            it cannot take runs without, with a warning. Where layer or method are chosen, the trials run so, and not
            what perturbs.
        clip: the longest gradient of a step (L2, over all parameters); None: as long as it is.
        schedule: the rate is "constant" (the authors configure a cosine but never step it), or falls as a "cosine".

    Raises:
        InputError: a value of the wrong kind or outside its range.

    Example:
        >>> FitConfig(epochs=10).radius_for((3, 64, 64))
        6.0
    """

    loop: Literal["batch", "rounds"] = "batch"
    rounds: int = 1
    views: int = 0
    mix_views: bool = False
    least_steps: int = 0
    mixture: tuple[Family, ...] = ()
    norm: Literal["l2", "linf", "l1"] = "l2"
    radius: float | None = None
    share: Share = "sample"
    start: float = 0.0
    steps: int = 2
    step: float = 0.1  # signed, so one step already spans 5.5 in L2 on 3x32x32: the ball decides, not the step
    step_rule: Literal["sign", "plain", "normalized"] = "sign"
    early_exit: float | None = 0.6
    target: Literal["runner-up", "random", "none"] | int | None = None
    fool: Literal["polarized", "original", "both"] = "polarized"
    condition: Literal["target", "reached"] = "target"
    conditioning: Literal["predicted", "none", "label", "random"] = "predicted"
    embedding: int = 16
    lambda_bn: float = 1.0
    lambda_ce: float = 0.4
    lambda_max: float = 0.4
    lambda_asr: float = 0.4
    lambda_still: float = 0.0
    benign: Literal["label", "original"] = "label"
    aim: Literal["prediction", "label"] = "prediction"
    structure: str = "full"
    rank: int = 8
    hidden: int | None = None
    mergeable: bool = False
    warmup_epochs: int = 5
    warmup_lr: float = 1e-4
    statistics: Literal["running", "batch"] = "running"
    epochs: int = 50
    batch_size: int = 128
    micro_batch: int | None = None
    compile: bool = False
    lr: float = 0.01
    schedule: Literal["constant", "cosine"] = "constant"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip: float | None = None

    def __post_init__(self) -> None:
        for name, choices in (
            ("loop", ("batch", "rounds")),
            ("norm", NORMS),
            ("share", SHARES),
            ("step_rule", STEP_RULES),
            ("structure", STRUCTURES),
            ("benign", ("label", "original")),
            ("aim", ("prediction", "label")),
            ("fool", ("polarized", "original", "both")),
            ("condition", ("target", "reached")),
            ("conditioning", CONDITIONINGS),
            ("statistics", ("running", "batch")),
            ("schedule", ("constant", "cosine")),
        ):
            check_choice(name, getattr(self, name), choices)
        for name in ("step", "lr", "warmup_lr"):
            check_number(name, getattr(self, name), above=0)
        for name in ("radius", "early_exit", "clip"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=0)
        for name in ("lambda_bn", "lambda_ce", "lambda_max", "lambda_asr", "lambda_still", "momentum", "weight_decay"):
            check_number(name, getattr(self, name), least=0)
        check_number("start", self.start)
        for name in ("steps", "batch_size", "rank", "embedding", "rounds"):
            check_number(name, getattr(self, name), least=1, whole=True)
        for name in ("hidden", "micro_batch"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), least=1, whole=True)
        for name in ("epochs", "warmup_epochs", "views", "least_steps"):
            check_number(name, getattr(self, name), least=0, whole=True)
        if isinstance(self.target, bool) or not (
            self.target in (None, "runner-up", "random", "none") or (isinstance(self.target, int) and self.target >= 0)
        ):
            raise InputError(f"target: found {self.target!r}, wanted 'runner-up', 'random', 'none' or a class index")
        for name in ("mergeable", "compile", "mix_views"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name}: found {getattr(self, name)!r}, wanted True or False")
        if self.mergeable and not STRUCTURES[self.structure].affine:
            raise InputError(f"mergeable: found True for structure {self.structure!r}, which no layer can take up")
        if self.micro_batch is not None and self.statistics == "batch":
            raise InputError(f"micro_batch: found {self.micro_batch} with statistics='batch', wanted None: not a sum")
        object.__setattr__(self, "mixture", read_mixture(self.mixture))
        self._fits_its_loop()

    def _fits_its_loop(self) -> None:
        """No option that the loop would ignore."""
        if self.loop == "batch":
            others = (self.mixture, self.views, self.least_steps, self.lambda_still, self.mix_views)
            if self.rounds != 1 or any(others):
                raise InputError("loop: found 'batch' with options of the other loop, wanted 'rounds'")
            return
        if self.views and self.benign != "original":
            raise InputError(f"benign: found {self.benign!r} with views, wanted 'original': no label may survive")
        if self.target in ("runner-up", "none"):
            raise InputError(f"target: found {self.target!r}, wanted 'random' or a class index for loop='rounds'")
        if self.conditioning != "predicted":
            raise InputError(f"conditioning: found {self.conditioning!r}, wanted 'predicted' for loop='rounds'")
        for field in fields(self):
            if self.mixture and field.name in _ONE_FAMILY and getattr(self, field.name) != field.default:
                raise InputError(
                    f"{field.name}: found {getattr(self, field.name)!r} beside a mixture, wanted the values that its "
                    "families give"
                )

    @classmethod
    def published(
        cls, dataset: Literal["cifar10", "gtsrb", "tiny"], *, norm: Literal["l2", "linf"] = "l2"
    ) -> FitConfig:
        """The authors' settings to the letter, radius included, for PreAct-ResNet18 at ``layer4.1.conv1``.

        ``norm="linf"`` is the option of their code; for L1 they give no values.
        """
        check_choice("dataset", dataset, _PUBLISHED)
        check_choice("norm", norm, ("l2", "linf"))
        ball = _PUBLISHED_LINF if norm == "linf" else {}
        return cls(**{**_PUBLISHED[dataset], **ball})

    @classmethod
    def in_rounds(cls, **changes: Any) -> FitConfig:
        """One round against the original model, with a mixture of threat models; `changes` are fields of `FitConfig`.

        A polarizer stops only the kinds of trigger that the inner problem can make, hence the mixture; and on a
        backdoored model most perturbations end in the attacker's class, hence the condition on the class reached.

        Example:
            >>> sorted({f.threat for f in FitConfig.in_rounds(epochs=5).mixture})
            ['flow', 'l2', 'patch', 'pixels', 'quantised', 'smooth', 'wave']
        """
        return cls(**{**_IN_ROUNDS, **changes})

    def radius_for(self, shape: Sequence[int]) -> float:
        """The radius in pixel units for images of `shape` (C, H, W)."""
        if self.radius is not None:
            return float(self.radius)
        size = math.prod(shape)
        if self.norm == "linf":
            return 0.2
        l2 = 3.0 * math.sqrt(size / REFERENCE)
        return l2 if self.norm == "l2" else l2 * math.sqrt(size) / 4

    def threat(self, shape: Sequence[int]) -> Additive:
        """The threat model for images of `shape` (C, H, W)."""
        return Additive(norm=self.norm, radius=self.radius_for(shape), share=self.share, start=self.start)

    def pass_size(self, shape: Sequence[int], kind: str = "cpu") -> int:
        """How many images of `shape` (C, H, W) are in a pass at a time, on this type of device."""
        fit = max(1, PASS_VALUES // math.prod(shape))
        return min(self.batch_size, self.micro_batch or (min(fit, CPU_PASS) if kind == "cpu" else fit))

    def descent(self, shape: Sequence[int], kind: str = "cpu") -> Descent:
        """The descent for images of `shape` (C, H, W) on this type of device."""
        return Descent(
            steps=self.steps, step=self.step, rule=self.step_rule, early_exit=self.early_exit,
            micro_batch=self.pass_size(shape, kind),
        )  # fmt: skip

    def families(self, shape: Sequence[int], kind: str = "cpu") -> list[tuple[ThreatModel, Descent]]:
        """What perturbs images of `shape` (C, H, W) in rounds: the mixture, or the one ball where there is none."""
        if not self.mixture:
            return [(self.threat(shape), self.descent(shape, kind))]
        size = self.pass_size(shape, kind)
        return [(f.threat_model(shape), replace(f.descent(shape), micro_batch=size)) for f in self.mixture]

    def focus(self) -> list[int]:
        """Of each of `families`, how many classes get a perturbation that is found for them alone."""
        return [f.focus for f in self.mixture] if self.mixture else [0]

    def copies(self) -> int:
        """How many perturbed copies of an image a round can find at most."""
        return sum(2 if focus else 1 for focus in self.focus())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "mixture": [asdict(family) for family in self.mixture]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FitConfig:
        """The inverse of `to_dict`; unknown names are an error."""
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise InputError(f"config: found unknown names {sorted(unknown)}")
        return cls(**values)
