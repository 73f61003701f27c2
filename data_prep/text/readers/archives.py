"""Tar archives as sources: their members are read one after another as the archive streams by; nothing is extracted.

    for member, stream in members(source, counts): ...      # regular files, in the order of the archive

No member is ever written anywhere, so its name cannot lead out of a folder. Links, devices and sparse files are not
read (`refused_members`; --strict refuses them). An archive that is damaged or cut short ends where it breaks, and is
counted (`damaged_parts`). Memory: that of a stream; headers that ask for more are taken for damage.
"""

import tarfile
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, BinaryIO

from data_prep.cli import say
from data_prep.text.source import DamagedError, Source, open_decompressed, reading, record_damage

MAX_HEADER_BYTES = 1 << 20  # of a long name or of the extended header of a member
_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


class _Member(tarfile.TarInfo):
    """A member whose header is whole. tarfile takes a broken header for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Member":
        """Return the member that a header describes.

        Raises
        ------
        tarfile.ReadError: no header, nor the zeros that end an archive.
        """
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf.count(0) == tarfile.BLOCKSIZE:  # the end
                raise
            raise tarfile.ReadError(str(error)) from error
        if member.type in _EXTENDED and member.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {member.size:,} bytes")
        return member


def members(source: Source, counts: Counter[str]) -> Iterator[tuple[str, BinaryIO]]:
    """Yield names and contents of the regular files of an archive; a content is gone once the next one is asked for."""
    refused = before = 0
    with open_decompressed(source) as stream:
        steps = SimpleNamespace(read=stream.read1)  # type: ignore[attr-defined]  # what precedes damage is not lost
        try:
            with reading(source):
                archive: Any = tarfile.open(fileobj=steps, mode="r|", tarinfo=_Member)  # noqa: SIM115
            while member := _next(source, archive):
                archive.members, before = [], counts["damaged_parts"]  # tarfile keeps all members
                if member.isreg() and not member.issparse():
                    content = archive.extractfile(member)
                    assert content is not None, member.name
                    yield member.name, content
                elif not member.isdir():
                    refused += 1
                    if refused == 1:
                        say(f"warning: {source.path}: {member.name} is a link, a device or sparse; such are not read")
        except DamagedError as error:
            if counts["damaged_parts"] == before:  # otherwise whoever read the last member has met it
                record_damage(error, counts)
    if refused:
        counts["refused_members"] += refused


def _next(source: Source, archive: Any) -> tarfile.TarInfo | None:
    with reading(source):
        return archive.next()
