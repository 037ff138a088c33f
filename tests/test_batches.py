"""Batches at their edges: every token once, whatever the shapes; the same rest after a stop; few tokens, odd ids, files
on disk."""

import itertools
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from lmcourse.data.batches import BatchError, StatefulBatches, WindowBatches
from lmcourse.errors import LMCourseError

SIZES = [1, 2, 26, 35, 97, 1000]


def targets(batches):
    return [int(y) for _, y_BT in batches for y in y_BT.flatten() if y != -100]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, v) and torch.equal(y, w) for (x, y), (v, w) in zip(a, b))


def check(batches, n):
    "Each input is the token before its target; each shape and type is right; `len` and `tokens` say what comes."
    found = list(batches)
    assert len(found) == len(batches) and sum(int((y >= 0).sum()) for _, y in found) == batches.num_tokens
    for x_BT, y_BT in found:
        assert (
            x_BT.shape == y_BT.shape
            and x_BT.dtype == y_BT.dtype == torch.int64
            and x_BT.is_contiguous()
            and y_BT.is_contiguous()
        )
        assert x_BT.min() >= 0 and x_BT.max() <= n and (y_BT >= 0).any()
        real = y_BT != -100
        assert torch.equal(x_BT[real], torch.where(y_BT[real] == 0, n, y_BT[real] - 1))


@pytest.mark.parametrize(
    'n, lanes, length', [c for c in itertools.product(SIZES, (1, 2, 7, 35, 64), (1, 3, 35)) if c[1] <= c[0]]
)
def test_lanes_have_every_token_once(n, lanes, length):
    batches = StatefulBatches(np.arange(n), lanes, length, n)
    check(batches, n)
    assert sorted(targets(batches)) == list(range(n))
    last = None
    for x_BT, y_BT in batches:  # each row goes on where it stopped
        if last is not None:
            assert torch.equal(x_BT[:, 0], last)
        last = y_BT[:, -1]


