"""Targets beside measurements: one line each, a table for people, a report file for the record.

Shared by `validate` and `faults`; pure but for `write_report`.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Gate:
    """One condition: what was measured, what is asked, whether it holds; None when it could not be judged, said in `note`."""

    name: str
    measured: str
    asked: str
    passed: bool | None
    note: str = ""

    @property
    def verdict(self) -> str:
        """In one word."""
        return {True: "PASS", False: "FAIL", None: "NOT JUDGED"}[self.passed]


def passed(gates: Sequence[Gate]) -> bool:
    """Whether nothing failed and something was judged."""
    return all(gate.passed is not False for gate in gates) and any(gate.passed for gate in gates)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed (nearest rank); nan without values."""
    if not values:
        return math.nan
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]


def line(gate: Gate) -> str:
    """One gate as it is printed while the others are still measured."""
    return (
        f"{gate.verdict:<10}  {gate.name}: {gate.measured} (asked: {gate.asked}){f'; {gate.note}' if gate.note else ''}"
    )


def table(gates: Sequence[Gate]) -> str:
    """All gates below each other, in columns."""
    rows = [("", "target", "asked", "measured"), *((g.verdict, g.name, g.asked, g.measured) for g in gates)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    notes = ["", *(f"  ({gate.note})" if gate.note else "" for gate in gates)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip() + note
        for row, note in zip(rows, notes, strict=True)
    )


def machine() -> dict[str, object]:
    """What the figures were measured on; without names of people or hosts."""
    return {
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def write_report(
    folder: Path, name: str, title: str, gates: Sequence[Gate], facts: Mapping[str, object]
) -> tuple[Path, Path]:
    """Writes `<name>.md` and `<name>.json` into `folder`, each replaced as a whole; returns both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    result = "PASS" if passed(gates) else "FAIL"
    made = datetime.now(UTC).isoformat(timespec="seconds")
    document = {
        "title": title,
        "result": result,
        "made": made,
        "machine": machine(),
        "facts": dict(facts),
        "gates": [{**asdict(gate), "verdict": gate.verdict} for gate in gates],
    }
    lines = [
        f"# {title}: {result}",
        "",
        f"Made {made}.",
        "",
        "| | target | asked | measured | remark |",
        "|---|---|---|---|---|",
    ]
    lines += [
        "| " + " | ".join(_cell(text) for text in (g.verdict, g.name, g.asked, g.measured, g.note)) + " |"
        for g in gates
    ]
    lines += ["", "| input or figure | value |", "|---|---|"]
    lines += [f"| {_cell(key)} | {_cell(_shown(value))} |" for key, value in {**machine(), **facts}.items()]
    markdown, data = folder / f"{name}.md", folder / f"{name}.json"
    for path, text in ((markdown, "\n".join(lines) + "\n"), (data, json.dumps(document, indent=2) + "\n")):
        temporary = path.with_suffix(path.suffix + ".tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    return markdown, data


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
