"""How things are written for people: durations, bytes, tables. Plain text, so that it reads the same in a pipe."""

from collections.abc import Iterable, Sequence

from .printable import one_line

MINUTE, HOUR, DAY = 60, 3600, 86400
UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
THOUSAND = 1000.0
GAP = "   "


def duration(seconds: float) -> str:
    """Write a duration with its two largest units, as kubectl does: 45s, 12m, 3h5m, 2d3h."""
    total = int(seconds)
    if total < 2 * MINUTE:
        return f"{total}s"
    parts = [(total // DAY, "d"), (total % DAY // HOUR, "h"), (total % HOUR // MINUTE, "m")]
    first = next(place for place, (count, _) in enumerate(parts) if count)
    return "".join(f"{count}{unit}" for count, unit in parts[first : first + 2] if count)


def size(count: float) -> str:
    """Write a number of bytes: 1.4 GB."""
    for unit in UNITS[:-1]:
        if count < THOUSAND:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= THOUSAND
    return f"{count:.1f} {UNITS[-1]}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write columns, each as wide as its longest cell. Nothing of a cell is obeyed by a terminal."""
    lines = [list(header), *([one_line(cell) or "<none>" for cell in row] for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(header))]
    return "\n".join(GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def plural(count: int, noun: str, nouns: str = "") -> str:
    """Write a count: 1 error, 2 errors."""
    return f"{count} {noun}" if count == 1 else f"{count} {nouns or f'{noun}s'}"
