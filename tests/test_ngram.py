"""Counting models at their edges: no text, one type, orders longer than the text, types never seen, ids that do not
belong."""

import math

import numpy as np
import pytest

from lmcourse.data.text import Corpus
from lmcourse.data.tokens import tokenize_corpus
from lmcourse.errors import LMCourseError
from lmcourse.models.ngram import (
    AdditiveNgram,
    KneserNey,
    NgramError,
    Uniform,
    discounts,
    evaluate_ngram,
    grams_by_length,
)

MODELS = [
    Uniform(),
    AdditiveNgram(1),
    AdditiveNgram(2, 0.01),
    AdditiveNgram(3, 0.0),
    *(KneserNey(order) for order in (1, 2, 3, 5)),
]
TEXTS = {
    'one token': [2],
    'two tokens': [0, 1],
    'one type': [3] * 50,
    'shorter than the order': [1, 2, 3],
    'in turn': [1, 2] * 20,
    'drawn': np.random.default_rng(0).integers(0, 5, 300).tolist(),
}
named = lambda model: f'{type(model).__name__}{model.order}'


@pytest.mark.parametrize('text', TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize('model', MODELS, ids=named)
def test_probabilities_sum_to_one_and_agree_with_the_score(model, text):
    "After every context, seen and unseen, over a vocabulary with types (5, 6) that no text has."
    model.fit(text, vocab_size=7, bos_id=0)
    new = [*text[:20], 6, 5, 1, 6, 0]
    with np.errstate(divide='ignore'):
        for i, nats in enumerate(model.nats(new)):
            p_V = model.next_probs(new[:i])
            assert p_V.shape == (7,) and p_V.min() >= 0 and p_V.sum() == pytest.approx(1, abs=1e-12)
            assert -np.log(p_V[new[i]]) == pytest.approx(nats, rel=1e-12)


@pytest.mark.parametrize('text', TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize('order', [1, 2, 4])
def test_kneser_ney_is_never_infinitely_surprised(order, text):
    model = KneserNey(order).fit(text, vocab_size=9, bos_id=8)
    assert np.isfinite(model.nats([8, 7, 6, 5, *text])).all() and model.next_probs([7, 7]).min() > 0
    assert model.next_probs([7]) == pytest.approx(model.contributions([7]).sum(0))


@pytest.mark.parametrize('text', TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize('order', [1, 2, 3, 5])
def test_a_guess_is_the_likeliest_type(order, text):
    model = KneserNey(order).fit(text, vocab_size=6, bos_id=0)
    new = [5, *text[:40], 5, 5, 1]
    for i, guess in enumerate(model.guesses(new)):
        p_V = model.next_probs(new[:i])
        assert p_V[guess] == pytest.approx(p_V.max(), rel=1e-12)


@pytest.mark.parametrize('model', MODELS, ids=named)
def test_what_cannot_be_counted_or_scored_is_said_in_a_sentence(model):
    with pytest.raises(NgramError, match='nothing to count'):
        model.fit([], vocab_size=3, bos_id=0)
    with pytest.raises(NgramError, match='position 2 is 3, but a vocabulary of 3 entries has ids 0 to 2'):
        model.fit([0, 1, 3], 3, 0)
    with pytest.raises(NgramError, match='position 0 is -1'):
        model.fit([-1], 3, 0)
    with pytest.raises(NgramError, match='bos_id'):
        model.fit([1], 3, 3)
    with pytest.raises(NgramError, match='at least one entry'):
        model.fit([1], 0, 0)
    with pytest.raises(NgramError, match='whole numbers'):
        model.fit([0.5], 3, 0)
    with pytest.raises(NgramError, match='flat'):
        model.fit([[1, 2]], 3, 0)
    model.fit([0, 1, 2], vocab_size=3, bos_id=0)
    with pytest.raises(NgramError, match='empty'):
        model.nats([])
    with pytest.raises(NgramError, match='the text to score: the id at position 1 is 9'):
        model.nats([1, 9])
    with pytest.raises(NgramError, match='bos_id'):
        model.nats([1], bos_id=4)
    with pytest.raises(NgramError, match='the context'):
        model.next_probs([3])


def test_settings_that_make_no_sense_are_refused():
    assert issubclass(NgramError, LMCourseError)
    for wrong in (
        lambda: KneserNey(0),
        lambda: AdditiveNgram(0),
        lambda: AdditiveNgram(1, -1),
        lambda: AdditiveNgram(1, math.nan),
        lambda: AdditiveNgram(1, math.inf),
        lambda: Uniform(0),
    ):
        with pytest.raises(NgramError):
            wrong()
    for model in (KneserNey(), AdditiveNgram(), Uniform()):
        with pytest.raises(NgramError, match='counted nothing yet'):
            model.nats([1])


def test_fitting_again_forgets_the_first_text():
    model = KneserNey(3).fit([1, 2, 3] * 9, vocab_size=4, bos_id=0)
    before = model.guesses([1, 2, 3])
    model.fit([3, 2, 1] * 9, vocab_size=4, bos_id=0)
    fresh = KneserNey(3).fit([3, 2, 1] * 9, vocab_size=4, bos_id=0)
    assert before.tolist() != model.guesses([1, 2, 3]).tolist() == fresh.guesses([1, 2, 3]).tolist()
    assert model.nats([1, 2, 3]).tolist() == fresh.nats([1, 2, 3]).tolist() and model.parameters == fresh.parameters


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_any_integer_type_will_do(dtype):
    text = np.random.default_rng(1).integers(0, 200, 2000)
    expected = KneserNey(3).fit(text, 200, 0).nats(text)
    assert KneserNey(3).fit(text.astype(dtype), 200, 0).nats(text.astype(dtype)) == pytest.approx(expected, rel=1e-12)


def test_keys_beyond_32_bits_are_found():
    "With 100,000 types a pair's key passes 2**32, and a truncated key would find another pair."
    ids = np.array([99_999, 99_998, 99_997] * 3 + [5, 99_999])
    *_, (grams, _, _) = grams_by_length(ids, 100_000, 0, 2)
    assert grams.keys.dtype == np.int64
    assert grams.counts[grams.find(np.array([99_999, 5]), np.array([99_998, 99_999]))].tolist() == [3, 1]
    assert grams.find(np.array([5, -1, 99_999]), np.array([6, 5, 99_999])).tolist() == [-1, -1, -1]
    model = KneserNey(2).fit(ids, 100_000, 0)
    assert model.next_probs([99_999]).argmax() == 99_998 and model.next_probs([99_999]).sum() == pytest.approx(1)


def test_small_keys_stay_small():
    *_, (grams, _, _) = grams_by_length(np.arange(60_000), 60_000, 0, 2)
    assert grams.keys.dtype == grams.counts.dtype == np.uint32 and len(grams) == 60_000


@pytest.mark.parametrize('counts', [[], [1], [5, 6, 7], [1, 2, 3], [1, 1, 2, 2, 3], [1, 2] + [3] * 50 + [4]])
def test_discounts_lie_between_nothing_and_their_count(counts):
    "The estimate, or the fall-back where it is not defined: never more than there is, never nothing."
    d_4 = discounts(np.array(counts, dtype=int))
    assert d_4[0] == 0 and all(0 < d <= c for c, d in enumerate(d_4[1:], 1))


def test_a_text_begins_after_first_ids():
    "Fitted on a text and asked for its beginning, the model knows how it begins, at every order."
    for order in (2, 3, 5):
        model = KneserNey(order).fit([4, 1, 2, 3] * 5, vocab_size=6, bos_id=5)
        assert model.next_probs([]).argmax() == 4 and model.nats([4])[0] == model.nats([4], bos_id=5)[0]
        assert model.nats([4], bos_id=0)[0] > model.nats([4])[0]


def test_samples_are_reproducible_and_follow_the_counts():
    model = KneserNey(2).fit([1, 2, 3] * 200, vocab_size=4, bos_id=3)
    assert model.sample(50, 1).tolist() == model.sample(50, np.random.default_rng(1)).tolist()
    assert model.sample(0).shape == (0,) and model.sample(3, 0, context=[1, 2, 3, 1]).shape == (3,)
    drawn = model.sample(600, 0)
    assert np.mean((drawn[1:] - drawn[:-1]) % 3 == 1) > 0.9
    coin = AdditiveNgram(1, 0.0).fit([0, 1], 2, 0)
    assert coin.sample(50, 1).tolist() != coin.sample(50, 2).tolist()
    assert np.bincount(AdditiveNgram(1, 0.0).fit([0, 0, 0, 1], 2, 0).sample(4000, 0)) == pytest.approx(
        [3000, 1000], abs=120
    )


def test_a_score_has_its_passport(tmp_path):
    rows = ['a b c\n', 'b c a\n'] * 30
    corpus = tokenize_corpus(
        Corpus('alphabet', {s: rows for s in ('train', 'validation', 'test')}), 'word', cache=tmp_path
    )
    model = KneserNey(3).fit(corpus.train.ids, corpus.vocab_size, corpus.tokenizer.bos_id)
    m = evaluate_ngram(model, corpus.test)
    assert (m.num_tokens, m.num_words, m.context_length, m.stride, m.state_carried, m.eval_batch_size, m.split) == (
        240,
        240,
        2,
        None,
        True,
        1,
        'test',
    )
    assert (
        m.perplexity == pytest.approx(np.exp(model.nats(corpus.test.ids).mean()))
        and m.accuracy > 0.6
        and m.perplexity < 2
    )
    assert evaluate_ngram(AdditiveNgram(2, 0.0).fit([1], corpus.vocab_size, 0), corpus.test).perplexity == math.inf
    with pytest.raises(NgramError, match='fit it on that corpus'):
        evaluate_ngram(Uniform(3), corpus.test)
