"""The manifest of a store in the making: written last, and only when every part is there.

    describe(...)        the part known beforehand; the same in every rank and at every restart
    is_finished(...)     whether there is nothing to do
    finish(...)          by whichever rank finds all units done

store_manifest.py has the manifest itself.
"""

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from data_prep.cli import InputError, say
from data_prep.fields import write_sealed
from data_prep.files import write_folder
from data_prep.json_types import JsonObject
from data_prep.sharding.held_out import hold_out_enough
from data_prep.sharding.locks import finishing_lock
from data_prep.sharding.plan import WorkUnit
from data_prep.sharding.records import FinishedUnit, Records, ShardRecord, refuse_if_different
from data_prep.store_manifest import (
    FORMAT,
    FORMAT_WITH_WORDS,
    Counts,
    ShardEntry,
    SourceEntry,
    StoreManifest,
    Vocab,
    read_manifest,
)
from data_prep.text.source import Source
from data_prep.tokens import unknown
from data_prep.tokens.encode import Encoder
from data_prep.tokens.tokenizer_folder import TOKENIZER_FILES
from data_prep.version import project_version

HASHED_END_BYTES = 1 << 16  # from either end of a source: enough to tell files of one size apart
REFUSED = (  # by --strict
    *("invalid_utf8", "nul_characters", "long_lines", "bad_lines", "damaged_parts", "refused_members"),
    "cut_documents",
)
READERS_OWN = ("characters", "damaged_characters")  # counted in reading, for shares of damage: no irregularity


def describe(encoder: Encoder, vocab_sha256: str, settings: JsonObject, sources: Sequence[Source]) -> StoreManifest:
    """Return what a store is made from: its manifest, as far as it is known beforehand. No clock, host or folder."""
    return StoreManifest(
        format=FORMAT_WITH_WORDS if "words" in settings else FORMAT,
        zerobert=project_version(),
        token_dtype=encoder.dtype.str,
        vocab=Vocab(sha256=vocab_sha256, size=encoder.size, special_ids=encoder.special_ids),
        settings=settings,
        sources=tuple(
            SourceEntry(
                path=source.name,
                bytes=source.bytes,
                ends_sha256=ends_sha256(source.path),
                layout=source.layout,
                encoding=source.encoding,
                column=source.column,
            )
            for source in sources
        ),
    )


def ends_sha256(path: Path) -> str | None:
    """Return the sha256 of a file's first and last bytes; None for what is no file. To have the hash of the whole
    before any work is done, a corpus would have to be read twice."""
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read(HASHED_END_BYTES))
        file.seek(max(HASHED_END_BYTES, path.stat().st_size - HASHED_END_BYTES))
        digest.update(file.read())
    return digest.hexdigest()


def is_finished(store: Path, wanted: StoreManifest, appending: bool) -> bool:
    """Whether `store` is finished, and from the same things.

    Raises
    ------
    InputError: it is finished, but from other things.
    """
    manifest = _finished_manifest(store)
    if manifest is None or (appending and len(manifest.sources) < len(wanted.sources)):
        return False
    theirs, ours = (_without_version(one) for one in (manifest, wanted))
    refuse_if_different(theirs, ours, store=store, state="was made")
    damaged = [shard.name for shard in manifest.shards if _size_of(store / shard.name) != shard.bytes]
    if damaged:
        raise InputError(f"{store} is damaged: {', '.join(damaged[:3])}; remove the folder and run again")
    shutil.rmtree(store / "parts", ignore_errors=True)
    say(f"{store} is finished, with the same settings: {manifest.counts.tokens:,} tokens; nothing to do")
    return True


def _without_version(manifest: StoreManifest) -> JsonObject:
    return {name: value for name, value in manifest.recipe().items() if name != "zerobert"}


def base_manifest(store: Path, wanted: StoreManifest) -> StoreManifest | None:
    """Return the manifest of a finished store to which sources are added; None where there is none yet.

    Raises
    ------
    InputError: it was made with another tokenizer or other settings, or a source of it has changed.
    """
    manifest = _finished_manifest(store)
    if manifest is None:
        return None
    same = ("format", "token_dtype", "vocab", "settings")
    theirs, ours = ({name: one.recipe()[name] for name in same} for one in (manifest, wanted))
    refuse_if_different(theirs, ours, store=store, state="was made")
    return manifest


def new_sources(store: Path, known: Sequence[SourceEntry], given: Sequence[SourceEntry]) -> list[int]:
    """Return which of the sources `given`, by index, are not among the `known` ones of a store, in whatever order.

    A source is known by its name and content; the content of a known one under another name is left out, and said.

    Raises
    ------
    InputError: one of the name of a known source that holds something else.
    """
    names = {source.path for source in known}
    contents: dict[tuple[int, str | None], str] = {
        (source.bytes, source.ends_sha256): source.path for source in known if source.ends_sha256
    }
    new = []
    for index, source in enumerate(given):
        if source in known:
            continue
        if source.path in names:
            raise InputError(
                f"{source.path} is in {store} already, and has changed since (or is another file of that name: give "
                "its folder as --corpus, whose name then goes before it); make the store anew for a file that changed"
            )
        twin = contents.get((source.bytes, source.ends_sha256))
        if twin is not None and source.bytes:
            say(f"{source.path} is {twin} under another name, which is in {store} already: left out")
        else:
            new.append(index)
    return new


