"""Numbers and names as people read them, in the tables and in the report."""


def number(value: float | None, digits: int) -> str:
    """Fixed digits; "-" for what was not measured, "nan" for what is not a number; no minus before a zero."""
    return "-" if value is None else f"{value:z.{digits}f}"


def percent(value: float | None) -> str:
    """A share as a percentage, with three digits after the point below one percent; a bare 0 is exactly none."""
    if value is None:
        return "-"
    return "0%" if value == 0 else f"{100 * value:.{3 if abs(value) < 0.01 else 2}f}%"


def size(value: int) -> str:
    """Bytes as kB or MB (powers of ten); "-" for none."""
    if value == 0:
        return "-"
    return f"{value / 1e6:.2f} MB" if value >= 1e6 else f"{value / 1e3:.1f} kB"


def count(value: int | None) -> str:
    """An integer with thousands apart."""
    return "-" if value is None else f"{value:,}"


def duration(value: float) -> str:
    """Seconds as "41 s" or "5 min 56 s"."""
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes else f"{value:.1f} s" if value < 10 else f"{rest} s"
