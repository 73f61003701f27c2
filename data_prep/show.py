"""Look at a token store: what is in it, and what pretraining will see of it.

    python data_prep/show.py stores/wiki                       # statistics and a few samples
    python data_prep/show.py stores/wiki --samples 20 --seq_len 512
    python data_prep/show.py stores/wiki --unit span           # what whole words or spans look like when masked
    python data_prep/show.py stores/wiki --picture lengths.png
    python data_prep/show.py stores/wiki --verify              # read every byte, compare with the checksums
    python data_prep/show.py stores/wiki --json                # one JSON object; with --objective and --seq_len also
                                                               # how much of the text samples show

Samples are those of a run with the same --seq_len, --objective and --seed, in its order. On a terminal the segments and
masks are coloured; elsewhere brackets say so: [MASK:was], [shown:was] for a random token, [was] for one that stays.
"""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

if __name__ == "__main__":
    if not __package__:  # a plain script: data_prep/ itself is on the path, where its file names could hide others'
        sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()

import numpy as np
from tyro.conf import Positional

from data_prep.calls import call
from data_prep.cli import InputError, print_json, run, say
from data_prep.json_types import JsonObject
from data_prep.mapped import FileChangedError
from data_prep.ranges import Range, check_ranges
from data_prep.samples.assemble import gather_tokens, split_by_length, word_continuations
from data_prep.samples.coverage import look_over
from data_prep.samples.masking import Masking, MaskUnit, mask_tokens
from data_prep.samples.mixture import Epoch, Mixture
from data_prep.samples.rendering import SampleRenderer
from data_prep.samples.sample_index import Objective, Sentences, usage_counts
from data_prep.store import HELD_OUT, Store
from data_prep.store_manifest import Counts
from data_prep.tokens.unknown import advice

RANKS, STEP_SAMPLES, STEPS = 8, 256, 50  # of the run for which imbalance is told
BAR_CHARS = 50  # of the longest bar of a histogram
SOURCES_SHOWN = 20
MEANINGS = {"nsp": ("B follows A", "B is random"), "sop": ("in order", "swapped"), "mlm": ("", "")}  # of the label


@dataclass(frozen=True)
class ShowConfig:
    """What is shown of which store."""

    store: Positional[Path]
    """a folder written by data_prep/shard.py"""
    verify: bool = False
    """compare every file with its checksum"""
    samples: Annotated[int, Range(0, 1e6)] = 3
    """samples to decode"""
    seq_len: Annotated[int, Range(8, 65_535)] = 128
    """tokens in a sample, [CLS] and [SEP] included"""
    objective: Objective = "nsp"
    """how samples are made"""
    unit: MaskUnit = "token"
    """what is masked together"""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """of pairs and masks"""
    picture: Path | None = None
    """write histograms of lengths to this .png, .svg or .pdf"""
    json: bool = False
    """print one JSON object instead"""

    def __post_init__(self) -> None:
        check_ranges(self)


def main(config: ShowConfig) -> None:
    """Print what is asked for; exit code 1 where --verify finds damage.

    Raises
    ------
    InputError: not a finished store.
    """
    store = Store.open(config.store)
    if config.verify and (damaged := store.verify(say)):
        if config.json:
            print_json({"damaged": damaged})
        sys.exit("\n".join([f"error: the store is damaged; remove it and run {call('shard')} again", *damaged]))
    try:
        show(store, config)
    except FileChangedError as error:
        raise InputError(str(error)) from error
    if config.verify:
        say(f"verified: all {len(store.shards)} shards and the tokenizer have their checksums")


def show(store: Store, config: ShowConfig) -> None:
    """Print what is asked for."""
    found = statistics(store) | ({"damaged": []} if config.verify else {})
    if config.json:
        print_json(found | seen(store, config))
    else:
        print_statistics(store, found)
        if config.samples:
            try_samples(store, config)
    if config.picture:
        draw_lengths(store, config.picture)