def _finished_manifest(store: Path) -> StoreManifest | None:
    return read_manifest(store) if (store / "manifest.json").is_file() else None


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def refuse_irregular(sources: list[Source], counts: dict[int, Counter[str]]) -> None:
    """Refuse what `--strict` refuses, once a unit has been read.

    Raises
    ------
    InputError: naming the source and what is odd about it.
    """
    for index, found in counts.items():
        if odd := [f"{name} {found[name]:,}" for name in REFUSED if found[name]]:
            raise InputError(f"{sources[index].path}: {', '.join(odd)}, which --strict refuses")


def finish(
    records: Records,
    units: Sequence[WorkUnit],
    wanted: StoreManifest,
    *,
    vocab: Path,
    base: StoreManifest | None,
    check: Callable[[dict[int, Counter[str]]], None] = lambda counts: None,
) -> bool:
    """Write the manifest if all units are done, by whichever rank sees it first; return whether it was this one.

    `check` takes what was counted in reading, by index of source.

    Raises
    ------
    InputError: the corpus turned out to hold no text, or what `check` says.
    """
    store = records.store
    # Of a thousand ranks all but the last ones end here: each would read thousands of records while the others wait.
    if left := records.count_missing(units):
        say(f"this rank is done; {left} of {len(units)} units are with other ranks")
        return False
    with finishing_lock(records.folder) as is_first:
        if not is_first:
            say(f"{store} was finished by another rank")
            return False
        finished = [records.finished_unit(unit) for unit in units]
        done = [unit for unit in finished if unit is not None]
        if left := len(finished) - len(done):
            say(f"this rank is done; {left} of {len(finished)} units are with other ranks")
            return False
        check(counts_by_source(done))
        made = [record for unit in done for record in unit.shards]
        if not (base and base.shards) and not any(record.shard.documents for record in made):
            shutil.rmtree(store)
            names = ", ".join(source.path for source in wanted.sources[:5])
            raise InputError(f"the corpus holds no text: {names}")
        before = base.counts if base else Counts()
        holdout, sha256 = wanted.settings["holdout"], wanted.vocab.sha256
        made, more = hold_out_enough(store, made, before, holdout=holdout, vocab_sha256=sha256)
        manifest = completed_manifest(wanted, base, done, made, more)
        if base is None:
            write_folder(store / "vocab", lambda folder: copy_tokenizer(vocab, folder))
        for leftover in store.glob("*.partial*"):  # of a run that was killed: files, or vocab/ half copied
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        for record in made:
            if not record.shard.documents:
                (store / record.shard.name).unlink()
        write_sealed(store / "manifest.json", manifest.to_json())
        shutil.rmtree(records.folder, ignore_errors=True)  # a network disk may keep the lock's file a while
    summarise(store, manifest)
    return True


def completed_manifest(
    wanted: StoreManifest,
    base: StoreManifest | None,
    units: list[FinishedUnit],
    made: list[ShardRecord],
    held_out_more: int,
) -> StoreManifest:
    """Return the whole manifest: the shards and counts of `base`, then those that were made."""
    shards = (*(base.shards if base else ()), *(record.shard for record in made if record.shard.documents))
    total: Counter[str] = Counter(held_out_documents=held_out_more)
    odd: dict[str, Counter[str]] = {}
    if base:
        total.update({name: count or 0 for name, count in asdict(base.counts).items()})
        total.subtract(_sizes(base.shards))  # which are counted with the others
        odd = {path: Counter(found) for path, found in base.irregularities.items()}
    for record in made:
        total.update(record.counts)
    for source, found in counts_by_source(units).items():
        # The reader's characters, blanks and all, are for shares of damage; those of the counts are the builder's.
        total.update({name: count for name, count in found.items() if name != "characters"})
        if named := {name: count for name, count in found.items() if name not in READERS_OWN}:
            odd.setdefault(wanted.sources[source].path, Counter()).update(named)
    total.update(_sizes(shards))
    return replace(
        wanted,
        shards=shards,
        counts=Counts.of(total),
        irregularities={path: dict(sorted(odd[path].items())) for path in sorted(odd)},
    )


def _sizes(shards: Iterable[ShardEntry]) -> Counter[str]:
    total: Counter[str] = Counter()
    for shard in shards:
        total.update(documents=shard.documents, sentences=shard.sentences, tokens=shard.tokens)
    return total


def counts_by_source(units: Iterable[FinishedUnit]) -> dict[int, Counter[str]]:
    """Return what was counted in reading, by index of source."""
    found: dict[int, Counter[str]] = {}
    for unit in units:
        for source, counts in unit.counts.items():
            found.setdefault(source, Counter()).update(counts)
    return found


def copy_tokenizer(vocab: Path, folder: Path) -> None:
    """Copy the files that make a tokenizer folder what it is."""
    for name in TOKENIZER_FILES:
        if (vocab / name).is_file():
            shutil.copyfile(vocab / name, folder / name)


def summarise(store: Path, manifest: StoreManifest) -> None:
    """Say what came out, irregularities included."""
    counts, size = manifest.counts, sum(shard.bytes for shard in manifest.shards)
    tokens, characters, unknown_characters = counts.tokens, counts.characters or 0, counts.unknown_characters or 0
    say(
        f"{store}: {counts.documents:,} documents ({counts.held_out_documents:,} held out), "
        f"{counts.sentences:,} sentences, {tokens:,} tokens in {len(manifest.shards)} shards; "
        f"{size / tokens:.2f} bytes a token, {100 * counts.unknown / tokens:.3f} % unknown "
        f"({100 * unknown_characters / max(characters, 1):.3f} % of the characters)"
    )
    if warning := unknown.advice(unknown_characters, characters):
        say(warning)
    if counts.irregularities:
        say("oddities: " + ", ".join(f"{name} {count:,}" for name, count in counts.irregularities.items()))
