"""`python -m docs.make.notebook FILE` runs the cells of a notebook in this process, and writes their outputs into
it."""

import ast
import base64
import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from docs.make.project import LOG_LINE

MOST_LINES = 24
DPI = 80


def run_notebook(path: Path) -> list[dict[str, Any]]:
    """Run all cells in their order, in one namespace, and write the notebook anew with what they printed, gave and
    drew; gives the cells of code. An error in a cell is raised."""
    plt.switch_backend("agg")
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells, 1):
        cell["outputs"] = run_cell("".join(cell["source"]), namespace, number)
        cell["execution_count"] = number
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return cells


def run_cell(source: str, namespace: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """The outputs of a cell, in Jupyter's format: what it printed, its last expression, and its figures."""
    tree, value = ast.parse(source), None
    is_shown = bool(tree.body) and isinstance(tree.body[-1], ast.Expr) and not source.rstrip().endswith(";")
    last = ast.Expression(tree.body.pop().value) if is_shown else None
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        exec(compile(tree, f"cell {number}", "exec"), namespace)
        if last is not None:
            value = eval(compile(last, f"cell {number}", "eval"), namespace)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        outputs.append({"name": "stdout", "output_type": "stream", "text": _shorten(printed.getvalue())})
    if value is not None:
        data = {"text/plain": repr(value)} | (
            {"text/html": value._repr_html_()} if hasattr(value, "_repr_html_") else {}
        )
        outputs.append({"output_type": "execute_result", "data": data, "metadata": {}, "execution_count": number})
    outputs.extend(map(_drawn, map(plt.figure, plt.get_fignums())))
    plt.close("all")
    return outputs


def _drawn(figure: Any) -> dict[str, Any]:
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI, bbox_inches="tight")
    data = {"image/png": base64.b64encode(png.getvalue()).decode(), "text/plain": "a figure"}
    return {"output_type": "display_data", "data": data, "metadata": {}}


def _shorten(text: str) -> str:
    """The first and last lines of what was printed, without what libraries log."""
    lines = [line for line in text.splitlines(keepends=True) if not LOG_LINE.match(line)]
    half = MOST_LINES // 2
    return "".join(lines if len(lines) <= MOST_LINES else [*lines[:half], "…\n", *lines[-half:]])


if __name__ == "__main__":
    run_notebook(Path(sys.argv[1]).resolve())
