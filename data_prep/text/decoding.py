"""In which encoding a text lies, and its bytes as UTF-8 with lines that end in \\n.

    found = find_encoding(pieces)                 # Found("cp1251", "a guess"); Found("", "") is UTF-8 as it lies
    stream = in_utf8(stream, found.encoding)
    bad = damaged_characters(text)                # U+FFFD, control characters

A byte order mark decides. Without one, text that is UTF-8 but for some wrong bytes is UTF-8; the zeros of UTF-16 and
UTF-32 give these away; for all else chardetng, the detector of Firefox, makes a guess, which must make sense: words in
which letters stand, not signs. What makes none stays UTF-8, and its damage is counted. Whoever knows better names the
encoding: `named_encoding`.

A text that is not UTF-8, or whose lines end in CR alone, is read as a stream: wrong bytes come out of it as the byte
FF, which is wrong in UTF-8 as well, so that there is one place that counts them.
"""
# ruff: noqa: RUF001

import codecs
import io
import re
import unicodedata
from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple

from data_prep.cli import InputError

DECODE_CHUNK_BYTES = 1 << 16
SHORT_BYTES = 512  # of a shorter text a regular expression is quicker than a table
JUDGED_CHARS = 4096  # one by one
MIXED_SHARE = 0.1  # of words of UTF-8 above ASCII from which on a guess of one byte a character is none
ODD_SHARE = 0.1  # of the characters above ASCII that may stand where a guess makes no sense of them
CARRIAGE_RETURN_SHARE = 0.1  # of the line ends from which on CR alone ends a line

_MARKS = (  # longer ones first
    (b"\xef\xbb\xbf", ""),
    (b"\xff\xfe\x00\x00", "utf-32-le"),
    (b"\x00\x00\xfe\xff", "utf-32-be"),
    (b"\x84\x31\x95\x33", "gb18030"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)
_WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
_ESCAPES = ((b"\x1b$)C", "iso2022_kr"), (b"\x1b$", "iso2022_jp"), (b"\x1b(J", "iso2022_jp"))
# Names of the web's standard for which Python has another one, or one that knows more characters.
_PYTHON = {
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc-kr": "cp949",
    "big5": "big5hkscs",
    "windows-874": "cp874",
    "iso-8859-8-i": "iso8859_8",
    "x-mac-cyrillic": "mac_cyrillic",
    "ibm866": "cp866",
}
_SEVERAL_BYTES = {"gb18030", "cp932", "cp949", "big5hkscs", "euc_jp", "iso2022_jp", "iso2022_kr"}
_OLD = ("cp850", "mac_roman", "cp437")  # of DOS and the old Mac, which the web and its detector never knew
_OFTEN_VALID = {"cp866", "cp874"}  # their letters in a row can be valid UTF-8
_NO_TEXT = {"idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape"}  # codecs of Python for other ends

_CONTROL = "\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f"
_DAMAGE = re.compile(f"[{_CONTROL}\ufffd]")
_LOW_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f]")
_NO_CONTROLS = bytes(code for code in range(256) if not _LOW_CONTROL.match(chr(code)))
_HIGH_CONTROL = re.compile(rb"\xc2[\x80-\x84\x86-\x9f]")
_ABOVE_ASCII = re.compile(r"[^\x00-\x7f]")
_ROWS = re.compile("[^\x00-\x7f\ufffd]{3,}")
_OF_WINDOWS = re.compile(rb"[\x80-\x9f]")
_BARE_CR = re.compile(rb"\r(?!\r*\n)")
_JOINING = "’ʼ·\u00a0\u00ad\u2010\u2011–—"  # signs that do stand inside words
_AROUND = "“”„‚‘’‹›«»…–—•·°§€£©®™ªº¿¡†‡‰\u00a0\u00ad"  # signs that stand at their ends
_APART = "½¼¾±×÷¶¢¬"  # signs that touch no word
_HUNGARIAN = frozenset("áéíóöőúüűÁÉÍÓÖŐÚÜŰ")
_NOT_LATIN = "\u0370"  # the first letter of other scripts


class Found(NamedTuple):
    """The encoding of a text: its name in Python, "" for UTF-8 as it lies; and what it is known by."""

    encoding: str
    why: str = ""


