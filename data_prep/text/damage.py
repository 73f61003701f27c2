"""How much of a source may be damaged: characters that are U+FFFD or controls are counted, and too many are refused.

counts: Counter[str]                       has "characters" and "damaged_characters", of one source
check_damage(source, counts, None)         InputError where they are more than is usual
check_damage_of_all([(source, counts), ...], None)
"""

from collections import Counter
from collections.abc import Iterable

from data_prep.cli import InputError
from data_prep.text.source import Source

MAX_DAMAGED = 0.01  # share of a source's characters that may be U+FFFD or controls
LEAST_DAMAGED = 8  # so many characters are never too many


def check_damage(
    source: Source, counts: Counter[str], max_damaged: float | None, *, encoding_is_named: bool = False
) -> None:
    """Refuse a source of which too much is damaged: a share of `max_damaged`, or what is usual; where its encoding was
    named, anything.

    Raises
    ------
    InputError: naming the source, the share and the remedy.
    """
    what = f"{source.path}, read as {source.encoding or 'utf-8'}"
    _check_share(what, counts, max_damaged, encoding_is_named)


def check_damage_of_all(
    counted: Iterable[tuple[Source, Counter[str]]], max_damaged: float | None, *, encoding_is_named: bool = False
) -> None:
    """As check_damage, each source by itself and all of them together: many small files, each with little of it.

    Raises
    ------
    InputError: naming the source, the share and the remedy.
    """
    total: Counter[str] = Counter()
    worst, damaged = "", 0
    for source, counts in counted:
        check_damage(source, counts, max_damaged, encoding_is_named=encoding_is_named)
        total.update({name: counts[name] for name in ("characters", "damaged_characters")})
        if counts["damaged_characters"] > damaged:
            worst, damaged = source.name, counts["damaged_characters"]
    _check_share(f"the corpus as a whole, {worst} and others", total, max_damaged, encoding_is_named)


def _check_share(what: str, counts: Counter[str], max_damaged: float | None, encoding_is_named: bool) -> None:
    if max_damaged is None and encoding_is_named:
        least, most = 0, 0.0
    else:
        least, most = LEAST_DAMAGED, MAX_DAMAGED if max_damaged is None else max_damaged
    damaged, characters = counts["damaged_characters"], counts["characters"]
    if damaged > max(least, most * characters):
        share = 100 * damaged / characters
        raise InputError(
            f"{what}: {share:.2f} % of its characters are damaged (U+FFFD or controls), more than {100 * most:g} %; "
            f"give --encoding NAME if it is another, or --max_damaged SHARE to take it so"
        )
