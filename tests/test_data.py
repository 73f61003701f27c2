"""The stream of samples and masks depends on the step alone (invariant b)."""

import gc
from contextlib import closing
from itertools import islice, pairwise

import numpy as np
import pytest
import torch

from data_prep.samples import length_table
from data_prep.samples.assemble import split_by_length
from data_prep.samples.masking import Masking
from data_prep.samples.mixture import Epoch, Mixture
from data_prep.store import Store
from pretrain import data
from pretrain.data import DrawnSamples, SampleStream, StepData, prefetch, prefetch_steps, train_steps
from pretrain.model import IGNORED, Batch
from pretrain.state import DataPosition
from tests.stores import random_documents, store_of

GLOBAL = 12
BEGIN = DataPosition()


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return store_of(tmp_path_factory.mktemp("store"), random_documents(12), held_out={2, 5})


def mixture(store: Store, **changes) -> Mixture:
    return Mixture(
        [store], [1.0], seq_len=changes.pop("seq_len", 32), objective=changes.pop("objective", "nsp"), seed=4, **changes
    )


def samples_of(batch: Batch) -> list[tuple]:
    """Each sample as it meets the model: ids, types, predicted positions with labels, pair label."""
    rows = batch.head_rows[batch.mlm_index]
    bounds = batch.seqlens.cu_seqlens.tolist()
    found = []
    for number, (start, stop) in enumerate(pairwise(bounds)):
        inside = (rows >= start) & (rows < stop)
        assert batch.positions[start:stop].tolist() == list(range(stop - start))
        assert batch.head_rows[batch.cls_index[number]] == start
        found.append(
            (
                tuple(batch.input_ids[start:stop].tolist()),
                tuple(batch.token_types[start:stop].tolist()),
                tuple((rows[inside] - start).tolist()),
                tuple(batch.mlm_labels[inside].tolist()),
                int(batch.nsp_labels[number]),
            )
        )
    return found


def first_steps(
    store: Store, count: int, world: int, micro: int, rank: int = 0, start: DataPosition = BEGIN
) -> list[StepData]:
    stream = SampleStream(mixture(store), start)
    steps = train_steps(
        stream,
        masking_after=lambda taken: Masking(),
        batch_after=lambda taken: GLOBAL,
        micro_batch=micro,
        rank=rank,
        world=world,
    )
    return list(islice(steps, count))


def step_samples(store: Store, steps: int, world: int, micro: int, start: DataPosition = BEGIN) -> list[list[tuple]]:
    """The samples of each step, over all ranks, sorted."""
    collected: list[list[tuple]] = [[] for _ in range(steps)]
    for rank in range(world):
        for index, step in enumerate(first_steps(store, steps, world, micro, rank, start)):
            batches = list(step.micro_batches)
            assert len(batches) == step.micro_batch_count == GLOBAL // (micro * world)
            collected[index] += [sample for batch in batches for sample in samples_of(batch)]
    return [sorted(samples) for samples in collected]


@pytest.mark.parametrize(("world", "micro"), [(1, 4), (1, 1), (2, 6), (2, 3), (3, 2), (4, 3), (4, 1)])
def test_samples_of_a_step_do_not_depend_on_ranks_and_micro_batches(store, world, micro):
    steps = 12  # more than one epoch
    assert mixture(store).epoch(0).size < steps * GLOBAL
    assert step_samples(store, steps, world, micro) == step_samples(store, steps, 1, GLOBAL)


def test_a_rank_that_looks_up_its_own_samples_only_has_the_same_ones(store, tmp_path, monkeypatch):
    """As of many ranks; each of the two on this node finds a part of the lengths, in blocks that epochs cut."""
    monkeypatch.setenv("ZEROBERT_CACHE", str(tmp_path))
    monkeypatch.setattr(length_table, "BLOCK_SAMPLES", 16)
    plain = [step_samples(store, 12, world, micro) for world, micro in ((2, 6), (1, 4))]
    counts = [step.counts for step in first_steps(store, 12, 2, 6)]
    found: list[tuple[int, int]] = []
    at = Epoch.length_codes_at

    def counted(epoch: Epoch, rows: np.ndarray) -> np.ndarray:
        found.append((epoch.number, int(rows[0])))
        return at(epoch, rows)

    monkeypatch.setattr(Epoch, "length_codes_at", counted)
    monkeypatch.setattr(data, "MANY_RANKS", 1)
    lengths = [step_samples(store, 12, world, micro) for world, micro in ((2, 6), (1, 4))]
    assert lengths == plain
    assert [step.counts for step in first_steps(store, 12, 2, 6)] == counts

    # Two ranks, step by step: what one has found the other reads.
    found.clear()
    streams = [SampleStream(mixture(store), BEGIN, length_table.NodeRanks(rank, 2)) for rank in range(2)]
    for _ in range(6):
        first, second = (stream.draw(24).length_codes for stream in streams)
        assert first.tolist() == second.tolist()
    assert len(found) == len(set(found)) > 6
    assert len(list(tmp_path.glob("lengths-*"))) == 2  # this epoch's and the one before


