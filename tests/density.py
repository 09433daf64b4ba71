"""Prints how dense the code is: `python tests/density.py [FOLDER ...]`. A figure, not a gate.

Blank lines and comments do not count, docstrings do. Folded: comprehensions, ternaries, lambdas.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDED = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.IfExp, ast.Lambda)
NOT_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
LONG = 100  # characters


def code_lines(text: str) -> int:
    """Lines that hold something other than comments; those of docstrings count."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NOT_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines)


def main() -> None:
    """One row per folder."""
    print(f"{'folder':<12} files  lines  longest  folded/100  nodes/line  over {LONG}")
    total = [0, 0, 0, 0, 0, 0, 0]
    for folder in sys.argv[1:] or ["envs", "rewards", "agents"]:
        row = [0, 0, 0, 0, 0, 0, 0]
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            tree = ast.parse(text)
            nodes = list(ast.walk(tree))
            lines = text.splitlines()
            row[0] += 1
            row[1] += len(lines)
            row[2] = max(row[2], len(lines))
            row[3] += sum(isinstance(node, FOLDED) for node in nodes)
            row[4] += len(nodes)
            row[5] += code_lines(text)
            row[6] += sum(len(line) > LONG for line in lines)
        show(folder, row)
        total = [
            max(a, b) if place == 2 else a + b for place, (a, b) in enumerate(zip(total, row, strict=True))
        ]
    show("all", total)


def show(name: str, row: list[int]) -> None:
    """Prints one row."""
    files, lines, longest, folded, nodes, code, long_lines = row
    per_line = f"{100 * folded / code:10.1f}  {nodes / code:10.1f}  {long_lines / lines:7.1%}"
    print(f"{name:<12} {files:>5} {lines:>6} {longest:>8}  {per_line}")


if __name__ == "__main__":
    main()