def try_samples(store: Store, config: ShowConfig) -> None:
    """Print samples; a store that cannot have them for these options is still one to look at, or to verify.

    Raises
    ------
    InputError: there are none, and nothing else was asked for.
    """
    try:
        print_samples(store, config)
    except InputError as error:
        if not config.verify and config.picture is None:
            raise
        say(f"no samples are shown: {error}")


def statistics(store: Store) -> JsonObject:
    """Return what a store holds, as JSON would say it. Lengths in tokens unless named otherwise."""
    counts, shards = store.manifest.counts, store.manifest.shards
    tokens = max(counts.tokens, 1)
    uses = store.token_uses()
    share = uses[uses > 0] / tokens
    return {
        **{name: count or 0 for name, count in asdict(counts).items()},
        "bytes_per_token": round(sum(shard.bytes for shard in shards) / tokens, 4),
        "unknown_rate": counts.unknown / tokens,
        "unknown_char_rate": _unknown_char_rate(counts),
        "shards": len(shards),
        "vocab_size": store.vocab_size,
        "vocab_used": int(np.count_nonzero(uses)),
        "unigram_entropy_nats": round(float(-(share * np.log(share)).sum()), 4),
        "sentence_length": _spread(sentence_lengths(store)),
        "document_length": _spread(document_lengths(store)),
        "sources": _sources(store),
        "settings": store.manifest.settings,
    }


def _unknown_char_rate(counts: Counts) -> float | None:
    """Return the share of the characters that are behind unknown tokens; None where the store does not say."""
    if counts.characters is None or counts.unknown_characters is None:
        return None
    return counts.unknown_characters / max(counts.characters, 1)


def seen(store: Store, config: ShowConfig) -> JsonObject:
    """Return how much of the training text one pass and ten show; null where the objective has nothing to work on."""
    coverage = look_over([store], config.objective, config.seq_len, config.seed)
    return coverage.to_json() if coverage else {"tokens_seen": None, "tokens_seen_10": None}


def sentence_lengths(store: Store) -> np.ndarray:
    """Return the tokens of every sentence [S]."""
    return np.concatenate([shard.sentence_lengths for shard in store.shards])


def document_lengths(store: Store) -> np.ndarray:
    """Return the tokens of every document [D] int64."""
    ends = np.cumsum(sentence_lengths(store), dtype=np.int64)
    counts = np.concatenate([shard.document_sentences for shard in store.shards])
    return np.diff(ends[np.cumsum(counts, dtype=np.int64) - 1], prepend=0)


def _spread(lengths: np.ndarray) -> dict[str, float]:
    quantiles = np.percentile(lengths, (50, 95, 99)).tolist()
    named = dict(zip(("median", "p95", "p99"), map(round, quantiles), strict=True))
    return {"mean": round(float(lengths.mean()), 2), **named, "max": int(lengths.max())}


def _sources(store: Store) -> list[JsonObject]:
    owners = np.concatenate([shard.document_sources for shard in store.shards])
    flags = np.concatenate([shard.document_flags for shard in store.shards])
    names = [source.path for source in store.manifest.sources]
    documents = np.bincount(owners, minlength=len(names))
    held_out = np.bincount(owners, flags & HELD_OUT > 0, minlength=len(names))
    tokens = np.bincount(owners, document_lengths(store), minlength=len(names))
    return [
        {"path": name, "documents": int(d), "held_out_documents": int(h), "tokens": int(t)}
        for name, d, h, t in zip(names, documents, held_out, tokens, strict=True)
    ]


