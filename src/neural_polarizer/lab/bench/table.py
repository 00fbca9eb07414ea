"""Tables from records: mean and standard deviation over seeds, the best marked, published figures apart."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ...errors import InputError
from ...files import write_atomically
from ..attacks.base import DEVELOPMENT_ATTACKS
from .cells import key_of
from .published import read_published
from .store import DONE, FAILED, REFUSED

PLACE = ["dataset", "architecture", "poisoning_ratio", "clean"]
GROUP = [*PLACE, "attack", "defence"]
HIGHER = {"acc", "ra", "der", "der_share", "auroc"}  # better when higher; of the others the lower
FIGURES = {
    "acc": "ACC",
    "asr": "ASR",
    "excess_asr": "excess ASR",
    "ra": "RA",
    "der": "DER",
    "der_share": "DER / ceiling",
    "auroc": "AUROC",
    "seconds": "seconds",
    "peak_mib": "peak MiB",
    "parameters": "parameters",
}
OVER_ATTACKS = {"acc_drop": "ACC drop", "worst_excess_asr": "worst excess ASR"}  # of leaderboards alone
PERCENT = {"acc", "asr", "excess_asr", "ra", *OVER_ATTACKS}
MARKED = {*PERCENT, "der", "der_share", "auroc"}
WOKEN, TWIN = "asr_at_", "twin_"  # columns of the re-activation attack, by budget; `twin_`: of the clean twin
OURS, PUBLISHED = "measured", "published"


def frame_of(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row per record, done or not: labels, setting, figures, seeds.

    Where a label stands for several settings of a defence, as after a change of the grid, they are told apart.
    """
    frame = pd.DataFrame([_row(r) for r in records])
    named = frame.groupby(["architecture", "defence"])["defence_key"]
    several = named.transform("nunique") > 1
    frame.loc[several, "defence"] += " #" + frame.loc[several, "defence_key"].str[:4]
    return frame


def _row(record: dict[str, Any]) -> dict[str, Any]:
    setting, labels = record["setting"], record["labels"]
    network, done = setting["network"], record["outcome"] == DONE
    row = {
        "dataset": network["dataset"],
        "architecture": labels["architecture"],
        "poisoning_ratio": setting["poisoning_ratio"],
        "clean": setting["clean"],
        "attack": labels["attack"],
        "split": "development" if labels["attack"] in DEVELOPMENT_ATTACKS else "test",
        "defence": labels["defence"],
        "defence_key": key_of({"defence": setting["defence"], "layer": setting["layer"]}),
        "seed": setting["seed"],
        "network_seed": network["seed"],
        "outcome": record["outcome"],
        "error": record.get("error", ""),
        "key": record["key"],
    }
    if done:
        row |= {f"{k}_before": record["before"][k] for k in ("acc", "asr", "ra")}
        row |= {k: record["after"][k] for k in ("acc", "asr", "ra")}
        row |= {k: record[k] for k in ("excess_asr", "der", "der_ceiling", "der_share", "auroc", "tpr_at_5_fpr")}
        row |= {k: record[k] for k in ("seconds", "peak_mib", "parameters", "clean_images", "machine")}
        for whose, name in (("", "reactivated"), (TWIN, "twin_reactivated")):
            row |= {f"{whose}{WOKEN}{r['radius']:g}": r["asr"] for r in record.get(name, [])}
    return row


