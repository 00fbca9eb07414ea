"""Write the tables of README and docs from the committed records: `python tools/tables.py [--check]`.

Each table stands between `<!-- NAME -->` and `<!-- end -->`; `--check` fails where a page is not what the records say.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from neural_polarizer.lab.baselines.registry import BASELINES
from neural_polarizer.lab.bench.published import read_published
from neural_polarizer.lab.bench.store import DONE, read_records
from neural_polarizer.lab.bench.table import frame_of, leaderboard, over_seeds, short
from neural_polarizer.lab.bench.table import markdown as markdown_of
from neural_polarizer.lab.conditioning import summary
from neural_polarizer.lab.proving import Proof, table_of
from neural_polarizer.methods import METHODS
from neural_polarizer.mixture import Family

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"


def markdown(rows: list[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def said(setting: dict[str, Any], *names: str) -> str:
    return "; ".join(f"{name}: {setting[name]}" for name in names)


DEMO = (
    "data", "train images", "test images", "clean images", "architecture", "attack", "poisoning ratio", "machine",
)  # fmt: skip


def demo_table(records: list[dict[str, Any]]) -> str:
    """What `make demo` prints: NPD, seed 0."""
    (r,) = [r for r in records if r["method"] == "npd" and r["seed"] == 0]
    rows: list[tuple[str, ...]] = [("", "ACC", "ASR", "RA", "DER", "parameters added", "seconds")]
    before, after = ([f"{r[when][k]:.1%}" for k in ("acc", "asr", "ra")] for when in ("before", "after"))
    rows.append(("before", *before, "", "", ""))
    rows.append(("after npd", *after, f"{r['der']:.3f}", f"{r['parameters']:,}", f"{r['seconds']['purify']:.0f}"))
    return f"{markdown(rows)}\n\n({said(r['setting'], *DEMO)}.)"


def demo_seeds(records: list[dict[str, Any]]) -> str:
    head = (
        "method",
        "seed",
        "ACC before",
        "ASR before",
        "ACC",
        "ASR",
        "RA",
        "DER",
        "AUROC",
        "TPR at 5 % FPR",
        "parameters",
    )
    rows: list[tuple[str, ...]] = [head]
    for r in sorted(records, key=lambda r: (METHODS.index(r["method"]), r["seed"])):
        b, a = r["before"], r["after"]
        rates = (b["acc"], b["asr"], a["acc"], a["asr"], a["ra"], r["der"], r["auroc"], r["tpr_at_5_fpr"])
        rows.append((r["method"], str(r["seed"]), *(f"{x:.3f}" for x in rates), f"{r['parameters']:,}"))
    chosen = {(METHODS.index(r["method"]), *r["setting"]["layer"].values()) for r in records}
    told = "; ".join(f"{METHODS[method]} before {layer}" for method, layer in sorted(chosen))
    versions = records[0]["setting"]["versions"]
    return f"{markdown(rows)}\n\n{said(records[0]['setting'], *DEMO)}; versions: {versions}. Chosen: {told}."


def conditioning(records: list[dict[str, Any]]) -> str:
    seeds = sorted({r["seed"] for r in records})
    told = said(records[0]["setting"], *DEMO, "copies of each", "layer")
    return f"{markdown(summary(records))}\n\n{told}; seeds: {seeds}. Mean ± standard deviation over the seeds."


def inference(record: dict[str, Any]) -> str:
    rows: list[tuple[str, ...]] = [("cut", "model", "time / base", "95 %", "bar")]
    for r in record["rows"]:
        bar = "" if r["bar"] is None else f"{r['bar']:.3f}"
        rows.append((r["cut"], r["model"], f"{r['ratio']:.3f}", f"{r['low']:.3f} to {r['high']:.3f}", bar))
    return f"{markdown(rows)}\n\n{'; '.join(f'{k}: {v}' for k, v in record['setting'].items())}."


def replicated(record: dict[str, Any]) -> str:
    rows: list[tuple[str, ...]] = [("what", "figure")]
    rows += [(k, f"{v:.2f}" if isinstance(v, float) else str(v)) for k, v in record.items() if k != "setting"]
    return f"{markdown(rows)}\n\n{'; '.join(f'{k}: {v}' for k, v in record['setting'].items())}."


def attacks(record: dict[str, Any]) -> str:
    proofs = [Proof(**{k: row[k] for k in Proof.__dataclass_fields__}) for row in record["attacks"]]
    s = record["setting"]
    told = {
        "data": f"{s['data']['name']} {s['data']['source']}, {'x'.join(map(str, s['data']['shape']))}".replace(
            " ,", ","
        ),
        "training images": s["data"]["train"] - s["hold_back"],
        "test images": s["data"]["test"],
        "architecture": f"{s['model']['arch']} {s['model']['options']}",
        "poisoning ratio": s["poisoning_ratio"],
        "target": s["target"],
        "recipe": s["recipe"],
        "seed": s["seed"],
        "machine": record["machine"],
        "versions": record["versions"],
    }
    return f"{markdown(table_of(proofs))}\n\n{'; '.join(f'{k}: {v}' for k, v in told.items())}."


def bench(records: list[dict[str, Any]]) -> str:
    (where, *others), versions = sorted({r["machine"] for r in records if "machine" in r}), records[0]["versions"]
    machines = "; ".join([where, *others])
    return f"{markdown_of(frame_of(records)).rstrip()}\n\nMachine: {machines}; versions: {versions}."


BARS = {  # set before anything was measured: least DER / ceiling, most excess ASR, most ACC drop
    2500: (0.985, 0.03, 0.005), 500: (0.975, 0.06, 0.01), 100: (0.95, 0.12, 0.02), 50: (0.92, 0.20, 0.03),
}  # fmt: skip
LEAST_RA = 0.8  # of the clean twin's, on the same triggered images, with most clean images


def bars(records: list[dict[str, Any]]) -> str:
    """What `auto` reaches on the test attacks, per architecture and clean set, beside the bars."""
    frame = frame_of(records)
    frame["ra_share"] = [r["after"]["ra"] / r["twin"]["ra"] if r["outcome"] == DONE else None for r in records]
    frame = frame[(frame["split"] == "test") & (frame["defence"] == "auto")]
    attacks = over_seeds(frame)
    rows: list[tuple[str, ...]] = [
        ("architecture", "clean images", "mean DER / ceiling", "worst attack's excess ASR", "mean ACC drop",
         "mean RA / the clean twin's", "attacks", "seeds"),
    ]  # fmt: skip

    def beside(figure: float, bar: float | None, good: bool, what: str = "") -> str:
        told = f"{figure:.3f}{what}" if abs(figure) >= 0.02 else f"{figure:.4f}{what}"
        return told if bar is None else f"{told} ({bar:g})" + ("" if good else " **missed**")

    for r in leaderboard(frame).sort_values(["architecture", "clean"], ascending=[True, False]).itertuples():
        least, most, dear = BARS[r.clean]
        own, every = (f[(f["architecture"] == r.architecture) & (f["clean"] == r.clean)] for f in (attacks, frame))
        worst, ra = own.loc[own["excess_asr"].idxmax(), "attack"], every.groupby("attack")["ra_share"].mean().mean()
        rows.append((
            r.architecture, f"{r.clean:,}", beside(r.der_share, least, r.der_share >= least),
            beside(r.worst_excess_asr, most, r.worst_excess_asr <= most, f", {worst}"),
            beside(r.acc_drop, dear, r.acc_drop <= dear),
            beside(ra, LEAST_RA if r.clean == max(BARS) else None, ra >= LEAST_RA), str(r.attacks), str(r.seeds),
        ))  # fmt: skip
    return f"{markdown(rows)}\n\nBars in brackets; the mean over seeds per attack, then over attacks."


PUBLISHED = RESULTS / "published_badnets.csv"  # of BackdoorBench's leaderboard, for the docs alone


def validation(records: list[dict[str, Any]]) -> str:
    """Every baseline on BadNets, on CIFAR-10 where it was measured there, else on digits, beside a published figure."""
    published = read_published(PUBLISHED).set_index("defence")
    rows: list[tuple[str, ...]] = [
        ("baseline", "ours on", "clean images", "ACC", "ASR", "published: ratio", "ACC", "ASR"),
    ]

    def change(before: float, after: float) -> str:
        return f"{100 * before:.1f} → {100 * after:.1f}"

    for name in BASELINES:
        own = [
            r
            for r in records
            if r["outcome"] == "done" and (r["labels"]["defence"], r["labels"]["attack"]) == (name, "badnets")
        ]
        if not own:
            continue
        r = max(own, key=lambda r: (r["setting"]["network"]["dataset"] == "cifar10", r["setting"]["clean"]))
        theirs = ("", "", "")
        if name in published.index:
            t = published.loc[name]
            theirs = (
                f"{t.poisoning_ratio:g}", change(t.acc_before, t.acc), change(t.asr_before, t.asr),
            )  # fmt: skip
        b, a = r["before"], r["after"]
        where = f"{r['setting']['network']['dataset']}, {r['labels']['architecture']}"
        rows.append(
            (f"`{name}`", where, f"{r['setting']['clean']:,}", change(b["acc"], a["acc"]), change(b["asr"], a["asr"]),
             *theirs)
        )  # fmt: skip
    return markdown(rows)


BOARD = ("none", "ft", "fp", "nad", "anp", "clp", "ibau", "ft_sam", "auto")  # of the short form


def board(records: list[dict[str, Any]]) -> str:
    shown = [r for r in records if r["labels"]["defence"] in BOARD]
    return short(frame_of(shown)).rstrip()


def ratios(record: dict[str, Any]) -> str:
    """What `benchmarks/` measured against bars."""
    rows: list[tuple[str, ...]] = [("what", "median", "95 %", "bar", "")]
    for r in record["rows"]:
        bar = "" if r["bar"] is None else f"{'at most' if r['at_most'] else 'at least'} {r['bar']:g}"
        met = "" if r["bar"] is None else "met" if r["met"] else "missed"
        digits = 1 if "MiB" in r["what"] else 3
        spread = f"{r['low']:.{digits}f} to {r['high']:.{digits}f}" if r["runs"] > 1 else "one run"
        rows.append((r["what"], f"{r['ratio']:.{digits}f}", spread, bar, met))
    told = "; ".join(f"{k}: {v}" for k, v in record["setting"].items())
    return f"{markdown(rows)}\n\n{told}."


def screening(record: dict[str, Any]) -> str:
    rows: list[tuple[str, ...]] = [
        ("network", "ACC", "ASR", "target", "suspicion", "class that stands out"),
    ]
    for m in record["models"]:
        asr, true, found = m["asr"], m["true_target"], m["target"]
        rows.append(
            (m["name"], f"{m['acc']:.3f}", "" if asr is None else f"{asr:.3f}", "" if true is None else str(true),
             f"{m['score']:.3f}", "" if found is None else str(found))
        )  # fmt: skip
    told = "; ".join(f"{k}: {v}" for k, v in record["setting"].items())
    return f"{markdown(rows)}\n\nAUROC of the ranking: {record['auroc']:.3f}. {told}."


def few_images(record: dict[str, Any]) -> str:
    """Per network the accuracy that a fit costs, and ASR and RA after it."""
    rows: list[tuple[str, ...]] = [("network", "fit", "λ", "ACC drop", "ASR", "RA")]
    for r in record["rows"]:
        b, a = r["before"], r["after"]
        told = (f"{a['asr']:.3f}", f"{a['ra']:.3f}") if "asr" in a else ("", "")
        rows.append((r["network"], r["variant"], f"{r['strength']:g}", f"{b['acc'] - a['acc']:+.4f}", *told))
    told_of = said(record, "images", "test_images", "layer", "seed", "machine", "versions")
    return f"{markdown(rows)}\n\nNPD; {told_of}."


def trials(record: dict[str, Any]) -> str:
    """Per network and trial what its judges said, and what is true of test images."""
    rows: list[tuple[str, ...]] = [
        ("network", "layer", "λ", "look", "drop on judges", "doubt", "repaired", "in the budget", "ACC drop", "ASR"),
    ]
    for r in record["rows"]:
        t, drop, mark = r["trial"], r["before"]["acc"] - r["after"]["acc"], "**" if r["taken"] else ""
        asr = f"{r['after']['asr']:.3f}" if "asr" in r["after"] else ""
        rows.append(
            (r["network"], f"{mark}{t['layer']}{mark}", f"{t['strength']:.3g}", str(t["look"]),
             f"{t['accuracy_drop']:+.3f}", f"{t['doubt']:.4f}", f"{t['repaired']:.3f}",
             "yes" if t["within_budget"] else "no", f"{drop:+.4f}", asr)
        )  # fmt: skip
    return f"{markdown(rows)}\n\nBold: taken. {said(record, 'images', 'test_images', 'seed', 'machine', 'versions')}."


def leads(record: dict[str, Any]) -> str:
    """Per lead and strength, the accuracy that a fit costs on every network, and the ASR that it leaves."""
    networks = sorted({r["network"] for r in record["rows"]}, key=lambda name: (name != "none", name))
    cells, about = dict[tuple[str, float], dict[str, str]](), dict[str, str]()
    for r in record["rows"]:
        b, a = r["before"], r["after"]
        asr = "" if a is None or "asr" not in a else f", {a['asr']:.3f}"
        cell = "diverged" if a is None else f"{b['acc'] - a['acc']:+.4f}{asr}"
        cells.setdefault((r["lead"], r["strength"]), {})[r["network"]] = cell
        about[r["lead"]] = r["about"]
    rows: list[tuple[str, ...]] = [("lead", "what it is", "λ", *networks)]
    for (lead, strength), own in cells.items():
        rows.append((lead, about[lead], f"{strength:g}", *(own.get(name, "") for name in networks)))
    told_of = said(record, "images", "test_images", "layer", "seed", "machine", "versions")
    return f"{markdown(rows)}\n\nACC drop, ASR. {told_of}."


def clean_cost(record: dict[str, Any]) -> str:
    """Per network and number of clean images, the mean and the largest accuracy drop over the seeds."""
    rows: list[tuple[str, ...]] = [
        (
            "network",
            "clean images",
            "ACC before",
            "mean ACC drop",
            "largest",
            "suspected",
            "identity returned",
            "seeds",
        ),
    ]
    for model, images in dict.fromkeys((json.dumps(r["model"]), r["images"]) for r in record["rows"]):
        own = [r for r in record["rows"] if (json.dumps(r["model"]), r["images"]) == (model, images)]
        drops, about = [r["before"] - r["after"] for r in own], json.loads(model)
        name = f"{about['arch']} of width {about['options']['width']}"
        suspected, left = sum(r["suspect"] is not None for r in own), sum(r["chosen"] is None for r in own)
        rows.append(
            (name, f"{images:,}", f"{own[0]['before']:.4f}", f"{mean(drops):+.4f}", f"{max(drops):+.4f}",
             str(suspected), str(left), ", ".join(str(r["seed"]) for r in own))
        )  # fmt: skip
    return f"{markdown(rows)}\n\n{said(record, 'test_images', 'machine', 'versions')}."


def families(record: dict[str, Any]) -> str:
    """Per family and network, what is reached most, and the lead from the classes that it is hardest from."""
    networks = list(dict.fromkeys(r["network"] for r in record["rows"]))
    rows: list[tuple[str, ...]] = [("family", "radius", "tells", *networks)]
    kinds = dict[tuple[str, float, bool], list[dict[str, Any]]]()
    for r in record["rows"]:
        kinds.setdefault((r["family"]["threat"], r["family"]["radius"], r["default"]), []).append(r)
    for (threat, radius, used), own in kinds.items():
        cells = []
        for r in own:
            first, second = sorted(r["hardest"], reverse=True)[:2]
            leader = r["hardest"].index(first)
            mark = "**" if leader == r["target"] else ""
            cells.append(f"{max(r['reached']):.2f}, {mark}{first - second:+.2f}{mark} ({leader})")
        tells = f"{Family(**own[0]['family']).telling:g}" if used else "not used"
        rows.append((threat, f"{radius:g}", tells, *cells))
    told = f"{record['images']} images; seed {record['seed']}; {record['machine']}; torch {record['versions']['torch']}"
    return f"{markdown(rows)}\n\n{told}."


def read(source: Path) -> Any:
    """A record, or all records of a folder and of those in it."""
    if not source.is_dir():
        return json.loads(source.read_text())
    inner = [r for folder in sorted(source.iterdir()) if folder.is_dir() for r in read_records(folder)]
    return inner or read_records(source)


TABLES = (
    ("README.md", "demo-table", "demo.json", demo_table),
    ("README.md", "leaderboard", "bench/cifar10-narrow", board),
    ("docs/benchmark.md", "bench-cifar10-narrow", "bench/cifar10-narrow", bench),
    ("docs/attacks.md", "attacks-digits", "attacks_digits.json", attacks),
    ("docs/attacks.md", "attacks-cifar10", "attacks_cifar10.json", attacks),
    ("docs/benchmark.md", "validation", "bench", validation),
    ("docs/benchmark.md", "bench-smoke", "bench/smoke", bench),
    ("docs/benchmark.md", "bench-ablations", "bench/ablations", bench),
    ("docs/performance.md", "fit", "fit.json", ratios),
    ("docs/performance.md", "fit-rounds", "fit_rounds.json", ratios),
    ("docs/performance.md", "memory", "memory.json", ratios),
    ("docs/performance.md", "scaling", "scaling.json", ratios),
    ("docs/performance.md", "startup", "startup.json", ratios),
    ("docs/performance.md", "threads", "threads.json", ratios),
    ("docs/results.md", "demo-seeds", "demo.json", demo_seeds),
    ("docs/results.md", "conditioning", "conditioning.json", conditioning),
    ("docs/results.md", "inference", "inference.json", inference),
    ("docs/benchmark.md", "bars-purify-cifar10", "bench/purify-cifar10", bars),
    ("docs/benchmark.md", "bench-purify-cifar10", "bench/purify-cifar10", bench),
    ("docs/benchmark.md", "bench-architectures-cifar10", "bench/architectures-cifar10", bench),
    ("docs/benchmark.md", "bars-vgg-cifar10", "bench/vgg-cifar10", bars),
    ("docs/benchmark.md", "bench-vgg-cifar10", "bench/vgg-cifar10", bench),
    ("docs/benchmark.md", "bench-flawed-cifar10", "bench/flawed-cifar10", bench),
    ("docs/benchmark.md", "bench-adaptive", "bench/adaptive", bench),
    ("docs/results.md", "screening", "screening.json", screening),
    ("docs/results.md", "families", "families.json", families),
    ("docs/results.md", "few-images", "few_images.json", few_images),
    ("docs/results.md", "trials", "trials.json", trials),
    ("docs/results.md", "trials-100", "trials_100.json", trials),
    ("docs/results.md", "leads", "leads.json", leads),
    ("docs/results.md", "clean-cost", "clean_cost.json", clean_cost),
    ("docs/results.md", "replicated", "replicated.json", replicated),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for page, name, source, table in TABLES:
        path, start = ROOT / page, f"<!-- {name} -->\n"
        before, rest = path.read_text(encoding="utf-8").split(start)
        after = rest[rest.index("<!-- end -->") :]
        text = f"{before}{start}\n{table(read(RESULTS / source))}\n\n{after}"
        if check and text != path.read_text(encoding="utf-8"):
            stale.append(f"{page}: {name}")
        elif not check:
            path.write_text(text, encoding="utf-8")
    if stale:
        print("stale tables, run python tools/tables.py:", ", ".join(stale), file=sys.stderr)
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main())
