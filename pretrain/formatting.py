"""Numbers, times and tokens as people read them, on consoles and pages. Standard library only.

counted(12345) -> "12.3k"               duration(3900) -> "1 h 05 min"
filled_in("They spring", "##en")        a piece of a word as one reads it
"""


def counted(value: float) -> str:
    """Return 12345 as 12.3k: for axes and headlines, three digits are enough."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            return f"{float(f'{value / size:.3g}'):g}{letter}"
    return f"{float(f'{value:.3g}'):g}"


def two_digits(value: float) -> str:
    """Return 123.4 as 120, without a power of ten: for numbers that are there to be typed."""
    return f"{float(f'{value:.2g}'):g}"


def bytes_in_words(size: float) -> str:
    """Return bytes in three digits: 90.2 MB."""
    for one, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= one:
            return f"{size / one:.3g} {unit}"
    return f"{size:.0f} bytes"


def duration(seconds: float) -> str:
    """Return seconds in at most two units: 2 d 3 h, 1 h 05 min, 3 min 20 s, 12 s."""
    whole = round(seconds)
    if whole >= 86400:
        return f"{whole // 86400} d {whole % 86400 // 3600} h"
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 60} min {whole % 60:02} s" if whole >= 60 else f"{whole} s"


def filled_in(before: str, token: str) -> str:
    """Return a token as one reads it behind the text `before` a gap: a piece of a word with what it goes on.

    "spring[en]" for ##en behind "They spring"; "...en" where no word stands before.
    """
    if not token.startswith("##") or len(token) == 2:
        return token
    word = (before.split() or [""])[-1]
    return f"{word}[{token[2:]}]" if word[-1:].isalnum() else f"...{token[2:]}"
