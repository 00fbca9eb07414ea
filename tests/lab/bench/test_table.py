from __future__ import annotations

import json

import pandas as pd
import pytest

from neural_polarizer.errors import InputError
from neural_polarizer.lab.bench.plot import write_plots
from neural_polarizer.lab.bench.published import read_published
from neural_polarizer.lab.bench.store import read_records
from neural_polarizer.lab.bench.table import frame_of, latex, leaderboard, markdown, over_seeds, short, write_table


def record(
    defence, attack="badnets", seed=0, acc=0.9, asr=0.1, der=0.9, clean=100, outcome="done", options=None, **more
):
    rates = {"acc": acc, "asr": asr, "ra": 0.8, "images": 100, "triggered": 90}
    done = {
        "before": {**rates, "acc": 0.92, "asr": 1.0},
        "after": rates,
        "excess_asr": asr - 0.05,
        "der": der,
        "der_ceiling": 1.0,
        "der_share": der,
        "auroc": 0.99,
        "tpr_at_5_fpr": 0.9,
        "seconds": 3.0,
        "peak_mib": 300.0,
        "parameters": 1234,
        "clean_images": clean,
        "machine": "here",
    }
    return {
        "key": f"{defence}{attack}{seed}{clean}",
        "labels": {"architecture": "small_resnet", "attack": attack, "defence": defence},
        "setting": {
            "poisoning_ratio": 0.1,
            "clean": clean,
            "seed": seed,
            "layer": None,
            "defence": {"name": defence, "options": options or {}},
            "network": {"dataset": "cifar10", "seed": 0},
        },
        "outcome": outcome,
        **(done if outcome == "done" else {"error": "needs BatchNorm"}),
        **more,
    }


RECORDS = [
    record("none", acc=0.92, asr=1.0, der=0.5),
    record("ft", seed=0, asr=0.2, der=0.85),
    record("ft", seed=1, asr=0.4, der=0.75),
    record("npd", asr=0.02, der=0.97),
    record("none", attack="sig", acc=0.92, asr=1.0, der=0.5),
    record("ft", attack="sig", asr=0.5, der=0.7),
    record("npd", attack="sig", asr=0.1, der=0.93),
    record("ft", attack="lf", asr=0.9, der=0.5),
    record("clp", outcome="refused"),
]


def test_mean_and_standard_deviation_over_seeds():
    rows = over_seeds(frame_of(RECORDS)).set_index(["attack", "defence"])
    assert rows.loc[("badnets", "ft"), "seeds"] == 2
    assert rows.loc[("badnets", "ft"), "asr"] == pytest.approx(0.3)
    assert rows.loc[("badnets", "ft"), "asr_std"] == pytest.approx(0.1414, abs=1e-4)
    assert pd.isna(rows.loc[("sig", "npd"), "asr_std"])
    assert rows.loc[("badnets", "npd"), "split"] == "development"
    assert rows.loc[("sig", "npd"), "split"] == "test"


def test_the_leaderboard_counts_only_attacks_that_all_have():
    board = leaderboard(frame_of(RECORDS)).set_index("defence")
    assert board.loc["ft", "attacks"] == 2, "lf was measured for ft alone"
    assert board.loc["ft", "der"] == pytest.approx((0.8 + 0.7) / 2)
    assert board.loc["npd", "worst_excess_asr"] == pytest.approx(0.05)
    assert board.loc["npd", "acc_drop"] == pytest.approx(0.02)


def test_a_defence_that_has_hardly_begun_does_not_decide_which_attacks_count():
    begun = frame_of([*RECORDS, record("anp", attack="lf")])  # one attack of three
    board = leaderboard(begun)
    assert board["defence"].tolist() == ["none", "npd", "ft"]
    assert set(board["attacks"]) == {2}
    assert "anp" in markdown(begun).split("each attack")[1]


def test_markdown_marks_best_and_second_and_says_what_is_missing():
    text = markdown(frame_of(RECORDS))
    board = text.split("each attack")[0]
    assert "cifar10, small_resnet, poisoning ratio 0.1, 100 clean images: mean over 2 attacks" in board
    npd, ft = (next(line for line in board.splitlines() if line.startswith(f"| {d} ")) for d in ("npd", "ft"))
    assert "**0.950**" in npd
    assert "*0.750*" in ft
    assert "30.0 ± 14.1" in text
    assert "- clp on small_resnet: needs BatchNorm" in text
    broken = {**record("npd", attack="lf"), "outcome": "failed", "error": "diverged"}
    assert "- npd against lf on small_resnet: diverged" in markdown(frame_of([*RECORDS, broken]))
    none = next(line for line in board.splitlines() if line.startswith("| none"))
    assert "*" not in none, "no defence is not in the race"


def test_two_settings_under_one_label_are_not_averaged():
    twice = [record("none", der=0.5), record("ft", options={"epochs": 1}), record("ft", options={"epochs": 2}, der=0.7)]
    twice[2]["key"] = "another"
    rows = over_seeds(frame_of(twice))
    assert len(rows) == 3
    names = [d for d in rows["defence"] if d.startswith("ft #")]
    assert len(set(names)) == 2