def print_statistics(store: Store, found: JsonObject) -> None:
    """Print statistics for a person."""
    print(f"{store.folder}  (identity {store.identity[:12]}, tokenizer {store.vocab_sha256[:12]})")
    for name in ("documents", "held_out_documents", "sentences", "tokens", "shards"):
        print(f"  {name.replace('_', ' '):24}{found[name]:>16,}")
    print(f"  {'bytes a token':24}{found['bytes_per_token']:>16.3f}")
    print(f"  {'bytes of text a token':24}{found['text_bytes'] / max(found['tokens'], 1):>16.3f}")
    print(f"  {'unknown tokens':24}{100 * found['unknown_rate']:>14.4f} %")
    if found["unknown_char_rate"] is not None:
        print(f"  {'unknown characters':24}{100 * found['unknown_char_rate']:>14.4f} %")
        if warning := advice(found["unknown_characters"], found["characters"]):
            print(f"  {warning}")
    print(f"  {'unigram entropy':24}{found['unigram_entropy_nats']:>11.3f} nats")
    print(f"  {'entries used':24}{found['vocab_used']:>16,}  of {found['vocab_size']:,}")
    for name, count in store.manifest.counts.irregularities.items():
        print(f"  {name.replace('_', ' '):24}{count:>16,}")
    for path, odd in list(store.manifest.irregularities.items())[:SOURCES_SHOWN]:
        print(f"    in {path}: " + ", ".join(f"{name} {count:,}" for name, count in odd.items()))
    print("  settings: " + ", ".join(f"{name} {value}" for name, value in found["settings"].items()))
    print("\nsources                                               documents   held out         tokens")
    for source in found["sources"][:SOURCES_SHOWN]:
        print("  {path:50}{documents:>11,}{held_out_documents:>11,}{tokens:>15,}".format(**source))
    if len(found["sources"]) > SOURCES_SHOWN:
        print(f"  and {len(found['sources']) - SOURCES_SHOWN:,} more")
    print_histogram("sentences by length in tokens", sentence_lengths(store), found["sentence_length"])
    print_histogram("documents by length in tokens", document_lengths(store), found["document_length"])


def print_histogram(title: str, lengths: np.ndarray, spread: dict[str, float]) -> None:
    """Print counts by powers of two, as bars."""
    print(f"\n{title}: " + ", ".join(f"{name} {value:,}" for name, value in spread.items()))
    counts = np.bincount(np.ceil(np.log2(np.maximum(lengths, 1))).astype(np.int64))
    for power, count in enumerate(counts.tolist()):
        if counts[: power + 1].any():
            print(f"  to {2**power:>9,} {count:>11,} {'█' * -(-BAR_CHARS * count // int(counts.max()))}")


def print_samples(store: Store, config: ShowConfig) -> None:
    """Decode the first samples of the first epoch as a run would see them."""
    epoch = Mixture([store], [1.0], seq_len=config.seq_len, objective=config.objective, seed=config.seed).epoch(0)
    print(f"\n{epoch.size:,} samples of {config.seq_len} tokens an epoch ({config.objective})")
    shares = usage(store, config) | span_shares(store, epoch.slices[0].spans, config.objective) | imbalance(epoch)
    for name, share in shares.items():
        print(f"  {name:58}{100 * share:>8.2f} %")
    if coverage := look_over([store], config.objective, config.seq_len, config.seed):
        print(f"  tokens seen: {coverage.in_words()}")
        if coverage.warning:
            print(f"  warning: {coverage.warning}")

    samples = epoch.samples_at(np.arange(min(config.samples, epoch.size)))
    assembled = gather_tokens((store,), samples)
    continues = word_continuations((store,), samples, assembled)
    masked = mask_tokens(
        assembled.ids,
        assembled.is_special,
        assembled.lengths,
        samples.key,
        mask_id=store.special_ids["mask"],
        vocab_size=store.vocab_size,
        masking=Masking(unit=config.unit),
        continues=continues,
    )
    renderer = SampleRenderer(store, in_colour=sys.stdout.isatty())
    print(f"the first {samples.size}, masked by {config.unit}:")
    if renderer.in_colour:
        print(renderer.legend)
    ends = np.concatenate([[0], np.cumsum(assembled.lengths)])
    to_predict = np.diff(np.searchsorted(masked.rows, ends))
    for index, label in enumerate(samples.spans["label"].tolist()):
        rows = range(ends[index], ends[index + 1])
        print(f"\n#{index}  {len(rows)} tokens, {to_predict[index]} to predict  {MEANINGS[config.objective][label]}")
        print(renderer.render(rows, assembled, masked, continues))


