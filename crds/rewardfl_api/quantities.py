"""Kubernetes quantities as numbers: `200Gi`, `1.5T`. The schema has checked their form."""

from decimal import ROUND_FLOOR, Decimal

_UNITS = {"m": Decimal("0.001"), "": Decimal(1)}
_UNITS |= {letter: Decimal(1000) ** power for power, letter in enumerate("kMGTPE", start=1)}
_UNITS |= {f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", start=1)}
_UNITS["K"] = _UNITS["k"]


def bytes_of(quantity: str) -> int:
    """Return the whole bytes of a quantity.

    Raises:
        ValueError: it is none.
    """
    digits = quantity.rstrip("mkKMGTPEi")
    unit = _UNITS.get(quantity[len(digits) :])
    if unit is None or not digits.replace(".", "", 1).isdigit():
        raise ValueError(f"{quantity!r}: must be a number of bytes, e.g. 200Gi or 500G")
    return int((Decimal(digits) * unit).to_integral_value(ROUND_FLOOR))