def over_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation (`_std`) of every figure over the seeds of a cell; `seeds` counts them."""
    done = frame[frame["outcome"] == DONE]
    if done.empty:
        raise InputError("folder: found no cell that was measured, wanted at least one")
    names = [*FIGURES, "acc_before", "asr_before", "ra_before", "tpr_at_5_fpr"]
    names += [c for c in done if str(c).removeprefix(TWIN).startswith(WOKEN)]
    grouped = done.groupby([*GROUP, "split"], sort=False)
    mean, std = grouped[names].mean(), grouped[names].std().add_suffix("_std")
    count = grouped.size().rename("seeds")
    return _ranked(pd.concat([count, mean, std], axis=1).reset_index())


def leaderboard(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over the attacks, per defence and place: first over the seeds of an attack, then over the attacks.

    `worst_excess_asr` is that of the attack that was left strongest. Only attacks that every defence of the place
    was measured on count, so that no defence is favoured by what it left out; one that was measured on fewer than half
    of the attacks, as in a run that is not at its end, has no mean here, and its rows in the table of each attack.
    """
    rows = over_seeds(frame)
    rows["acc_drop"] = rows["acc_before"] - rows["acc"]
    rows = rows.groupby(PLACE, group_keys=False, sort=False)[rows.columns.tolist()].apply(_shared)
    grouped = rows.groupby([*PLACE, "defence"], sort=False)
    mean = grouped[[*FIGURES, "acc_drop"]].mean()
    worst = grouped["excess_asr"].max().rename("worst_excess_asr")
    attacks, seeds = grouped["attack"].nunique().rename("attacks"), grouped["seeds"].min()
    return _ranked(pd.concat([attacks, seeds, mean, worst], axis=1).reset_index())


def _ranked(rows: pd.DataFrame) -> pd.DataFrame:
    """No defence first, then the best first, within each place."""
    order = rows.assign(_some=rows["defence"] != "none", _der=-rows["der_share"])
    by = [*PLACE, *[name for name in ("split", "attack") if name in rows], "_some", "_der"]
    return rows.loc[order.sort_values(by, kind="stable").index]


