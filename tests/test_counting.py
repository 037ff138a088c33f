"""Counting in ranges of contexts: the same tables to the last bit, in memory that does not grow with the text, with no
file left behind."""

import errno
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from lmcourse.errors import LMCourseError
from lmcourse.models import counting, ngram
from lmcourse.models.counting import CountingError, empty, limits, pieces, rank_pairs, unique_pairs
from lmcourse.models.ngram import KneserNey

draw = np.random.default_rng(0)
TEXTS = {  # ids, V
    'one token': ([3], 7),
    'two tokens': ([0, 1], 7),
    'one type': ([3] * 5000, 7),
    'a vocabulary of one': ([0] * 50, 1),
    'one context for half of the text': (np.where(draw.random(9000) < 0.5, 2, draw.integers(0, 40, 9000)), 40),
    'all alike': (draw.integers(0, 9, 9000), 9),
    'rare types': ((draw.pareto(0.7, 9000) * 10).astype(int) % 60_000, 60_000),
    'keys beyond 32 bits': (draw.integers(0, 99_999, 3000), 100_000),
}
LIMITS = [dict(), dict(threads=2), dict(max_bytes=2**12), dict(max_bytes=2**15, threads=3)]
texts = pytest.mark.parametrize('ids, vocab_size', TEXTS.values(), ids=TEXTS)


@texts
@pytest.mark.parametrize('within', LIMITS, ids=str)
def test_ranges_give_what_one_sort_gives(ids, vocab_size, within):
    "Keys, counts, the row of each token and the first token of each key."
    word_N = np.array([0, *ids])
    with limits(**within):
        found = rank_pairs(word_N, word_N, vocab_size, vocab_size)
    for ours, plain in zip(found, unique_pairs(word_N, word_N, vocab_size, vocab_size), strict=True):
        assert np.array_equal(ours, plain)


@texts
@pytest.mark.parametrize('within', LIMITS[1:], ids=str)
def test_a_model_is_the_same_to_the_last_bit(ids, vocab_size, within, monkeypatch):
    "Tables, discounts, nats and guesses, beside those of the plain way."
    with limits(**within):
        model = KneserNey(4).fit(ids, vocab_size, 0)
    monkeypatch.setattr(ngram, 'rank_pairs', unique_pairs)
    plain = KneserNey(4).fit(ids, vocab_size, 0)
    for ours, theirs in zip(model.levels, plain.levels, strict=True):
        for name in ('keys', 'counts', 'total_C', 'spare_C', 'discount_4'):
            a, b = getattr(ours, name), getattr(theirs, name)
            assert a.dtype == b.dtype and np.array_equal(a, b), name
    assert model.parameters == plain.parameters
    assert np.array_equal(model.nats(ids[:500]), plain.nats(ids[:500]))
    assert np.array_equal(model.guesses(ids[:500]), plain.guesses(ids[:500]))


def test_where_the_place_finds_no_room_the_order_is_the_same():
    "Keys of up to 63 bits leave no room for a place in 64."
    word_N = draw.integers(0, 2**40, 2000)
    row_N = draw.integers(0, 2**22, 2000).astype(np.uint32)
    for ours, plain in zip(rank_pairs(row_N, word_N, 2**22, 2**40), unique_pairs(row_N, word_N, 2**22, 2**40)):
        assert np.array_equal(ours, plain)


def test_more_than_can_be_numbered_is_refused():
    with pytest.raises(CountingError, match='too many: count a part'):
        rank_pairs(np.zeros(3, int), np.zeros(3, int), 2**40, 2**30)


def test_what_is_held_in_memory_does_not_grow_with_the_text():
    "Four times the text, and the same peak of what numpy allocates; the rows, the keys and the counts are in files."

    def peak(n):
        with limits(max_bytes=2**23, threads=1):
            word_N = empty(n, np.uint32)
            word_N[:] = np.random.default_rng(1).integers(0, 3000, n, np.uint32)
            tracemalloc.start()
            rank_pairs(word_N, word_N, 3000, 3000)
            _, highest = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        return highest

    shorter, longer = peak(1_000_000), peak(4_000_000)
    assert longer < 1.1 * shorter
    assert longer < 2.5 * 2**23


def test_the_pieces_of_a_table_end_between_contexts(monkeypatch):
    "A sum of floats over the n-grams of a context is made in one go, so that it is the same to the last bit."
    ids = draw.integers(0, 300, 20_000)
    table = KneserNey(2).fit(ids, 300, 0).levels[1]
    cut = lambda: list(table.spans())
    assert len(cut()) == 1
    monkeypatch.setattr(ngram, 'SPAN', 100)
    assert len(cut()) > 50
    for (c, g), (c_next, g_next) in zip(cut(), cut()[1:]):
        assert (c.stop, g.stop) == (c_next.start, g_next.start)
    for c, g in cut():
        assert ((table.context_G[g] >= c.start) & (table.context_G[g] < c.stop)).all()
    assert (cut()[0][0].start, cut()[0][1].start, cut()[-1][0].stop, cut()[-1][1].stop) == (0, 0, 300, len(table))