def named_encoding(name: str) -> str:
    """Return an encoding that somebody named, under the name that Python has for it.

    Raises
    ------
    InputError: Python knows no such encoding of texts.
    """
    known = "give utf-8, cp1252, gb18030 ..."
    try:
        codec = codecs.lookup(name)
        codecs.getincrementaldecoder(codec.name)
        b"a".decode(codec.name, "replace")
    except (LookupError, ValueError) as error:
        raise InputError(f"--encoding {name} is not known to Python as one of texts; {known}") from error
    if codec.name.replace("-", "_") in _NO_TEXT:
        raise InputError(f"--encoding {name} is no encoding of texts; {known}")
    return codec.name.removesuffix("-sig")


def find_encoding(pieces: Sequence[bytes], named: str | None = None, whole: bool = False) -> Found:
    """Return the encoding of a text by its beginning, the first of `pieces`, and what else of it is at hand; `named`
    says it, unless a byte order mark does. `whole`: the first piece is all of the text, and no character is cut at its
    end."""
    found = _by_mark(pieces[0])
    if found is None and named in ("utf-16", "utf-32"):  # which byte comes first, its zeros say; else as Windows has it
        found = _wide(pieces[0], 0, 1) or Found(f"{named}-le")
    if found is None:
        found = _by_content(pieces, whole) if named is None else Found("" if named == "utf-8" else named)
    if found.encoding == "" and _ends_in_cr(pieces):
        return Found("utf-8", "lines that end in CR")
    return found


def _by_mark(beginning: bytes) -> Found | None:
    for mark, encoding in _MARKS:
        if beginning.startswith(mark):
            return Found(encoding, "its byte order mark" if encoding else "")
    return None


def _ends_in_cr(pieces: Sequence[bytes]) -> bool:
    bare = sum(len(_BARE_CR.findall(piece)) for piece in pieces) if any(b"\r" in piece for piece in pieces) else 0
    return bare > CARRIAGE_RETURN_SHARE * (bare + sum(piece.count(b"\n") for piece in pieces))


def whole_characters(pieces: Sequence[bytes], encoding: str) -> list[bytes]:
    """Return pieces of a file without what was cut of characters at their ends: of UTF-8 one can tell; of UTF-16 and
    UTF-32 pieces are cut at multiples of 4 bytes; elsewhere line ends and blanks are never parts of other
    characters."""
    if encoding in _WIDE:
        return list(pieces)
    if encoding in ("", "utf-8"):
        return [_without_cut(piece) for piece in pieces]
    first, *others = (piece[: max(piece.rfind(b"\n"), piece.rfind(b" ")) + 1] for piece in pieces)
    begins = [min((at for at in (piece.find(b"\n"), piece.find(b" ")) if at >= 0), default=0) for piece in others]
    return [first or pieces[0], *(piece[at:] for piece, at in zip(others, begins, strict=True) if piece)]


def _by_content(pieces: Sequence[bytes], whole: bool) -> Found:
    valid = wrong = 0
    for index, piece in enumerate(pieces):
        good, bad = _sequences(piece, index > 0, not whole)
        valid, wrong = valid + good, wrong + bad
    if not valid and not wrong:
        for escape, encoding in _ESCAPES:
            if escape in pieces[0]:
                return Found(encoding, "its escapes")
    if (wide := _wide(pieces[0], valid, wrong)) is not None:
        return wide
    return Found("") if wrong <= valid else _guess(pieces, whole)


def _sequences(piece: bytes, begins_cut: bool, ends_cut: bool) -> tuple[int, int]:
    """Return how many characters above ASCII are valid UTF-8, and wrong bytes (in runs); none of those that may be
    cut."""
    if piece.isascii():
        return 0, 0
    uncut = _without_cut(piece, begins_cut, ends_cut)
    try:
        return len(_ABOVE_ASCII.findall(uncut.decode())), 0
    except UnicodeDecodeError:
        text = uncut.decode("utf-8", "replace")
    wrong = text.count("\ufffd") - piece.count(b"\xef\xbf\xbd")
    return len(_ABOVE_ASCII.findall(text)) - wrong, wrong


