"""Find copies in a corpus: a pass of its own over all of it, whose result, a drop list, is a setting of shard.py.

    python data_prep/dedup.py --corpus wiki/ news.jsonl.gz --out drops.npz
    python data_prep/shard.py --corpus wiki/ news.jsonl.gz --vocab vocab --out stores/all --drop drops.npz

    exact documents   the same text but for case and white space
    near documents    at least --similar of the runs of 5 words in common: MinHash signatures (package rensa) in bands
    lines             the same line in --line_copies documents or more: menus, licences, addresses

The first of several copies, in the order of the corpus, stays. A list is two arrays of 64-bit hashes: of the identities
of documents ("source:place", hence the same --shard_mb as shard.py), and of lines. It does not depend on --workers.
Memory: 8 bytes a document and 4 x --permutations for near copies; 8 bytes a line.
"""

import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

if __name__ == "__main__":
    if not __package__:  # a plain script: data_prep/ itself is on the path, where its file names could hide others'
        sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()

import io

import numpy as np

from data_prep.cli import InputError, print_json, run, say
from data_prep.files import check_writable, write_whole
from data_prep.progress import TextProgress
from data_prep.ranges import SHARD_MB, WORKERS, Range, check_ranges
from data_prep.sharding.plan import WorkPlan, WorkUnit, plan_work, unit_documents, unit_name
from data_prep.sharding.ranks import RankInfo, local_workers
from data_prep.sharding.worker_pool import map_processes
from data_prep.text.cleaning import hash_of, identity_of
from data_prep.text.damage import check_damage_of_all
from data_prep.text.discovery import check_unchanged, find_sources
from data_prep.text.source import Source

SHINGLE_WORDS = 5  # in a row
SEED = 1
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class DedupConfig:
    """What counts as a copy."""

    out: Path
    """the drop list to write"""
    corpus: tuple[str, ...] = ()
    """files, folders or globs, as for shard.py"""
    dataset: tuple[str, ...] = ()
    """Hugging Face datasets, as for shard.py"""
    similar: Annotated[float, Range(0.3, 1)] = 0.8
    """share of their runs of words that near copies have in common; 1: exact copies only"""
    line_copies: Annotated[int, Range(0, 1e9)] = 0
    """drop lines that occur in so many documents or more; 0: keep them"""
    permutations: Annotated[int, Range(16, 4096)] = 128
    """length of a signature: more find near copies more surely"""
    workers: Annotated[int, WORKERS] = 0
    """processes; 0: one a core"""
    shard_mb: Annotated[float, SHARD_MB] = 64
    """as for shard.py: it decides where long texts are cut"""
    txt: Literal["auto", "lines", "prose"] = "auto"
    """layout of .txt"""
    column: str = "text"
    """as for shard.py"""
    encoding: str | None = None
    """as for shard.py"""
    max_damaged: Annotated[float | None, Range(0, 1)] = None
    """as for shard.py"""
    json: bool = False
    """print the counts as one JSON object"""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.corpus and not self.dataset:
            raise InputError("nothing to read: give --corpus PATH... or --dataset NAME_OR_FOLDER...")


@dataclass(frozen=True)
class UnitHashes:
    """What is kept of the documents of a unit, in their order. D documents."""

    identities: np.ndarray  # [D] uint64
    texts: np.ndarray  # [D] uint64, hash of the text
    signatures: np.ndarray  # [D, P] uint32, or [D, 0]
    lines: np.ndarray  # [L] uint64, hashes of lines, once a document
    counts: dict[int, Counter[str]]  # what the reader counted, by source


def main(config: DedupConfig) -> None:
    """Write the list."""
    if config.out.is_dir():
        raise InputError(f"--out {config.out} is a folder; name a file in it, such as {config.out / 'drops.npz'}")
    check_writable(config.out)
    sources = find_sources(
        config.corpus,
        config.txt,
        config.dataset,
        column=config.column,
        encoding=config.encoding,
        max_damaged=config.max_damaged,
        out=config.out,
    )
    plan = plan_work(sources, config.column, int(config.shard_mb * 1e6))
    hashes = hash_corpus(config, sources, plan)
    check_sources(config, sources, hashes)
    copies = find_copies(config, hashes)
    content = io.BytesIO()
    np.savez(content, documents=np.sort(copies.identities), lines=copies.lines)
    write_whole(config.out, [content.getvalue()])
    report = {"documents": copies.documents, "exact": copies.exact, "near": copies.near, "lines": len(copies.lines)}
    if config.json:
        print_json(report)
    say("{}: of {documents:,} documents {exact:,} exact and {near:,} near copies".format(config.out, **report))


def hash_corpus(config: DedupConfig, sources: list[Source], plan: WorkPlan) -> list[UnitHashes]:
    """Return the hashes of all units, in the order of the corpus."""
    hashes: dict[int, UnitHashes] = {}
    with TextProgress(sum(unit.text_bytes for unit in plan.units)) as progress:
        for unit, found in map_processes(
            lambda unit, report: hash_unit(config, sources, unit, report),
            plan.units,
            workers=config.workers or local_workers(RankInfo(0, 1)),
            name=lambda unit: unit_name(unit, sources),
            report=lambda size: progress.add(size, 0),
        ):
            hashes[unit] = found
    return [hashes[unit.number] for unit in plan.units]


