"""Published figures beside ours: CSV files with dataset, backbone, poisoning_ratio, attack, defense, acc, asr, ra.

They are rows of their own, labelled published, and never enter a mean with ours.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ...errors import InputError
from ...metrics import defence_effectiveness, der_ceiling

COLUMNS = ("dataset", "backbone", "poisoning_ratio", "attack", "defense", "acc", "asr", "ra")
NO_DEFENCE = "no defense"
# The names of others on the left, ours on the right.
DATASETS = {"tiny": "tiny_imagenet"}
ARCHITECTURES = {"preactresnet18": "preact_resnet18"}
ATTACKS = {"badnet": "badnets", "inputaware": "input_aware"}
DEFENCES = {NO_DEFENCE: "none", "i-bau": "ibau"}


def read_published(path: Path) -> pd.DataFrame:
    """The rows of a file, with our names, DER and DER over its ceiling; what has no undefended network is left out.

    Raises:
        InputError: no such file, no CSV, columns that are missing, rates outside [0, 1].
    """
    try:
        rows = pd.read_csv(path)
    except OSError as error:
        raise InputError(f"published: {str(path)!r} cannot be read ({error.strerror})") from None
    except (ValueError, pd.errors.ParserError) as error:
        raise InputError(f"published: {str(path)!r} is no CSV file ({error})") from None
    missing = [c for c in COLUMNS if c not in rows]
    if missing:
        raise InputError(f"published: {str(path)!r} has no column {', '.join(missing)}, wanted {', '.join(COLUMNS)}")
    rates = rows[["acc", "asr", "ra"]]
    if not all(pd.api.types.is_numeric_dtype(t) for t in rates.dtypes) or not rates.stack().between(0, 1).all():
        raise InputError(f"published: {str(path)!r} has rates outside [0, 1]")
    named = pd.DataFrame(
        {
            "dataset": _named(rows["dataset"], DATASETS),
            "architecture": _named(rows["backbone"], ARCHITECTURES),
            "poisoning_ratio": rows["poisoning_ratio"].astype(float),
            "attack": _named(rows["attack"], ATTACKS),
            "defence": _named(rows["defense"], DEFENCES),
            "acc": rows["acc"],
            "asr": rows["asr"],
            "ra": rows["ra"],
        }
    )
    place = ["dataset", "architecture", "poisoning_ratio", "attack"]
    named = named.groupby([*place, "defence"], as_index=False).mean()
    before = named[named["defence"] == "none"][[*place, "acc", "asr"]]
    both = named.merge(before, on=place, suffixes=("", "_before"))
    both["der"] = [
        defence_effectiveness(acc_before=b, acc_after=a, asr_before=s, asr_after=r)
        for b, a, s, r in zip(both["acc_before"], both["acc"], both["asr_before"], both["asr"], strict=True)
    ]
    both["der_share"] = both["der"] / both["asr_before"].map(der_ceiling)
    return both


def _named(names: pd.Series[str], known: dict[str, str]) -> pd.Series[str]:
    plain = names.str.lower().str.strip()
    return plain.replace(known)