@pytest.mark.parametrize('n, length, batch', itertools.product(SIZES, (1, 2, 3, 35), (1, 4)))
@pytest.mark.parametrize('shuffle, once', itertools.product((False, True), repeat=2))
def test_windows_cover_every_token(n, length, batch, shuffle, once):
    for stride in {1, max(1, length // 2), length}:
        batches = WindowBatches(np.arange(n), length, batch, n, stride=stride, shuffle=shuffle, score_once=once)
        check(batches, n)
        found = targets(batches)
        assert set(found) == set(range(n)) and (len(found) == n or stride < length and not once)
        if not shuffle and once:
            assert found == list(range(n))


def test_drop_last_leaves_only_full_batches():
    batches = WindowBatches(np.arange(100), 7, 4, 100, drop_last=True)
    check(batches, 100)
    assert [len(x) for x, _ in batches] == [4, 4, 4]


@pytest.mark.parametrize(
    'make',
    [
        lambda: StatefulBatches(np.arange(500), 7, 11, 500),
        lambda: StatefulBatches(
            np.arange(500),
            7,
            11,
            500,
            seq_len_fn=lambda seed, epoch, step: 1 + (seed + epoch * 3 + step * 5) % 9,
            seed=4,
        ),
        lambda: WindowBatches(np.arange(500), 11, 7, 500, seed=3),
        lambda: WindowBatches(np.arange(500), 11, 7, 500, stride=3, drop_last=True),
        lambda: WindowBatches(np.arange(500), 11, 7, 500, shuffle=False),
    ],
    ids=['stateful', 'varying lanes', 'windows', 'overlapping', 'in order'],
)
@pytest.mark.parametrize('epoch', [0, 3])
def test_resumes_anywhere(make, epoch):
    whole = make()
    whole.set_epoch(epoch)
    all_of_it = list(whole)
    for stop in range(len(all_of_it) + 1):
        killed = make()
        killed.set_epoch(epoch)
        for _ in itertools.islice(killed, stop):
            pass
        state = killed.state_dict()
        assert state == {'epoch': epoch, 'position': stop}
        resumed = make()
        resumed.load_state_dict(pickle.loads(pickle.dumps(state)))
        assert resumed.state_dict() == state
        resumed.set_epoch(epoch)  # a loop over passes names the pass that it is in
        assert same(list(resumed), all_of_it[stop:])
        assert same(list(resumed), all_of_it)  # and afterwards a pass is a whole pass again


def test_another_pass_begins_at_its_beginning():
    batches = WindowBatches(np.arange(100), 5, 4, 100)
    batches.load_state_dict({'epoch': 0, 'position': 3})
    batches.set_epoch(1)
    assert len(list(batches)) == len(batches) and batches.state_dict() == {'epoch': 1, 'position': len(batches)}
    assert torch.equal(next(iter(batches))[1], next(iter(batches))[1])


def test_the_order_follows_from_seed_and_pass_alone():
    code = (
        'from lmcourse.data.batches import WindowBatches; import torch; torch.manual_seed({}); w = WindowBatches(range(90), 3, 30, 90,'
        ' seed=5); w.set_epoch(2); print(next(iter(w))[1][:, 0].tolist())'
    )
    first, second = (
        subprocess.run([sys.executable, '-c', code.format(s)], capture_output=True, text=True, check=True).stdout
        for s in (1, 2)
    )
    assert first == second
    orders = {(seed, epoch): [] for seed in (0, 1) for epoch in (0, 1)}
    for seed, epoch in orders:
        w = WindowBatches(range(90), 3, 30, 90, seed=seed)
        w.set_epoch(epoch)
        orders[seed, epoch] = targets(w)
    assert len({tuple(order) for order in orders.values()}) == 4
    assert all(sorted(order) == list(range(90)) for order in orders.values())


def test_an_order_that_must_not_change():
    "Shuffles are part of what a record's seed promises: this one is written down."
    w = WindowBatches(range(20), 2, 10, 20, seed=0)
    assert next(iter(w))[1][:, 0].tolist() == [12, 6, 2, 10, 16, 14, 0, 4, 18, 8]


@pytest.mark.parametrize('kind', ['list', 'uint8', 'uint16', 'int64', 'torch', 'memmap'])
def test_any_whole_numbers_will_do(kind, tmp_path):
    ids = [i % 200 for i in range(1000)]
    if kind == 'memmap':
        np.save(tmp_path / 'ids.npy', np.array(ids, np.uint16))
        stream = np.load(tmp_path / 'ids.npy', mmap_mode='r')
    else:
        stream = ids if kind == 'list' else torch.tensor(ids) if kind == 'torch' else np.array(ids, kind)
    assert targets(StatefulBatches(stream, 4, 30, 0)) == targets(StatefulBatches(np.array(ids), 4, 30, 0))
    assert targets(WindowBatches(stream, 30, 4, 0, shuffle=False)) == ids
    if kind == 'memmap':
        assert np.shares_memory(StatefulBatches(stream, 4, 30, 0).ids_N, stream)


@pytest.mark.parametrize(
    'make, sentence',
    [
        (lambda: StatefulBatches(range(9), 10, 5, 0), '9 tokens are too few for 10 streams'),
        (lambda: StatefulBatches([], 1, 5, 0), '0 tokens are too few for 1 streams'),
        (lambda: WindowBatches([], 5, 1, 0), '0 tokens are too few for a batch of 1 windows of 5, which needs 1'),
        (
            lambda: WindowBatches(range(20), 5, 5, 0, drop_last=True),
            '20 tokens are too few for a batch of 5 windows of 5, which needs 21',
        ),
        (lambda: WindowBatches(range(20), 5, 2, 0, stride=6), 'a stride of 6 leaves out tokens between windows of 5'),
        (lambda: StatefulBatches(range(20), 0, 5, 0), 'batch_size must be a whole number of at least 1, got 0'),
        (lambda: StatefulBatches(range(20), 2, 2.5, 0), 'seq_len must be a whole number of at least 1, got 2.5'),
        (lambda: WindowBatches(range(20), 5, True, 0), 'batch_size must be a whole number'),
        (lambda: WindowBatches(range(20), 5, 2, -1), 'bos_id must be'),
        (lambda: WindowBatches(range(20), 5, 2, 0, seed=-1), 'seed must be'),
        (lambda: WindowBatches(range(20), 5, 2, 0).set_epoch(-1), 'epoch must be'),
        (lambda: StatefulBatches(np.zeros((2, 3), int), 1, 1, 0), 'one axis, this has the shape (2, 3)'),
        (lambda: StatefulBatches([0.5, 1.0], 1, 1, 0), 'whole numbers, these are float64'),
        (
            lambda: len(StatefulBatches(range(20), 2, 5, 0, seq_len_fn=lambda *_: 0)),
            'each of seq_len_fn must be a whole number of at least 1',
        ),
        (
            lambda: StatefulBatches(range(20), 2, 5, 0).load_state_dict({'epoch': 0, 'position': 3}),
            '3 batches into an epoch that has 2',
        ),
    ],
)
def test_bad_requests_are_told_in_a_sentence(make, sentence):
    with pytest.raises(BatchError) as e:
        make()
    assert sentence in str(e.value) and isinstance(e.value, LMCourseError)


def test_just_enough_tokens():
    assert len(WindowBatches(range(21), 5, 5, 0, drop_last=True)) == 1
    assert len(WindowBatches(range(1), 5, 1, 0, drop_last=True)) == 1
    assert targets(StatefulBatches(range(3), 3, 5, 0)) == [0, 1, 2]
