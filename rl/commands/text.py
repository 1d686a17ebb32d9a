"""Numbers, durations and tables as people read them."""

import math
from collections.abc import Sequence

MISSING = "–"
UNITS = (("s", 1), ("min", 60), ("h", 3600), ("d", 86400))


def number(value: float | None, like: float | None = None) -> str:
    """A return in about four digits, or with as many decimals as the return `like`; a dash for none."""
    if value is None or not math.isfinite(value):
        return MISSING
    size = abs(value if like is None else like)
    return f"{value:,.{0 if size >= 1000 else 1 if size >= 10 else 2}f}"


def duration(seconds: float) -> str:
    """A duration in its largest unit, rounded down."""
    unit, size = next((unit, size) for unit, size in reversed(UNITS) if seconds >= size or size == 1)
    return f"{max(0, seconds) // size:.0f} {unit}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str] = ()) -> list[str]:
    """Lines with aligned columns, those in `numbers` to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if name in numbers else cell.ljust(width)
            for name, cell, width in zip(header, row, widths, strict=True)
        ).rstrip()
        for row in (header, *rows)
    ]
