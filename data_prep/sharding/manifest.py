"""The manifest of a store: what it is made from, written last, and only when every part is there.

    describe(...)        the part known beforehand; the same in every rank and at every restart
    is_finished(...)     whether there is nothing to do
    finish(...)          by whichever rank finds all units done

docs/format.md describes manifest.json key by key.
"""

import fcntl
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_prep.cli import InputError, say
from data_prep.fields import write_sealed
from data_prep.files import write_folder
from data_prep.sharding.held_out import hold_out_enough
from data_prep.sharding.plan import Records, Unit, differing
from data_prep.store import FORMAT, FORMAT_WITH_WORDS, TOKENIZER_FILES, project_version
from data_prep.store import read_manifest as read_store_manifest
from data_prep.text import cleaning
from data_prep.text.source import Source
from data_prep.tokens import unknown
from data_prep.tokens.encode import Encoder

ENDS = 1 << 16  # bytes from either end of a source that are hashed: enough to tell files of one size apart
TOTALS = (
    "documents",
    "sentences",
    "tokens",
    "held_out_documents",
    "unknown",
    "text_bytes",
    "characters",
    "unknown_characters",
)
WRITTEN = {"format", "token_dtype", "vocab", "settings", "sources", "shards", "counts", "oddities"}
ODDITIES = (
    *("empty_documents", "cut_documents", "cut_sentences", "invalid_utf8", "nul_characters", "long_lines"),
    *("bad_lines", "damaged_parts", "refused_members", "other_members", "damaged_characters"),
    *cleaning.COUNTS,
)
REFUSED = (  # by --strict
    *("invalid_utf8", "nul_characters", "long_lines", "bad_lines", "damaged_parts", "refused_members"),
    "cut_documents",
)


def describe(
    encoder: Encoder, vocab_sha256: str, settings: dict[str, Any], sources: Sequence[Source]
) -> dict[str, Any]:
    """What a store is made from: the part of its manifest that is known beforehand. No clock, no host, no folder."""
    return {
        "format": FORMAT_WITH_WORDS if "words" in settings else FORMAT,
        "zerobert": project_version(),
        "token_dtype": encoder.dtype.str,
        "vocab": {"sha256": vocab_sha256, "size": encoder.size, "special_ids": encoder.special_ids},
        "settings": settings,
        "sources": [
            {"path": source.name, "bytes": source.bytes, "ends_sha256": ends_sha256(source.path)}
            | ({"layout": source.layout} if source.layout else {})
            | ({"encoding": source.encoding} if source.encoding else {})
            | ({"column": source.column} if source.column else {})
            for source in sources
        ],
    }


def ends_sha256(path: Path) -> str | None:
    """sha256 of a file's first and last bytes; None for what is no file. To have the hash of the whole before any work
    is done, a corpus would have to be read twice."""
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read(ENDS))
        file.seek(max(ENDS, path.stat().st_size - ENDS))
        digest.update(file.read())
    return digest.hexdigest()


def is_finished(store: Path, identity: dict[str, Any], appending: bool) -> bool:
    """Whether `store` is finished, and from the same things.

    Raises
    ------
    InputError: it is finished, but from other things.
    """
    manifest = read_manifest(store)
    if manifest is None or (appending and len(manifest["sources"]) < len(identity["sources"])):
        return False
    theirs = {name: manifest.get(name) for name in identity if name != "zerobert"}
    differing(theirs, {name: value for name, value in identity.items() if name in theirs}, store, "was made")
    damaged = [e["name"] for e in manifest["shards"] if _size_of(store / e["name"]) != e["bytes"]]
    if damaged:
        raise InputError(f"{store} is damaged: {', '.join(damaged[:3])}; remove the folder and run again")
    shutil.rmtree(store / "parts", ignore_errors=True)
    say(f"{store} is finished, with the same settings: {manifest['counts']['tokens']:,} tokens; nothing to do")
    return True