def check_sources(config: DedupConfig, sources: list[Source], hashes: list[UnitHashes]) -> None:
    """Refuse what was made of files that changed meanwhile, or that are damaged beyond --max_damaged.

    Raises
    ------
    InputError: naming the file.
    """
    counts: dict[int, Counter[str]] = {}
    for unit in hashes:
        for source, found in unit.counts.items():
            counts.setdefault(source, Counter()).update(found)
    for one in sources:
        check_unchanged(one)
    counted = [(one, counts.get(index, Counter())) for index, one in enumerate(sources)]
    check_damage_of_all(counted, config.max_damaged, encoding_is_named=config.encoding is not None)


class Copies(NamedTuple):
    """What is to be left out, and how it was found."""

    identities: np.ndarray  # [C] uint64, of documents
    lines: np.ndarray  # uint64, hashes
    documents: int  # all there are
    exact: int
    near: int


def find_copies(config: DedupConfig, hashes: list[UnitHashes]) -> Copies:
    """Return the documents and lines of a corpus that have occurred before."""
    identities = np.concatenate([unit.identities for unit in hashes])
    is_exact = exact_copies(np.concatenate([unit.texts for unit in hashes]))
    # Only what is no exact copy is looked at for near ones: the first of each is enough.
    is_near = np.zeros(len(identities), bool)
    if config.similar < 1:
        left = np.flatnonzero(~is_exact)
        signatures = np.concatenate([unit.signatures for unit in hashes])
        is_near[left] = near_copies(signatures[left], config.similar)
    lines = frequent(np.concatenate([unit.lines for unit in hashes]), config.line_copies)
    return Copies(identities[is_exact | is_near], lines, len(identities), int(is_exact.sum()), int(is_near.sum()))


def hash_unit(
    config: DedupConfig, sources: list[Source], unit: WorkUnit, report: Callable[[int], None]
) -> tuple[int, UnitHashes]:
    """Hash the documents of a unit."""
    identities, texts, shingles, lines = [], [], [], []
    signatures = [np.zeros((0, config.permutations if config.similar < 1 else 0), np.uint32)]
    counts: dict[int, Counter[str]] = {}
    for _, document in unit_documents(unit, sources, config.column, counts):
        words = _WORD.findall(document.text.lower())
        identities.append(identity_of(document))
        texts.append(hash_of(" ".join(words)) if words else hash_of(document.text))
        if config.line_copies:
            lines += [hash_of(line) for line in {raw.strip() for raw in document.text.split("\n")} if line]
        if config.similar < 1:
            shingles.append(
                [" ".join(words[at : at + SHINGLE_WORDS]) for at in range(max(1, len(words) - SHINGLE_WORDS + 1))]
            )
            if len(shingles) == 64:
                signatures.append(_signatures(shingles, config.permutations))
                shingles = []
        report(len(document.text))
    if shingles:
        signatures.append(_signatures(shingles, config.permutations))
    hashes = [np.array(column, np.uint64) for column in (identities, texts, lines)]
    return unit.number, UnitHashes(hashes[0], hashes[1], np.concatenate(signatures), hashes[2], counts)


def _signatures(shingles: list[list[str]], permutations: int) -> np.ndarray:
    try:
        from rensa import RMinHash
    except ImportError as error:
        raise InputError("near copies need the package rensa: pip install 'zerobert[text]', or --similar 1") from error
    signed: list[Any] = RMinHash.digests_from_token_sets(shingles, num_perm=permutations, seed=SEED)
    return np.array(signed, np.uint32)


def exact_copies(texts: np.ndarray) -> np.ndarray:
    """Return [D] bool: has the text of an earlier document."""
    copies = np.ones(len(texts), bool)
    copies[np.unique(texts, return_index=True)[1]] = False
    return copies


def near_copies(signatures: np.ndarray, similar: float) -> np.ndarray:
    """Return [D] bool: resembles an earlier document that stays, or one that resembles it.

    Documents that agree in all of a band of their signatures are compared with the first of them, in full: what comes
    out does not depend on luck with the bands beyond what they fail to bring together.
    """
    count, permutations = signatures.shape
    # Union-find: root[row] is an earlier document that resembles it, or itself. Bands: columns 0..3, 4..7, ...
    root = np.arange(count)
    for band in np.array_split(np.arange(permutations), permutations // rows_of(permutations, similar)):
        key = np.ascontiguousarray(signatures[:, band]).view(np.dtype((np.void, 4 * len(band)))).ravel()
        _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
        earlier = first[inverse]
        # Documents with the same band as an earlier one are compared with the first such, in all columns.
        rows = np.flatnonzero(earlier < np.arange(count))
        alike = (signatures[rows] == signatures[earlier[rows]]).mean(1) >= similar if len(rows) else np.zeros(0, bool)
        for row, other in zip(rows[alike].tolist(), earlier[rows[alike]].tolist(), strict=True):
            a, b = _root(root, row), _root(root, other)
            root[max(a, b)] = min(a, b)
    return np.array([_root(root, row) != row for row in range(count)], bool)


def rows_of(permutations: int, similar: float) -> int:
    """Rows of a band such that documents at the threshold meet in some band with a chance of 95 % or more."""
    fitting = [r for r in range(2, 17) if 1 - (1 - similar**r) ** (permutations // r) >= 0.95]
    return max(fitting, default=2)


def _root(root: np.ndarray, row: int) -> int:
    while root[row] != row:
        root[row] = root[root[row]]
        row = int(root[row])
    return row


def frequent(lines: np.ndarray, least: int) -> np.ndarray:
    """Return hashes that occur `least` times or more, sorted; none where `least` is 0."""
    if not least:
        return np.zeros(0, np.uint64)
    found, counts = np.unique(lines, return_counts=True)
    return found[counts >= least]


if __name__ == "__main__":
    run(main, DedupConfig, __doc__)
