"""Count the core: `python tools/core_lines.py [--limit N]` prints lines per file and fails above the limit.

Two figures per file: all lines, and lines of code (without blank lines, comments and docstrings).
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
import tokenize
from pathlib import Path

CORE = Path(__file__).parent.parent / "src" / "neural_polarizer"
SKIP = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(source: str) -> int:
    documented = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False):
            text = node.body[0]
            documented.update(range(text.lineno, (text.end_lineno or text.lineno) + 1))
    used = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SKIP:
            used.update(range(token.start[0], token.end[0] + 1))
    return len(used - documented)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, help="fail when the core has more lines of code than this")
    limit = parser.parse_args().limit
    total = code = 0
    for path in sorted(p for p in CORE.glob("*.py") if p.name != "cli.py"):
        source = path.read_text(encoding="utf-8")
        lines, own = len(source.splitlines()), code_lines(source)
        total, code = total + lines, code + own
        print(f"{path.name:20} {lines:5} lines {own:5} of code")
    print(f"{'core':20} {total:5} lines {code:5} of code")
    return int(limit is not None and code > limit)


if __name__ == "__main__":
    sys.exit(main())
