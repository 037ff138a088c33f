"Facts about WikiText-2, read from the real thing where it is at hand."

import pytest

from lmcourse.data.text import SPLITS, corpus_available, load_corpus, ngram_overlap


def real(name):
    "A mark for tests that need the corpus itself."
    return pytest.mark.skipif(
        not corpus_available(name),
        reason=f'{name} is not on this machine: let LMCOURSE_DATA name a folder that holds wikitext/',
    )


@pytest.fixture(
    scope='module', params=[pytest.param(name, marks=real(name)) for name in ('wikitext-2', 'wikitext-2-raw')]
)
def wiki(request):
    return load_corpus(request.param)


def test_rows(wiki):
    assert [len(wiki[s]) for s in SPLITS] == [36_718, 3_760, 4_358]


def test_words(wiki):
    assert [wiki.words(s) for s in SPLITS] == [2_088_628, 217_646, 245_569]


def test_bytes(wiki):
    assert [wiki.bytes(s) for s in SPLITS[1:]] == {
        'wikitext-2': [1_119_083, 1_253_515],
        'wikitext-2-raw': [1_144_248, 1_287_656],
    }[wiki.name]


def test_types(wiki):
    vocab_size = {w for row in wiki['train'] for w in row.split()}
    if wiki.name == 'wikitext-2':
        assert len(vocab_size) + 1 == 33_278 and sum(row.split().count('<unk>') for row in wiki['train']) == 54_625
    else:
        assert '<unk>' not in vocab_size and len(vocab_size) > 70_000


def test_rows_are_as_the_hub_has_them(wiki):
    assert wiki['validation'][:3] == ['', ' = Homarus gammarus = \n', ''] and wiki['test'][0] == ''
    assert all(row == '' or row.endswith('\n') for s in SPLITS[1:] for row in wiki[s])


def test_fingerprints(wiki):
    assert (
        wiki.fingerprint('validation')
        == {'wikitext-2': '2609637038c70c7e', 'wikitext-2-raw': '33402e5dbfbb7fc9'}[wiki.name]
    )
    assert (
        wiki.fingerprint('test') == {'wikitext-2': 'b508e2f5a00e02ec', 'wikitext-2-raw': 'dd81fa4a7c1af199'}[wiki.name]
    )


def test_is_read_lazily(wiki):
    assert not isinstance(wiki['train'], list)


@real('wikitext-2')
def test_leaks_little():
    wiki = load_corpus('wikitext-2')
    assert ngram_overlap(wiki['validation'], wiki['train']) == pytest.approx(0.0057, abs=0.0002)


@real('wikitext-103-raw')
def test_the_large_one_scores_on_the_same_text():
    large, small = load_corpus('wikitext-103-raw'), load_corpus('wikitext-2-raw')
    assert [large.fingerprint(s) for s in SPLITS[1:]] == [small.fingerprint(s) for s in SPLITS[1:]]