def test_every_rank_has_as_much_to_do(tmp_path):
    long = store_of(tmp_path, random_documents(400, seed=8, longest=30))
    for seq_len in (64, 512):
        samples = SampleStream(Mixture([long], [1.0], seq_len=seq_len, objective="nsp", seed=0), DataPosition()).take(
            256
        )
        lengths = samples.lengths
        splits = split_by_length(samples, 8)
        assert sorted(splits.ravel()) == list(range(256))
        tokens = np.array([lengths[rows].sum() for rows in splits])
        assert tokens.max() / tokens.mean() < 1.02
        plain = lengths.reshape(8, -1).sum(1)
        assert tokens.max() - tokens.min() < (plain.max() - plain.min()) / 2


@pytest.mark.parametrize(("count", "longest"), [(1 << 16, 250), ((1 << 16) + 8, 250), (64, 1 << 18)])
def test_equal_lengths_keep_their_order_however_they_are_sorted(count, longest):
    codes = np.random.default_rng(0).integers(0, longest, count).astype(np.uint32)
    splits = split_by_length(DrawnSamples((), codes), 8)
    order = sorted(range(count), key=lambda row: -(int(codes[row]) >> 1))
    assert splits[:, 0].tolist() == order[:8]
    assert splits[:, 1].tolist() == order[8:16][::-1]
    assert sorted(splits[:, -1]) == sorted(order[-8:])


def test_any_position_continues_the_stream(store):
    whole = step_samples(store, 9, 1, GLOBAL)
    for index, step in enumerate(first_steps(store, 8, 1, GLOBAL)):
        assert step_samples(store, 1, 2, 3, step.counts.end) == whole[index + 1 : index + 2]


def test_each_sample_is_seen_once_an_epoch(store):
    epoch = mixture(store).epoch(0)
    stream = SampleStream(mixture(store), DataPosition())
    samples = stream.take(epoch.size)
    assert len(set(samples.key.tolist())) == epoch.size
    assert stream.position == DataPosition(0, epoch.size, samples_in_phase=epoch.size)
    assert stream.take(1).key[0] == mixture(store).epoch(1).samples_at(np.array([0])).key[0]
    assert stream.position == DataPosition(1, 1, samples_in_phase=epoch.size + 1)


def test_counts_of_a_step_are_those_of_its_batches(store):
    steps = [first_steps(store, 1, 2, 3, rank)[0] for rank in range(2)]
    batches = [batch for step in steps for batch in step.micro_batches]
    counts = steps[0].counts
    assert counts == steps[1].counts
    assert counts.samples == GLOBAL
    assert counts.masked == sum(len(batch.mlm_labels) for batch in batches)
    assert counts.pairs == sum(int((batch.nsp_labels != IGNORED).sum()) for batch in batches)
    assert counts.tokens == sum(len(batch.input_ids) for batch in batches)
    assert counts.slots == GLOBAL * 32
    assert counts.attended == sum(length**2 for batch in batches for length in batch.seqlens.lengths)


def test_without_pairs_nothing_has_a_pair_label(store):
    stream = SampleStream(mixture(store, objective="mlm"), DataPosition())
    step = next(
        train_steps(
            stream, masking_after=lambda taken: Masking(), batch_after=lambda taken: 4, micro_batch=4, rank=0, world=1
        )
    )
    assert step.counts.pairs == 0
    [batch] = step.micro_batches
    assert (batch.nsp_labels == IGNORED).all()
    assert not batch.token_types.any()


def as_samples(batches) -> list[list[tuple]]:
    return [samples_of(batch) for batch in batches]


def test_what_is_left_of_a_step_is_no_part_of_the_next(store):
    expected = [as_samples(step.micro_batches) for step in first_steps(store, 3, 1, 2)]
    with closing(prefetch_steps(iter(first_steps(store, 3, 1, 2)))) as steps:
        found = [as_samples(islice(next(steps).micro_batches, wanted)) for wanted in (6, 0, 2)]
    assert found == [expected[0], [], expected[2][:2]]


def test_of_a_step_a_few_micro_batches_are_in_memory(store):
    stream = SampleStream(mixture(store), DataPosition())
    steps = train_steps(
        stream, masking_after=lambda taken: Masking(), batch_after=lambda taken: 96, micro_batch=1, rank=0, world=1
    )
    with closing(prefetch_steps(steps, ahead=4)) as steps:
        for step in islice(steps, 2):
            # Four that are ready, one that waits for room, one that is handed over, and the one in use.
            for index, _batch in enumerate(step.micro_batches):
                if index % 24 == 0:
                    assert sum(type(found) is Batch for found in gc.get_objects()) <= 7
            assert index == 95


class TestPrefetch:
    def test_gives_the_same_items(self):
        assert list(islice(prefetch(iter(range(100))), 50)) == list(range(50))

    def test_raises_what_the_source_raises(self):
        def source():
            yield 1
            raise OSError("disk gone")

        items = prefetch(source())
        assert next(items) == 1
        with pytest.raises(OSError, match="disk gone"):
            next(items)

    def test_closing_ends_the_thread(self):
        import threading

        items = prefetch(iter(range(1000)), ahead=1)
        next(items)
        items.close()
        for thread in threading.enumerate():
            if thread.name == "prefetch":
                thread.join(5)
                assert not thread.is_alive()


def test_a_batch_moves_as_a_whole(store):
    [step] = first_steps(store, 1, 1, GLOBAL)
    moved = next(step.micro_batches).to(torch.device("meta"))
    assert {field.device.type for field in moved[:8]} == {"meta"}
    assert moved.seqlens.cu_seqlens.device.type == "meta"