def _shared(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the attacks that each defence has, of those that have half of them."""
    had = rows.groupby("defence")["attack"].nunique()
    rows = rows[rows["defence"].isin(had[2 * had >= rows["attack"].nunique()].index)]
    defences = rows["defence"].nunique()
    counts = rows.groupby("attack")["defence"].nunique()
    return rows[rows["attack"].isin(counts[counts == defences].index)]


# ---- as text ----


def _figure(row: pd.Series[Any], name: str) -> str:
    value, spread = row[name], row.get(f"{name}_std")
    if pd.isna(value):
        return ""
    if name in PERCENT:
        text = f"{100 * value:.1f}"
        return text if spread is None or pd.isna(spread) else f"{text} ± {100 * spread:.1f}"
    if name == "parameters":
        return f"{value:,.0f}"
    if name in ("seconds", "peak_mib"):
        return f"{value:.1f}" if value < 100 else f"{value:.0f}"
    return f"{value:.3f}" if spread is None or pd.isna(spread) else f"{value:.3f} ± {spread:.3f}"


def _marks(rows: pd.DataFrame, name: str) -> dict[Any, str]:
    """The best and the second best of a column by index, undefended networks left out."""
    values = rows[rows["defence"] != "none"][name].dropna().round(6)
    ranked = sorted(values.unique(), reverse=name in HIGHER)[:2]
    marks = dict(zip(ranked, ("best", "second"), strict=False))
    return {index: marks[value] for index, value in values.items() if value in marks}


Mark = Callable[[str, str], str]


def _in_markdown(text: str, mark: str) -> str:
    return {"best": f"**{text}**", "second": f"*{text}*"}.get(mark, text)


def _in_latex(text: str, mark: str) -> str:
    return {"best": rf"\textbf{{{text}}}", "second": rf"\underline{{{text}}}"}.get(mark, text)


def _text_rows(rows: pd.DataFrame, figures: Sequence[str], lead: Sequence[str], mark: Mark) -> pd.DataFrame:
    """Rows as text, best and second best marked per column."""
    marks = {name: _marks(rows, name) for name in figures if name in MARKED}
    out = []
    for index, row in rows.iterrows():
        cells = [str(row[name]) for name in lead]
        for name in figures:
            text = _figure(row, name)
            cells.append(mark(text, marks.get(name, {}).get(index, "")) if text else "")
        out.append(cells)
    return pd.DataFrame(out, columns=[*lead, *(_title(name) for name in figures)])


def _title(name: str) -> str:
    title = (FIGURES | OVER_ATTACKS)[name]
    return f"{title} (%)" if name in PERCENT else title


SUMMARY = ("acc", "acc_drop", "asr", "worst_excess_asr", "ra", "der", "der_share", "auroc", "seconds", "parameters")
DETAIL = ("acc", "asr", "excess_asr", "ra", "der", "der_share", "auroc", "seconds")


def sections(frame: pd.DataFrame, published: pd.DataFrame | None, mark: Mark) -> list[tuple[str, pd.DataFrame]]:
    """The tables of a page with their headings: per place a leaderboard, then each attack, then what is published."""
    rows, board = over_seeds(frame), leaderboard(frame)
    out: list[tuple[str, pd.DataFrame]] = []
    for place, mine in rows.groupby(PLACE, sort=False):
        dataset, architecture, ratio, clean = (mine[name].iloc[0] for name in PLACE)
        where = f"{dataset}, {architecture}, poisoning ratio {ratio:g}, {clean} clean images"
        summary = board[(board[PLACE] == list(place)).all(axis=1)]
        if len(summary):
            how = f"mean over {summary['attacks'].iloc[0]} attacks, {_seeds(summary)}"
            out.append((f"{where}: {how}", _text_rows(summary, SUMMARY, ["defence"], mark)))
        parts = [_text_rows(few, DETAIL, ["attack", "split", "defence"], mark) for _, few in mine.groupby("attack")]
        out.append((f"{where}: each attack, {_seeds(mine)}", pd.concat(parts)))
        woken = [c for c in map(str, mine.columns) if c.startswith(WOKEN) and mine[c].notna().any()]
        if woken:
            heading = f"{where}: ASR (%) after re-activation, by L2 budget (on 3x32x32), and of the clean twin"
            out.append((heading, _woken_rows(mine, woken)))
        others = _published_rows(published, str(dataset), str(architecture), float(ratio), set(mine["attack"]))
        if others is not None:
            heading = f"Published, not ours: {dataset}, poisoning ratio {ratio:g}, 5 % of the training data clean"
            out.append((heading, others))
    return out


def _seeds(rows: pd.DataFrame) -> str:
    low, high = rows["seeds"].min(), rows["seeds"].max()
    count = f"{low}" if low == high else f"{low} to {high}"
    return f"{count} seed{'' if count == '1' else 's'}{'' if high == 1 else ' (mean ± standard deviation)'}"


def _woken_rows(rows: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Per attack and defence the rate at each budget; last, per attack, what the same does to the clean twin."""
    shown = []
    for attack, mine in rows.groupby("attack", sort=False):
        for _, row in mine.iterrows():
            shown.append([attack, row["defence"], *(f"{100 * row[c]:.1f}" for c in columns)])
        shown.append([attack, "clean twin", *(f"{100 * mine[TWIN + c].mean():.1f}" for c in columns)])
    return pd.DataFrame(shown, columns=["attack", "defence", *(c.removeprefix(WOKEN) for c in columns)])


def _published_rows(
    published: pd.DataFrame | None, dataset: str, architecture: str, ratio: float, attacks: set[str]
) -> pd.DataFrame | None:
    """The published figures of the same data set, architecture and ratio, per attack that we have too."""
    if published is None:
        return None
    p = published
    fits = p["dataset"].eq(dataset) & p["poisoning_ratio"].sub(ratio).abs().lt(1e-9) & p["attack"].isin(attacks)
    fits &= p["architecture"].map(architecture.startswith)
    if not fits.any():
        return None
    figures = ("acc", "asr", "ra", "der", "der_share")
    rows = p[fits].assign(source=PUBLISHED).sort_values(["attack", "defence"])
    return _text_rows(rows, figures, ["attack", "defence", "architecture", "source"], lambda text, mark: text)


def markdown(frame: pd.DataFrame, published: pd.DataFrame | None = None) -> str:
    """Markdown: best bold, second best italic; failures and refusals below."""
    parts = [
        f"**{head}**\n\n{rows.to_markdown(index=False)}" for head, rows in sections(frame, published, _in_markdown)
    ]
    return "\n\n".join([*parts, *_unmeasured(frame)]) + "\n"


def short(frame: pd.DataFrame) -> str:
    """Markdown: the leaderboards alone, each with the attacks that it is the mean over."""
    rows, board = over_seeds(frame), leaderboard(frame)
    parts = []
    for place, mine in board.groupby(PLACE, sort=False):
        dataset, architecture, ratio, clean = (mine[name].iloc[0] for name in PLACE)
        here = _shared(rows[(rows[PLACE] == list(place)).all(axis=1)])
        attacks = ", ".join(sorted(here["attack"].unique()))
        where = f"{dataset}, {architecture}, poisoning ratio {ratio:g}, {clean} clean images, {_seeds(mine)}"
        text = _text_rows(mine, SUMMARY, ["defence"], _in_markdown).to_markdown(index=False)
        parts.append(f"**{where}: mean over {attacks}**\n\n{text}")
    return "\n\n".join(parts) + "\n"


def _unmeasured(frame: pd.DataFrame) -> list[str]:
    out = []
    for outcome, said in ((REFUSED, "Not possible"), (FAILED, "Failed")):
        rows = frame[frame["outcome"] == outcome]
        if len(rows):
            # What is not possible on an architecture is so for every attack; what failed, failed on one.
            met = {r: f" against {r.attack}" if outcome == FAILED else "" for r in rows.itertuples()}
            lines = sorted({f"- {r.defence}{against} on {r.architecture}: {r.error}" for r, against in met.items()})
            out.append(f"**{said}** ({len(rows)} cells)\n\n" + "\n".join(lines))
    return out


def latex(frame: pd.DataFrame, published: pd.DataFrame | None = None) -> str:
    """LaTeX with booktabs: best bold, second best underlined."""
    parts = []
    for head, rows in sections(frame, published, _in_latex):
        plain = rows.rename(columns=lambda c: c.replace("%", r"\%"))
        plain = plain.map(lambda t: t.replace("±", r"$\pm$").replace("_", r"\_"))
        caption = head.replace("%", r"\%").replace("_", r"\_").replace("±", r"$\pm$")
        parts.append(plain.to_latex(index=False, escape=False, caption=caption))
    return "\n".join(parts)


FORMATS = ("md", "csv", "tex", "parquet")


def write_table(path: Path, frame: pd.DataFrame, published: pd.DataFrame | None = None) -> None:
    """Write the table in the format of the file's suffix: .md, .csv, .tex or .parquet.

    CSV and Parquet hold one row per cell with mean and standard deviation over seeds, and `source`.
    """
    kind = path.suffix.removeprefix(".")
    if kind not in FORMATS:
        raise InputError(f"out: found {path.name!r}, wanted a name that ends in .{', .'.join(FORMATS)}")
    if kind in ("md", "tex"):
        write_atomically(path, (markdown if kind == "md" else latex)(frame, published))
        return
    rows = over_seeds(frame).assign(source=OURS)
    if published is not None:
        rows = pd.concat([rows, published.assign(source=PUBLISHED)], ignore_index=True)
    buffer = io.BytesIO()
    rows.to_csv(buffer, index=False) if kind == "csv" else rows.to_parquet(buffer, index=False)
    write_atomically(path, buffer.getvalue())


def published_of(paths: Sequence[Path]) -> pd.DataFrame | None:
    """The rows of all those files."""
    return pd.concat([read_published(p) for p in paths], ignore_index=True) if paths else None