def test_no_defence_comes_first_and_then_the_best():
    assert leaderboard(frame_of(RECORDS))["defence"].tolist() == ["none", "npd", "ft"]


def test_the_reactivation_attack_has_a_table_of_its_own():
    woken = {
        "reactivated": [{"radius": 0.5, "asr": 0.25}, {"radius": 2.0, "asr": 0.75}],
        "twin_reactivated": [{"radius": 0.5, "asr": 0.125}, {"radius": 2.0, "asr": 0.5}],
    }
    text = markdown(frame_of([record("none", **woken), record("npd", **woken)]))
    table = text[text.index("after re-activation") :]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if "|" in line]
    assert ["badnets", "npd", "25", "75"] in [[c.removesuffix(".0") for c in line] for line in lines]
    assert ["badnets", "clean twin", "12.5", "50"] in [[c.removesuffix(".0") for c in line] for line in lines]
    assert "re-activation" not in markdown(frame_of(RECORDS))


def test_the_short_form_names_the_attacks_that_it_is_the_mean_over():
    text = short(frame_of([r for r in RECORDS if r["labels"]["defence"] in ("none", "ft", "npd")]))
    assert "mean over badnets, sig**" in text, "not lf, which only one defence has"
    assert text.count("| npd ") == 1


def test_latex_has_no_loose_ends():
    text = latex(frame_of(RECORDS))
    assert r"\toprule" in text
    assert r"\textbf{0.950}" in text
    assert r"\underline{0.750}" in text
    assert r"small\_resnet" in text
    assert not [line for line in text.splitlines() if "%" in line.replace(r"\%", "")]


PUBLISHED = """dataset,backbone,poisoning_ratio,attack,defense,acc,asr,ra
cifar10,small_resnet,0.1,badnet,no defense,0.92,0.95,0.05
cifar10,small_resnet,0.1,badnet,i-bau,0.90,0.05,0.85
cifar10,small_resnet,0.1,blind,i-bau,0.90,0.05,0.85
cifar10,small_resnet,0.05,badnet,i-bau,0.90,0.05,0.85
"""


def test_published_figures_stand_apart(tmp_path):
    path = tmp_path / "published.csv"
    path.write_text(PUBLISHED)
    others = read_published(path)
    ibau = others[others["defence"] == "ibau"]
    assert ibau["der"].tolist() == pytest.approx([(0.9 - 0.02 + 1) / 2])  # without an undefended row there is no DER
    text = markdown(frame_of(RECORDS), others)
    ours, theirs = text.split("**Published, not ours")
    assert "ibau" not in ours
    assert "| badnets  | ibau" in theirs
    assert "published" in theirs
    write_table(tmp_path / "t.csv", frame_of(RECORDS), others)
    rows = pd.read_csv(tmp_path / "t.csv")
    assert set(rows[rows["defence"] == "ibau"]["source"]) == {"published"}
    assert set(rows[rows["defence"] == "npd"]["source"]) == {"measured"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PUBLISHED.replace("asr", "asrr"), "has no column asr"),
        (PUBLISHED.replace("0.85", "85"), "rates outside"),
        (PUBLISHED.replace("0.85", "good"), "rates outside"),
        ("", "is no CSV"),
        (None, "cannot be read"),
    ],
)
def test_bad_published_figures(tmp_path, text, message):
    path = tmp_path / "published.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_published(path)


def test_files(tmp_path):
    for suffix in ("md", "csv", "tex", "parquet"):
        write_table(tmp_path / f"t.{suffix}", frame_of(RECORDS))
    read = pd.read_parquet(tmp_path / "t.parquet")
    assert len(read) == len(pd.read_csv(tmp_path / "t.csv")) == 7
    with pytest.raises(InputError, match=r"\.md, \.csv, \.tex, \.parquet|ends in"):
        write_table(tmp_path / "t.xlsx", frame_of(RECORDS))
    assert not (tmp_path / "t.xlsx").exists()


def test_plots(tmp_path):
    more = [record("npd", clean=10, der=0.8), record("none", clean=10, der=0.5), record("ft", clean=10, der=0.6)]
    files = write_plots(tmp_path / "plots", frame_of(RECORDS + more))
    assert sorted({f.suffix for f in files}) == [".png", ".svg"]
    assert len(files) == 6
    for file in files:
        head = file.read_bytes()[:200]
        assert head.startswith(b"\x89PNG") if file.suffix == ".png" else b"<?xml" in head
    again = write_plots(tmp_path / "again", frame_of(RECORDS + more))
    assert [f.read_bytes() for f in again] == [f.read_bytes() for f in files]
    drawn = next(f for f in files if f.name.endswith("der_by_clean_images.svg")).read_text()
    assert "clean images" in drawn or "<path" in drawn


def test_records_of_a_folder(tmp_path):
    (tmp_path / "cells").mkdir()
    with pytest.raises(InputError, match="found no record"):
        read_records(tmp_path)
    (tmp_path / "cells" / "a.json").write_text(json.dumps(record("ft")))
    assert len(read_records(tmp_path)) == len(read_records(tmp_path / "cells")) == 1


def test_nothing_measured():
    with pytest.raises(InputError, match="found no cell that was measured"):
        markdown(frame_of([record("clp", outcome="refused")]))