def favourites_at_once(levels):
    "The plain way: every level as a whole; among equals the token of the shorter context, else the smallest id."
    drop_G, p_G = np.zeros(levels[0].vocab_size, np.int64), np.array([1 / levels[0].vocab_size])
    drop_C, favourite_C, p_C = np.zeros(1, np.int64), np.zeros(1, np.int64), p_G
    for k, level in enumerate(levels):
        context_G, word_G = level.context_G, level.word_G
        if k:
            drop_C, drop_G = drop_G, levels[k - 1].find(drop_G[context_G], word_G)
        p_G = level.mix(p_G[drop_G], np.arange(len(level)), context_G)
        favourite_C, p_C = favourite_C[drop_C], level.spare_C * p_C[drop_C]
        for context, word, p in zip(context_G, word_G, p_G):
            if p > p_C[context]:
                favourite_C[context], p_C[context] = word, p
        yield favourite_C


@texts
@pytest.mark.parametrize('span', [1, 7, 500, 2**21])
def test_guesses_by_spans_are_those_of_whole_tables(ids, vocab_size, span, monkeypatch):
    "To the last id, for every context of every level, wherever a table is cut, in memory and in files."
    model = KneserNey(4).fit(ids[:2000], vocab_size, 0)
    expected = list(favourites_at_once(model.levels))
    monkeypatch.setattr(ngram, 'SPAN', span)
    for within in (dict(), dict(max_bytes=2**12)):
        with limits(**within):
            found = list(ngram._argmax_tables(model.levels))
        for ours, plain in zip(found, expected, strict=True):
            assert ours.dtype == np.uint32
            assert np.array_equal(ours, plain)


def test_what_guesses_hold_in_memory_does_not_grow_with_the_text(monkeypatch):
    "Four times the n-grams, and nearly the same peak of what numpy allocates: the tables are in files."

    def peak(n):
        with limits(max_bytes=2**18, threads=1):
            model = KneserNey(3).fit(np.random.default_rng(1).integers(0, 1000, n), 1000, 0)
            tracemalloc.start()
            model.guesses([1, 2, 3])
            _, highest = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        return highest

    monkeypatch.setattr(ngram, 'SPAN', 2**14)
    assert peak(600_000) < 1.2 * peak(150_000)


@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere a file may have a name while it is used')
def test_no_file_is_to_be_seen_while_a_model_lives_or_later(tmp_path):
    with limits(max_bytes=2**12, folder=tmp_path):
        model = KneserNey(3).fit(draw.integers(0, 50, 5000), 50, 0)
    assert not list(tmp_path.iterdir())
    assert model.next_probs([1, 2]).sum() == pytest.approx(1)


def test_a_full_disk_is_one_sentence(monkeypatch, tmp_path):
    "Wherever it fills up: when a file is made, and when it is written to."
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Full:
        def write(self, data):
            raise full

    for file in (Full, lambda: (_ for _ in ()).throw(full)):
        monkeypatch.setattr(counting, '_unnamed_file', file)
        with limits(max_bytes=2**12, folder=tmp_path):
            with pytest.raises(CountingError, match='No space left on device.*make room, or name another folder'):
                KneserNey(3).fit(draw.integers(0, 50, 5000), 50, 0)
    assert issubclass(CountingError, LMCourseError)


@pytest.mark.skipif(sys.platform != 'linux', reason='the limit on the size of a file is set as on Linux')
def test_a_disk_that_takes_no_more_ends_a_fit_with_that_sentence():
    "A real refusal of the system: no file may be larger than 100 kB in this process."
    code = (
        'import resource, numpy as np\n'
        'from lmcourse.models.counting import CountingError, limits\n'
        'from lmcourse.models.ngram import KneserNey\n'
        'resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n'
        'try:\n'
        '    with limits(max_bytes=2**16):\n'
        '        KneserNey(3).fit(np.arange(90_000) % 50_000, 50_000, 0)\n'
        'except CountingError as e:\n'
        '    print(e)\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert 'cannot write there (File too large): make room' in done.stdout, done.stderr


def test_limits_end_with_their_block_and_senseless_ones_are_refused():
    before = dict(counting._limits)
    with pytest.raises(ZeroDivisionError), limits(max_bytes=2**13, threads=1):
        assert counting._limits['max_bytes'] == 2**13
        1 / 0
    assert counting._limits == before
    for wrong in (dict(max_bytes=10), dict(threads=0)):
        with pytest.raises(CountingError, match='at least'), limits(**wrong):
            pass


def test_pieces_cover_an_array_once():
    for n, size in ((0, 3), (1, 3), (3, 3), (10, 3)):
        assert [i for part in pieces(n, size) for i in range(n)[part]] == list(range(n))
