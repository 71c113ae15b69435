"""Results as a table for people and as JSON: ratios first, then absolute figures, machine, date and versions."""

import json
import math
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

VERSIONS = ("torch", "torchvision", "timm", "fastai", "mlflow", "onnxruntime", "pillow", "numpy")


@dataclass(frozen=True)
class Comparison:
    """Thaw against another way to do the same: `ratio` is by how many times it is faster (wall seconds; `cpu_ratio` in
    CPU seconds, `low` and `high` over the rounds), `target` what it should be at least; `thaw` and `other` are the
    absolute figures in `unit`."""

    group: str
    what: str
    of: str
    ratio: float
    thaw: float
    other: float
    unit: str
    target: float | None = None
    cpu_ratio: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """One absolute figure, which should be at most `limit`."""

    group: str
    what: str
    value: float
    unit: str
    limit: float | None = None


def write_results(
    path: Path, comparisons: Sequence[Comparison], figures: Sequence[Figure], facts: dict[str, Any]
) -> None:
    """Write `path`; `facts` are about the run."""
    content = {
        "ratios": {f"{one.what}, {one.of}" if one.of else one.what: round(one.ratio, 3) for one in comparisons},
        "comparisons": [asdict(one) for one in comparisons],
        "figures": [asdict(one) for one in figures],
        **facts,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_results(path: Path) -> tuple[list[Comparison], list[Figure], dict[str, Any]]:
    """What `write_results` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    comparisons = [Comparison(**one) for one in content.pop("comparisons")]
    figures = [Figure(**one) for one in content.pop("figures")]
    content.pop("ratios")
    return comparisons, figures, content


def tables(comparisons: Sequence[Comparison], figures: Sequence[Figure]) -> str:
    """Both as Markdown tables, one for each group; what falls short of its target is in bold."""
    lines: list[str] = []
    for group in dict.fromkeys(one.group for one in comparisons):
        lines += [
            f"### {group}",
            "",
            "| what | ratio | CPU | target | Thaw | other | |",
            "|---|---|---|---|---|---|---|",
        ]
        for one in (one for one in comparisons if one.group == group):
            ratio = _number(one.ratio) if one.target is None or one.ratio >= one.target else f"**{_number(one.ratio)}**"
            spread = (
                f" ({_number(one.low)} to {_number(one.high)})" if one.low is not None and one.high != one.low else ""
            )
            what = f"{one.what}, {one.of}" if one.of else one.what
            note = f"{one.unit}; {one.note}" if one.note else one.unit
            cells = (what, ratio + spread, _number(one.cpu_ratio), _number(one.target), _number(one.thaw),
                     _number(one.other), note)  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    for group in dict.fromkeys(one.group for one in figures):
        lines += [f"### {group}", "", "| what | figure | at most |", "|---|---|---|"]
        for figure in (one for one in figures if one.group == group):
            value = f"{_number(figure.value)} {figure.unit}"
            value = f"**{value}**" if figure.limit is not None and figure.value > figure.limit else value
            lines.append(f"| {figure.what} | {value} | {_number(figure.limit)} |")
        lines.append("")
    return "\n".join(lines)


def machine_facts(command: str) -> dict[str, Any]:
    """What ran, where, when and with which versions."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    known = {str(distribution.metadata["Name"]).lower() for distribution in metadata.distributions()}
    return {
        "command": command,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": {
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "gpus": gpus,
            "load": round(os.getloadavg()[0], 1),
        },
        "versions": {"python": sys.version.split()[0]}
        | {name: metadata.version(name) for name in VERSIONS if name in known},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    named = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return named[0] if named else platform.machine()


def _number(value: float | None) -> str:
    """With three digits: 0.123, 1.23, 12.3, 1,234."""
    if value is None or math.isnan(value):
        return ""
    digits = max(2 - math.floor(math.log10(abs(value))), 0) if value else 0
    return f"{value:,.{digits}f}"
