"""What ranks leave about themselves in a folder, for launch/supervise.py (pretrain/train.py writes it).

FOLDER/RANK           "CODE RANKS_HERE RANKS", at a good end
FOLDER/place-RANK     "HOST PID", later "HOST PID CODE"; HOST as the hostfile has it, without the user
"""

from pathlib import Path
from typing import NamedTuple

NAMED = 6  # ranks in a message; of more it says only that there are others


class Place(NamedTuple):
    """Where a rank is, and how it has ended."""

    rank: int
    host: str  # as the launcher calls it
    pid: int  # on its host
    code: int | None  # None: it has not said

    @property
    def has_failed(self) -> bool:
        """Whether it said that it ended otherwise than finished, or stopped and saved."""
        return self.code not in (None, 0, 75)


def places_in(folder: Path) -> list[Place]:
    """Return what ranks have told, by rank; on a disk that is full they could not tell their hosts."""
    places = []
    for path in folder.glob("place-*"):
        host, pid, code = [*path.read_text().split(), "", "", ""][:3]
        rank = int(path.name.removeprefix("place-"))
        places.append(Place(rank, host or "a node", int(pid or 0), int(code) if code else None))
    return sorted(places)


def who_failed(folder: Path) -> str:
    """Return in words which ranks have not come to a good end: first those that could not say a word. Empty: nobody
    has begun, or all is well."""
    places = places_in(folder)
    if silent := [f"rank {place.rank} on {place.host}" for place in places if place.code is None]:
        return f"{_some(silent)} ended without a word: killed, or the node or its link is gone"
    failed = [f"rank {place.rank} on {place.host} (code {place.code})" for place in places if place.has_failed]
    return f"{_some(failed)} failed" if failed else ""


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:NAMED])}{' and others' if len(names) > NAMED else ''}"


def outcome_of(folder: Path, is_of_all: bool) -> int | None:
    """Return what all ranks of this host say, or of all hosts, each in a file "CODE RANKS_HERE RANKS"; None where one
    says nothing, or something else."""
    told = [path.read_text().split() for path in folder.glob("[0-9]*")]
    if not all(len(words) == 3 for words in told):  # a disk is full
        return None
    codes = {int(code) for code, *_ in told}
    return codes.pop() if len(codes) == 1 and len(told) == int(told[0][2 if is_of_all else 1]) else None