def usage(store: Store, config: ShowConfig) -> dict[str, float]:
    """Return the share of the sentences that the first pass takes once: all, or something is wrong."""
    if config.objective == "mlm":
        return {}
    times = usage_counts(
        Sentences.of(store), seq_len=config.seq_len, objective=config.objective, seed=config.seed, pass_number=0
    )
    return {"sentences taken into a sample, each once": float((times == 1).mean())}


def imbalance(epoch: Epoch) -> dict[str, float]:
    """Return by how much the rank with most tokens of a step exceeds the average, as samples are split. Shares."""
    steps = min(epoch.size // STEP_SAMPLES, STEPS)
    if not steps:
        return {}
    over = []
    for step in range(steps):
        samples = epoch.samples_at(np.arange(step * STEP_SAMPLES, (step + 1) * STEP_SAMPLES))
        sums = samples.text_lengths[split_by_length(samples, RANKS)].sum(1)
        over.append(float(sums.max() / sums.mean()) - 1)
    return {
        f"the fullest of {RANKS} ranks above the mean, {STEP_SAMPLES} samples a step": float(np.mean(over)),
        f"at most, in {steps} steps": max(over),
    }


def span_shares(store: Store, spans: np.ndarray, objective: Objective) -> dict[str, float]:
    """Return what a pass over the training sentences uses of them, and what its samples [N] (SAMPLE) are like."""
    sentences = Sentences.of(store)
    # At each token by how much more samples hold it than the one before it; the running sum is how many do.
    change = np.zeros(int(store.token_starts[-1]) + 1, np.int64)
    is_true_b = spans["label"] == 0 if objective == "nsp" else np.ones(len(spans), bool)
    for start, length, rows in (("a_start", "a_length", slice(None)), ("b_start", "b_length", is_true_b)):
        begins, lengths = spans[start][rows], spans[length][rows].astype(np.int64)
        np.add.at(change, begins[lengths > 0], 1)
        np.add.at(change, (begins + lengths)[lengths > 0], -1)
    used_before = np.concatenate([[0], np.cumsum(np.cumsum(change[:-1]) > 0)])  # tokens, of all before each
    ends = sentences.token_starts + np.diff(sentences.ends)
    seen = used_before[ends] - used_before[sentences.token_starts]
    full = spans["a_length"].astype(np.int64) + spans["b_length"]
    shares = {
        "sentences used in their place, in whole or in part": float((seen > 0).mean()),
        "tokens used in their place": float(seen.sum() / sentences.ends[-1]),
        "samples of full length": float((full >= full.max()).mean()),
    }
    return shares | ({} if objective == "mlm" else {"samples with label 1": float((spans["label"] == 1).mean())})


def draw_lengths(store: Store, path: Path) -> None:
    """Write histograms of the lengths of sentences and documents as a picture."""
    import matplotlib  # inside: it takes longer to import than all the rest to run

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for axis, what, lengths in (
        (axes[0], "sentences", sentence_lengths(store)),
        (axes[1], "documents", document_lengths(store)),
    ):
        edges = np.unique(np.round(np.geomspace(1, max(2, int(lengths.max())) + 1, 60)))
        counts, _ = np.histogram(lengths, edges)
        # By the width of a bin: those of short lengths hold one or two whole numbers, which would look like a comb.
        axis.stairs(counts / np.log2(edges[1:] / edges[:-1]), edges, fill=True, color="#3b6ea5")
        axis.axvline(float(np.median(lengths)), color="#c04040", label=f"median {int(np.median(lengths)):,}")
        axis.set(xscale="log", xlabel="tokens", ylabel=f"{what} a doubling of length", title=f"{len(lengths):,} {what}")
        axis.legend()
    figure.suptitle(f"{store.folder.name}: lengths in tokens")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    say(f"{path}: histograms of lengths")


if __name__ == "__main__":
    run(main, ShowConfig, __doc__)
