"""How figures are shown: a table per scenario, a line per pair, JSON for other programs. Decides nothing."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benchmarks.measure import Result
from benchmarks.pairs import Ratio

__all__ = ["as_json", "machine", "pair_line", "table"]

PACKAGES = ("uvloop", "trio", "anyio", "easynetwork", "gevent")


def machine() -> dict[str, Any]:
    """What the figures depend on and a reader must know."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": os.cpu_count(),
        "packages": versions,
    }


def table(results: Sequence[Result], size: int, rounds: int) -> str:
    """One scenario's figures, best first."""
    scenario = results[0].scenario
    lines = [f"{scenario.name}: {scenario.title}", f"  {scenario.unit}; {size} a round, rounds: {rounds}"]
    measured = sorted((result for result in results if result.measured), key=lambda result: result.best)
    if measured:
        extras = list(measured[0].samples[0].extra)
        head = ["contender", "min", "median", "spread", "requests/s", *extras]
        rows = [head, *(_cells(result, extras) for result in measured)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        for row in rows:
            first, *rest = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            lines.append("  ".join(["", row[0].ljust(len(first)), *rest]))
    for result in results:
        if remark := _remark(result):
            lines.append(f"  {result.contender.name}: {remark}")
    return "\n".join(lines)


def _remark(result: Result) -> str:
    if result.error:
        return f"ERROR: {result.error}"
    if result.skipped:
        return f"skipped: {result.skipped}"
    return result.samples[0].note


def _cells(result: Result, extras: Sequence[str]) -> list[str]:
    best = min(result.samples, key=lambda sample: sample.value)
    return [
        result.contender.name,
        f"{result.best:.2f}",
        f"{result.median:.2f}",
        f"{result.spread:.0%}",
        f"{result.rate:,.0f}",
        *(f"{best.extra[name]:,.0f}" for name in extras),
    ]


def pair_line(ratio: Ratio) -> str:
    """One comparison, e.g. ``line echo 50: a / b  0.86  (bar 0.95) ok``."""
    verdict = "ok" if ratio.ok else "OVER"
    value, bar = (f"{ratio.value:,.0f} {ratio.unit}", "{:,.0f}") if ratio.unit else (f"{ratio.value:.2f}", "{:.2f}")
    return f"{ratio.label}: {ratio.pair}  {value}  (bar {bar.format(ratio.pair.bar)}) {verdict}"


def as_json(results: Sequence[Result], compared: Sequence[Ratio]) -> dict[str, Any]:
    """Everything that was measured, every round of it."""
    return {
        "machine": machine(),
        "results": [_result_json(result) for result in results],
        "pairs": [
            {
                "scenario": ratio.pair.scenario,
                "left": ratio.pair.left,
                "right": ratio.pair.right,
                "ratio": ratio.value,
                "unit": ratio.unit or None,
                "bar": ratio.pair.bar,
                "ok": ratio.ok,
            }
            for ratio in compared
        ],
    }


def _result_json(result: Result) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "scenario": result.scenario.name,
        "contender": result.contender.name,
        "unit": result.scenario.unit,
        "error": result.error or None,
        "skipped": result.skipped or None,
    }
    if result.measured:
        shown |= {"min": result.best, "median": result.median, "spread": result.spread, "requests_per_s": result.rate}
        shown["rounds"] = [
            {"value": sample.value, "requests_per_s": sample.rate, **sample.extra, "note": sample.note}
            for sample in result.samples
        ]
    return shown
