"""What one waits for before anything happens: `python benchmarks/startup.py [--repeats 9]`.

`polarize --help` in a process of its own, and `import neural_polarizer` with all of its public face, beyond `import
torch` alone. The sides alternate.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common import Table, processor_seconds

FACE = "import neural_polarizer\nfor name in neural_polarizer.__all__:\n    getattr(neural_polarizer, name)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("docs/results/startup.json"))
    options = parser.parse_args()
    commands = {
        "help": ["-m", "neural_polarizer", "--help"],
        "torch": ["-c", "import torch"],
        "imported": ["-c", "import torch, neural_polarizer"],
        "face": ["-c", f"import torch\n{FACE}"],
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(1 + options.repeats):  # the first fills the disk's cache and writes bytecode
        for name, command in commands.items():
            spent = processor_seconds([sys.executable, *command])
            if turn:
                taken[name].append(spent)

    def beyond(name: str) -> list[float]:
        return [a - b for a, b in zip(taken[name], taken["torch"], strict=True)]

    table = Table()
    table.tell("polarize --help, seconds", taken["help"], 0.4)
    table.tell("import neural_polarizer beyond import torch, seconds", beyond("imported"), 0.15)
    table.tell("every name of its face beyond import torch, seconds", beyond("face"))
    return table.write(options.out, turns=options.repeats)


if __name__ == "__main__":
    sys.exit(main())
