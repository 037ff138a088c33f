"""What WikiText-2 comes to under each way of cutting: the counts that the course quotes."""

import os

import numpy as np
import pytest

from lmcourse.data.text import SPLITS, corpus_available, load_corpus
from lmcourse.data.tokens import SubwordTokenizer, Tokenizer, gpt2_available, tokenize_corpus

pytestmark = pytest.mark.skipif(
    not os.environ.get('LMCOURSE_DATA'),
    reason='LMCOURSE_DATA does not name a folder with WikiText-2 and the GPT-2 tokenizer',
)
needs_words = pytest.mark.skipif(not corpus_available('wikitext-2'), reason='wikitext-2 is not on this machine')
needs_raw = pytest.mark.skipif(not corpus_available('wikitext-2-raw'), reason='wikitext-2-raw is not on this machine')
needs_gpt2 = pytest.mark.skipif(not gpt2_available(), reason="GPT-2's tokenizer is not on this machine")

WORD = (2_088_628, 217_646, 245_569)
RAW_BYTES, NOTE_BYTES = (10_914_845, 1_144_248, 1_287_656), (10_843_541, 1_136_862, 1_278_983)
NO_BYTES = (None, None, None)  # <unk> in the text hides what was written


@pytest.fixture(scope='module')
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp('cache')


def of(data, fact):
    return tuple(getattr(getattr(data, split), fact) for split in SPLITS)


@needs_words
def test_word(kept):
    data = tokenize_corpus('wikitext-2', 'word', cache=kept)
    assert (
        data.vocab_size == 33_278
        and of(data, 'num_tokens') == of(data, 'num_words') == WORD
        and of(data, 'num_bytes') == NO_BYTES
    )
    assert data.train.num_unk == 54_625
    assert [int((ids != data.tokenizer.bos_id).sum()) for ids in of(data, 'ids')][:2] == [2_051_910, 213_886]
    assert data.tokenizer.eos == '<eos>' and data.tokenizer.vocabulary[:3] == ['<unk>', '<eos>', 'the']
    assert int(max(ids.max() for ids in of(data, 'ids'))) == 33_277 and data.train.ids.dtype == np.uint16
    assert (
        tokenize_corpus('wikitext-2', 'word', 1, kept).vocab_size == 33_278
    )  # v1 was cut at three before it was published


@needs_words
def test_word_agrees_with_the_library(kept):
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers

    data = tokenize_corpus('wikitext-2', 'word', cache=kept)
    backend = Backend(models.WordLevel(data.tokenizer.id_of, unk_token='<unk>'))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    rows = list(load_corpus('wikitext-2')['test'])
    assert [i for e in backend.encode_batch(rows) for i in (*e.ids, 1)] == data.test.ids.tolist()


@needs_words
def test_whitespace(kept):
    "An undeclared `<unk>` is three tokens; a declared one is one."
    data = tokenize_corpus('wikitext-2', 'whitespace', cache=kept)
    assert (
        of(data, 'num_tokens')[:2] == (2_182_371, 239_607)
        and of(data, 'num_unk') == (0, 0, 0)
        and data.vocab_size == 33_156
    )
    assert of(data, 'num_bytes') == NO_BYTES and of(data, 'num_words')[1] == 213_886, (
        'row ends are not predicted, so they are not counted'
    )
    id_of = data.tokenizer.id_of
    assert [int((data.train.ids == id_of[piece]).sum()) for piece in ('unk', '<eos>', '<unk>')] == [54_625, 0, 0]
    declared = Tokenizer.from_dict(data.tokenizer.to_dict())
    declared.backend.add_special_tokens(['<unk>'])
    assert len(declared.encode_rows(load_corpus('wikitext-2')['validation'])) == 216_171


@needs_words
def test_a_size_that_the_largest_id_does_not_fit_into():
    "The library's trainer, told of an `<unk>` that the text has too, numbers it twice: one id more than it says."
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, trainers

    backend = Backend(models.WordLevel(unk_token='<unk>'))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(vocab_size=50_000, special_tokens=['<unk>', '<eos>'], show_progress=False)
    backend.train_from_iterator(load_corpus('wikitext-2')['train'], trainer)
    assert (
        backend.get_vocab_size() == 33_278 and SubwordTokenizer('trap', backend, '<eos>', '<unk>').vocab_size == 33_279
    )


@needs_raw
@needs_gpt2
def test_gpt2(kept):
    data = tokenize_corpus('wikitext-2-raw', 'gpt2', cache=kept)
    assert (
        of(data, 'num_tokens') == (2_391_884, 247_289, 283_287)
        and of(data, 'num_bytes') == RAW_BYTES
        and of(data, 'num_words') == WORD
    )
    assert (data.vocab_size, data.tokenizer.bos_id, data.tokenizer.eos, data.tokenizer.unk_id) == (
        50_257,
        50_256,
        None,
        None,
    )
    assert data.tokenizer.encode('Every effort moves you') == [6109, 3626, 6100, 345]
    corpus = load_corpus('wikitext-2-raw')
    assert data.tokenizer.decode(data.validation.ids) == ''.join(corpus['validation'])
    assert of(data, 'fingerprint') == tuple(corpus.fingerprint(split) for split in SPLITS)


@needs_raw
@needs_gpt2
def test_gpt2_as_the_note_did_it(kept):
    data, corpus = tokenize_corpus('wikitext-2-raw', 'gpt2-note', cache=kept), load_corpus('wikitext-2-raw')
    assert of(data, 'num_tokens') == (2_347_038, 242_643, 277_853) and of(data, 'num_bytes') == NOTE_BYTES
    assert of(data, 'num_words')[1] == 213_886
    assert data.tokenizer.decode(data.test.ids) == ''.join(row.strip() for row in corpus['test'])
    assert data.test.fingerprint != corpus.fingerprint('test')


@needs_raw
def test_raw(kept):
    "Cut at three, raw text gives the vocabulary that v1 was published with."
    data = tokenize_corpus('wikitext-2-raw', 'word', cache=kept)
    assert (data.vocab_size, of(data, 'num_tokens'), data.train.num_unk, data.test.num_bytes) == (
        33_278,
        WORD,
        54_625,
        None,
    )


@needs_raw
def test_own_bpe(kept):
    data, corpus = tokenize_corpus('wikitext-2-raw', 'bpe:8000', cache=kept), load_corpus('wikitext-2-raw')
    assert data.vocab_size == 8000 and of(data, 'num_unk') == (0, 0, 0)
    assert data.tokenizer.decode(data.test.ids) == ''.join(corpus['test'])


@needs_raw
def test_the_third_notes_bpe(kept):
    "Its 50,000 pieces, learnt again: the note's counts to the token. No bytes, for the spaces are lost."
    data = tokenize_corpus('wikitext-2-raw', 'bpe-note:50000', cache=kept)
    assert data.vocab_size == 50_000
    assert of(data, 'num_tokens') == (2_141_993, 231_667, 264_374)
    assert of(data, 'num_bytes') == NO_BYTES
    assert of(data, 'num_unk') == (0, 158, 58)
    assert data.validation.num_words == 213_886
