"""What happened in a fit, epoch by epoch."""

from __future__ import annotations


class History(list[dict[str, float]]):
    """A table: a list of rows, one per epoch, each a dict of plain numbers. Printing it shows the table.

    Columns: `epoch` (from 1), `loss` and its parts `loss_bn`, `loss_ce`, `loss_max`, `loss_asr` (means over the
    epoch, not yet weighted), `clean_accuracy` of the polarized model on the clean set while it was trained, and
    `reached`, the share of perturbed images that still end in their target.

    Example:
        >>> print(History([{"epoch": 1, "loss": 0.5}]))
        epoch    loss
            1  0.5000
    """

    def column(self, name: str) -> list[float]:
        """One column as a list."""
        return [row[name] for row in self]

    def __str__(self) -> str:
        if not self:
            return "(no epochs)"
        names = list(self[0])
        rows = [[f"{row[n]:d}" if isinstance(row[n], int) else f"{row[n]:.4f}" for n in names] for row in self]
        widths = [max(len(n), *(len(r[i]) for r in rows)) for i, n in enumerate(names)]
        return "\n".join("  ".join(c.rjust(w) for c, w in zip(r, widths, strict=True)) for r in [names, *rows])