def to_append_to(store: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a finished store to which sources are added; None where there is none yet.

    Raises
    ------
    InputError: it was made with another tokenizer or other settings, or a source of it has changed.
    """
    manifest = read_manifest(store)
    if manifest is None:
        return None
    same = ("format", "token_dtype", "vocab", "settings")
    theirs, ours = ({name: content[name] for name in same} for content in (manifest, identity))
    differing(theirs, ours, store, "was made")
    return manifest


def new_sources(store: Path, known: list[dict[str, Any]], given: list[dict[str, Any]]) -> list[int]:
    """Which of the sources `given` are not among the `known` ones of a store, whatever the order of either.

    A source is known by its name and content; the content of a known one under another name is left out, and said.

    Raises
    ------
    InputError: one of the name of a known source that holds something else.
    """
    names = {source["path"] for source in known}
    contents = {(source["bytes"], source["ends_sha256"]): source["path"] for source in known if source["ends_sha256"]}
    new = []
    for number, source in enumerate(given):
        if source in known:
            continue
        if source["path"] in names:
            raise InputError(
                f"{source['path']} is in {store} already, and has changed since (or is another file of that name: give "
                "its folder as --corpus, whose name then goes before it); make the store anew for a file that changed"
            )
        twin = contents.get((source["bytes"], source["ends_sha256"]))
        if twin is not None and source["bytes"]:
            say(f"{source['path']} is {twin} under another name, which is in {store} already: left out")
        else:
            new.append(number)
    return new


def read_manifest(store: Path) -> dict[str, Any] | None:
    """The manifest of a finished store.

    Raises
    ------
    InputError: it is damaged.
    """
    if not (store / "manifest.json").is_file():
        return None
    manifest = read_store_manifest(store)
    shards = [set(shard) for shard in manifest["shards"]]
    missing = WRITTEN - manifest.keys() | {"bytes", *TOTALS[:3]} - set.intersection(*shards)
    if missing:
        raise InputError(f"{store / 'manifest.json'} lacks {', '.join(sorted(missing))}; remove {store} and run again")
    return manifest


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def refuse_oddities(sources: list[Source], counts: dict[int, Counter[str]]) -> None:
    """What `--strict` means once a unit has been read.

    Raises
    ------
    InputError: naming the source and what is odd about it.
    """
    for number, found in counts.items():
        if odd := [f"{name} {found[name]:,}" for name in REFUSED if found[name]]:
            raise InputError(f"{sources[number].path}: {', '.join(odd)}, which --strict refuses")


def finish(
    records: Records,
    units: Sequence[Unit],
    identity: dict[str, Any],
    vocab: Path,
    base: dict[str, Any] | None,
    check: Callable[[dict[int, Counter[str]]], None] = lambda counts: None,
) -> bool:
    """Write the manifest if all units are done, by whichever rank sees it first; return whether it was this one.

    `check` takes what was counted in reading, by number of source.

    Raises
    ------
    InputError: the corpus turned out to hold no text, or what `check` says.
    """
    store = records.store
    with only_one(records.folder) as first:
        if not first:
            say(f"{store} was finished by another rank")
            return False
        done = [records.unit(unit) for unit in units]
        found = [record for unit in done if unit is not None for record in unit]
        if None in done:
            say(f"this rank is done; {done.count(None)} of {len(done)} units are with other ranks")
            return False
        check(counts_of_sources(found))
        made = [record["shard"] for record in found if "shard" in record]
        shards = [*(base["shards"] if base else []), *(shard for shard in made if shard["documents"])]
        if not shards:
            shutil.rmtree(store)
            names = ", ".join(source["path"] for source in identity["sources"][:5])
            raise InputError(f"the corpus holds no text: {names}")
        more = hold_out_enough(store, found, base, identity["settings"]["holdout"], identity["vocab"]["sha256"])
        content = identity | {"shards": shards} | total_counts(found, shards, identity["sources"], base)
        content["counts"]["held_out_documents"] += more
        if base is None:
            write_folder(store / "vocab", lambda folder: copy_tokenizer(vocab, folder))
        for leftover in store.glob("*.partial*"):  # of a run that was killed: files, or vocab/ half copied
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        for empty in {shard["name"] for shard in made} - {shard["name"] for shard in shards}:
            (store / empty).unlink()
        write_sealed(store / "manifest.json", content)
        shutil.rmtree(records.folder, ignore_errors=True)  # a network disk may keep the lock's file a while
    summarise(store, shards, content["counts"])
    return True


@contextmanager
def only_one(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder that goes with the work; False where it is gone already."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield (folder / "plan.json").exists()
    finally:
        os.close(descriptor)


def counts_of_sources(records: list[dict[str, Any]]) -> dict[int, Counter[str]]:
    """What was counted in reading, by number of source."""
    found: dict[int, Counter[str]] = {}
    for record in records:
        if "shard" not in record:
            for source, counts in record["counts"].items():
                found.setdefault(int(source), Counter()).update(counts)
    return found


def total_counts(
    records: list[dict[str, Any]],
    shards: list[dict[str, Any]],
    sources: list[dict[str, Any]],
    base: dict[str, Any] | None,
) -> dict[str, Any]:
    """`counts`, the sums over all shards, and `oddities`, which sources have which."""
    total: Counter[str] = Counter()
    odd: dict[str, Counter[str]] = {}
    if base:
        total.update({name: base["counts"].get(name, 0) for name in (*TOTALS[3:], *ODDITIES)})
        odd |= {path: Counter(found) for path, found in base["oddities"].items()}
    for record in records:
        if "shard" in record:
            total.update(record["counts"])
    for source, found in counts_of_sources(records).items():
        # The reader's characters, blanks and all, are for shares of damage; those of the counts are the builder's.
        total.update({name: count for name, count in found.items() if name != "characters"})
        if named := {name: count for name, count in found.items() if name not in ("characters", "damaged_characters")}:
            odd.setdefault(sources[source]["path"], Counter()).update(named)
    for shard in shards:
        total.update({name: shard[name] for name in TOTALS[:3]})
    return {
        "counts": {name: total[name] for name in (*TOTALS, *ODDITIES)},
        "oddities": {path: dict(sorted(odd[path].items())) for path in sorted(odd)},
    }


def copy_tokenizer(vocab: Path, folder: Path) -> None:
    """Copy the files that make a tokenizer folder what it is."""
    for name in TOKENIZER_FILES:
        if (vocab / name).is_file():
            shutil.copyfile(vocab / name, folder / name)


def summarise(store: Path, shards: list[dict[str, Any]], counts: dict[str, int]) -> None:
    """Say what came out, oddities included."""
    tokens, size = counts["tokens"], sum(shard["bytes"] for shard in shards)
    say(
        f"{store}: {counts['documents']:,} documents ({counts['held_out_documents']:,} held out), "
        f"{counts['sentences']:,} sentences, {tokens:,} tokens in {len(shards)} shards; "
        f"{size / tokens:.2f} bytes a token, {100 * counts['unknown'] / tokens:.3f} % unknown "
        f"({100 * counts['unknown_characters'] / max(counts['characters'], 1):.3f} % of the characters)"
    )
    if warning := unknown.advice(counts["unknown_characters"], counts["characters"]):
        say(warning)
    if oddities := [f"{name} {counts[name]:,}" for name in ODDITIES if counts[name]]:
        say(f"oddities: {', '.join(oddities)}")
