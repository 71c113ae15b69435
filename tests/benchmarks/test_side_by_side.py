"""The benchmarks are not run here: what they write, and that what they call is there."""

import ast
import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from benchmarks import memory_by_set_size
from benchmarks.side_by_side import limits
from benchmarks.side_by_side.draw import draw
from benchmarks.side_by_side.results import Comparison, Figure, machine_facts, read_results, tables, write_results

FOLDER = Path(__file__).parents[2] / "benchmarks"
FAST = Comparison("Against others", "epoch", "net, 8 px", 250.4, 0.5, 125.2, "s", target=200, low=240, high=260)
SLOW = Comparison("Against others", "finder", "", 1.5, 2.0, 3.0, "s", target=2.5, cpu_ratio=1.25, note="short")
FIGURES = [Figure("Costs", "to find", 0.1, "s", 0.2), Figure("Costs", "to start", 1234.0, "s", 1.0)]


def test_results_are_written_with_the_ratios_first_and_read_back(tmp_path):
    path = tmp_path / "new" / "results.json"
    write_results(path, [FAST, SLOW], FIGURES, machine_facts("make bench"))
    content = json.loads(path.read_text())
    assert next(iter(content.items())) == ("ratios", {"epoch, net, 8 px": 250.4, "finder": 1.5})
    comparisons, figures, facts = read_results(path)
    assert (comparisons, figures) == ([FAST, SLOW], FIGURES)
    assert facts["command"] == "make bench"
    assert facts["versions"]["torch"]
    assert facts["machine"]["cores"] >= 1
    assert facts["date"]


def test_a_table_shows_in_bold_what_falls_short():
    lines = tables([FAST, SLOW], FIGURES).splitlines()
    assert "| epoch, net, 8 px | 250 (240 to 260) |  | 200 | 0.500 | 125 | s |" in lines
    assert "| finder | **1.50** | 1.25 | 2.50 | 2.00 | 3.00 | s; short |" in lines
    assert "| to find | 0.100 s | 0.200 |" in lines
    assert "| to start | **1,234 s** | 1.00 |" in lines


def test_the_figure_has_a_bar_for_each_comparison_and_a_panel_for_each_group():
    other = replace(SLOW, group="Against the limit", ratio=0.75, target=None)
    panels = draw([FAST, other, SLOW]).axes
    assert [[bar.get_width() for bar in axes.patches] for axes in panels] == [[250.4, 1.5], [0.75]]
    assert [axes.get_title(loc="left") for axes in panels] == ["Against others", "Against the limit"]


def test_every_module_that_a_benchmark_names_exists():
    sources = {path: path.read_text() for path in FOLDER.rglob("*.py")}
    named = {name for text in sources.values() for name in re.findall(r'"(benchmarks\.[\w.]+)"', text)}
    named |= {f"benchmarks.{name}" for text in sources.values() for name in re.findall(r'_benchmark\("(\w+)"', text)}
    for text in sources.values():
        of_project = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom))
        named |= {str(node.module) for node in of_project if str(node.module).startswith(("pipeline", "benchmarks"))}
    assert {"benchmarks.throughput", "benchmarks.side_by_side.fastai_side"} <= named
    assert not [name for name in sorted(named) if importlib.util.find_spec(name) is None]


def test_memory_and_time_are_given_for_each_start_of_a_set(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_by_set_size.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=f"{2**20}\n"))
    monkeypatch.setattr("sys.argv", ["memory", "20", "--json", str(tmp_path / "found.json")])
    memory_by_set_size.main()
    monkeypatch.setattr(limits, "_benchmark", lambda *_: json.loads((tmp_path / "found.json").read_text()))
    figures = limits.by_set_size(20)
    assert [figure.what for figure in figures[::2]] == [
        f"20 pictures of 32 px, {start}: peak memory" for start in memory_by_set_size.STARTS
    ]
    assert [(figure.value, figure.unit) for figure in figures[::2]] == [(1.0, "MiB")] * 3