def _without_cut(piece: bytes, begins_cut: bool = True, ends_cut: bool = True) -> bytes:
    """Return a piece without the rests of characters of UTF-8 that were cut at its ends."""
    start = next((at for at, byte in enumerate(piece[:3]) if not 0x80 <= byte < 0xC0), 0) if begins_cut else 0
    end = next((at for at in range(1, min(4, len(piece)) + 1) if piece[-at] >= 0xC0), 0) if ends_cut else 0
    needed = 0 if not end else 2 if piece[-end] < 0xE0 else 3 if piece[-end] < 0xF0 else 4
    return piece[start : len(piece) - end] if end < needed else piece[start:]


def _wide(beginning: bytes, valid: int, wrong: int) -> Found | None:
    """Return UTF-16 or UTF-32 without a mark: where bytes that are 0 make no sense in UTF-8, and blanks and letters
    here."""
    head = beginning[: 4 * JUDGED_CHARS]
    if b"\0" not in head:
        return None
    narrow = head.decode("utf-8", "replace")
    if wrong <= valid and len(_DAMAGE.findall(narrow)) < 0.02 * len(narrow):
        return None
    best, most = None, 0.0
    for encoding in _WIDE:
        width = 4 if "32" in encoding else 2
        try:
            text = head[: len(head) - len(head) % width].decode(encoding)
        except UnicodeDecodeError:
            continue
        strange = sum(unicodedata.category(one) in ("Cc", "Cn", "Co", "Cs") and one not in "\t\n\r" for one in text)
        blank = sum(one in " \n\r\u3000、。，" for one in text)
        if strange < 0.01 * len(text) and (share := (blank - strange + width // 4) / len(text)) > max(most, 0.002):
            best, most = Found(encoding, "its zeros"), share  # the wrong order of bytes may look like text, too
    return best


def _guess(pieces: Sequence[bytes], whole: bool) -> Found:
    """Return what chardetng says, if it makes sense."""
    from chardetng_py import EncodingDetector  # inside: few corpora need it

    pieces = pieces if whole else whole_characters(pieces, "any")
    sample = b"\n".join(pieces)
    if western := _only_signs(sample):
        return Found(western, "a guess")
    detector = EncodingDetector()
    for piece in pieces:
        detector.feed(piece, last=False)
    label = detector.guess(tld=None, allow_utf8=False).lower()
    encoding = codecs.lookup(_PYTHON.get(label, label)).name
    if encoding in _SEVERAL_BYTES:
        text = sample.decode(encoding, "replace")
        above = len(_ABOVE_ASCII.findall(text))
        return Found(encoding, "a guess") if text.count("\ufffd") <= 0.01 * above else Found("")
    encoding = _western(sample) if encoding == "cp1252" else encoding
    if encoding not in _OFTEN_VALID and _words_of_utf8(sample) > MIXED_SHARE:
        return Found("")
    for candidate, least, allowed in ((encoding, 1, ODD_SHARE), *((old, 5, ODD_SHARE / 5) for old in _OLD)):
        fitting, odd = _fitting(sample.decode(candidate, "replace"))
        if fitting >= least and odd <= allowed * (fitting + odd):
            return Found(candidate, "a guess")
    return Found("")


def _only_signs(sample: bytes) -> str:
    """Return the encoding of a text of ASCII but for some signs (£, µ, “”, a hard blank), in which a detector that goes
    by letters sees Chinese."""
    text = sample.decode("cp1252", "replace")
    if any(one.isalpha() for one in set(_ABOVE_ASCII.findall(text)) - set("µªº")):
        return ""
    encoding = _western(sample)
    fitting, odd = _fitting(sample.decode(encoding, "replace"))
    return encoding if fitting and odd <= ODD_SHARE * (fitting + odd) else ""


def _western(sample: bytes) -> str:
    """Return what a text that looks like cp1252 is: iso8859-15, which has € for ¤, a sign that nobody writes; or
    cp1250, if all its letters are Hungarian ones."""
    if b"\xa4" in sample and not _OF_WINDOWS.search(sample):
        return "iso8859-15"
    letters = [one for one in _ABOVE_ASCII.findall(sample.decode("cp1250", "replace")) if one.isalpha()]
    hungarian = sum(one in _HUNGARIAN for one in letters) >= 0.98 * len(letters)
    return "cp1250" if hungarian and {*"őű"} & {*letters} and {*"áíóú"} & {*letters} else "cp1252"


def _words_of_utf8(sample: bytes) -> float:
    """Return the share of what is above ASCII that is valid UTF-8 in a row; single letters of it may be so by chance,
    and where they are not, `_fitting` tells."""
    text = sample.decode("utf-8", "replace")
    return sum(map(len, _ROWS.findall(text))) / max(len(_ABOVE_ASCII.findall(text)), 1)


def _fitting(text: str) -> tuple[int, int]:
    """Return how many characters above ASCII stand where they make sense, and where they do not: letters belong to
    words of one script, and no capital follows a small letter; signs belong around words."""
    fitting, odd = 0, len(_LOW_CONTROL.findall(text))
    for match in _ABOVE_ASCII.finditer(f" {text} "):
        if fitting + odd == JUDGED_CHARS:
            break
        character, at = match[0], match.start()
        before, after = match.string[at - 1], match.string[at + 1]
        if character == "ÿ" or _DAMAGE.match(character):
            odd += 1
        elif character.isalpha() and character not in "ªº":
            other_script = character >= _NOT_LATIN and any(
                one < _NOT_LATIN and one.isalpha() for one in (before, after)
            )
            if other_script or (character.isupper() and before.islower()):
                odd += 1
            elif before.isalpha() or after.isalpha():
                fitting += 1
        elif unicodedata.category(character)[0] == "M":  # a vowel of Thai, a point of Hebrew: on a letter
            stands = before.isalpha() or unicodedata.category(before)[0] == "M"
            fitting, odd = fitting + stands, odd + (not stands)
        elif before.isalpha() and after.isalpha():
            fitting, odd = fitting + (character in _JOINING), odd + (character not in _JOINING)
        else:
            stands = _stands_around_words(before, character, after)
            fitting, odd = fitting + stands, odd + (not stands)
    return fitting, odd


def _stands_around_words(before: str, sign: str, after: str) -> bool:
    if sign in _APART:
        return not before.isalpha() and not after.isalpha()
    if sign in "¹²³":
        return not after.isalpha() and (before == "m" or not before.isalpha())
    return sign in _AROUND or (sign == "¥" and after.isdigit())


def damaged_characters(text: str, raw: bytes) -> int:
    """Return how many characters no text should hold: U+FFFD, which stands for what was lost, and controls; `raw` is
    the text in UTF-8. Fast where there are none."""
    if len(raw) < SHORT_BYTES:
        return len(_DAMAGE.findall(text))
    if not raw.translate(None, _NO_CONTROLS) and (
        text.isascii() or not ("\ufffd" in text or _HIGH_CONTROL.search(raw))
    ):
        return 0
    return len(_DAMAGE.findall(text))


_MARK = "zerobert.mark"


def _mark(error: UnicodeError) -> tuple[str | bytes, int]:
    """Handler of errors: what is wrong becomes the byte FF, by way of the surrogate that stands for it."""
    assert isinstance(error, UnicodeDecodeError | UnicodeEncodeError)
    return ("\udcff" if isinstance(error, UnicodeDecodeError) else b"\xff" * (error.end - error.start)), error.end


class _InUtf8(io.RawIOBase):
    """A text, decoded and encoded again, its lines ending in \\n."""

    def __init__(self, stream: BinaryIO, encoding: str):
        codecs.register_error(_MARK, _mark)
        self.stream = stream
        decoder: Any = codecs.getincrementaldecoder(encoding)(_MARK)
        self.decoder: Any = io.IncrementalNewlineDecoder(decoder, translate=True)
        self.waiting = b""
        self.ended = False

    def readable(self) -> bool:
        """True, always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`; 0 at the end."""
        while not self.waiting and not self.ended:
            piece = self.stream.read1(DECODE_CHUNK_BYTES)  # type: ignore[attr-defined]  # what precedes damage is not lost
            self.ended = not piece
            self.waiting = self.decoder.decode(piece, final=self.ended).encode("utf-8", _MARK)
        size = min(len(buffer), len(self.waiting))
        buffer[:size] = self.waiting[:size]
        self.waiting = self.waiting[size:]
        return size

    def close(self) -> None:
        """Close the text below too."""
        self.stream.close()
        super().close()


def in_utf8(stream: BinaryIO, encoding: str) -> BinaryIO:
    """Return the bytes of a text as UTF-8, from an encoding as `find_encoding` names it."""
    return io.BufferedReader(_InUtf8(stream, encoding), 1 << 18) if encoding else stream
