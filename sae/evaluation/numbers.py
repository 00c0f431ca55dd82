"""How a number is written for reading: one way, in tables, cards, pages and charts."""

import math

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float | int | None, digits: int = 3) -> str:
    """A number for reading: `digits` significant digits, thin groups of three, powers of ten outside 0.001..99,999, a real minus sign; –
    for None."""
    if value is None:
        return "–"
    if type(value) is int and 0 <= value < 1000:
        return str(value)
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e6 and abs(value) >= 10**digits):
        return f"{int(value):,}".replace(",", "\u202f").replace("-", "−")
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if exponent < -3 or exponent >= 5:
        mantissa = f"{value / 10**exponent:.{digits - 1}f}".rstrip("0").rstrip(".")
        return f"{mantissa}×10{str(exponent).translate(SUPERSCRIPTS)}".replace("-", "−")
    text = f"{value:,.{max(digits - 1 - exponent, 0)}f}"
    return text.replace(",", "\u202f").replace("-", "−")


def percent(share: float | int, digits: int = 2) -> str:
    """A share as a percentage."""
    return f"{number(100.0 * share, digits)}\u202f%" if 0 < share < 0.9995 else f"{100 * share:.0f}\u202f%"
