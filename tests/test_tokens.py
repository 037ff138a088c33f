"""Tokenizers at their edges: names that are none, ids outside, odd text, other processes, no GPT-2, many rows."""

import json
import os
import pickle
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest

from lmcourse.data import cache
from lmcourse.data.text import SPLITS, Corpus
from lmcourse.data.tokens import (
    SubwordTokenizer,
    TokenError,
    Tokenizer,
    WordTokenizer,
    build_vocab,
    gpt2_available,
    load_tokenizer,
    tokenize_corpus,
    train_bpe,
    train_bpe_note,
    train_whitespace,
)
from lmcourse.errors import LMCourseError
from lmcourse.measure.perplexity import NotComparable, compare

ROWS = [
    'the lobster moults\n',
    '',
    'a <unk> lobster , the\tlobster  and the crab\n',
    'naïve “crab” 戦場\n',
    '   \n',
    'no newline',
] * 3
CORPUS = Corpus('rows', dict.fromkeys(SPLITS, ROWS))
MADE = {
    'word': lambda: WordTokenizer(build_vocab(ROWS, 1)),
    'whitespace': lambda: train_whitespace(ROWS, 1),
    'bpe:300': lambda: train_bpe(ROWS, 300),
    'bpe-note:60': lambda: train_bpe_note(ROWS, 60),
}
each = pytest.mark.parametrize('tokenizer', [make() for make in MADE.values()], ids=MADE)


@each
def test_comes_back_from_json(tokenizer):
    again = Tokenizer.from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    facts = lambda t: (t.name, t.vocab_size, t.bos_id, t.eos, t.unk_id, t.row_ends, t.dtype, t.to_dict())
    assert facts(again) == facts(tokenizer) and (again.encode_rows(ROWS) == tokenizer.encode_rows(ROWS)).all()
    assert facts(pickle.loads(pickle.dumps(tokenizer))) == facts(tokenizer)


@each
def test_ids_and_pieces_agree(tokenizer):
    ids_N = tokenizer.encode_rows(ROWS)
    assert (
        ids_N.dtype == tokenizer.dtype
        and ids_N.max() < tokenizer.vocab_size
        and tokenizer.bos_id < tokenizer.vocab_size
    )
    assert len(tokenizer.convert_ids_to_tokens(ids_N)) == len(ids_N)
    assert (
        tokenizer.convert_ids_to_tokens([]) == []
        and tokenizer.decode([]) == ''
        and tokenizer.encode('') == []
        and len(tokenizer.encode_rows([])) == 0
    )


@each
@pytest.mark.parametrize('id', [-1, 10**6])
def test_an_id_outside_the_vocabulary(tokenizer, id):
    for back in (tokenizer.decode, tokenizer.convert_ids_to_tokens):
        with pytest.raises(
            TokenError, match=f'{id} is no id of the {tokenizer.name} tokenizer, whose ids run from 0 to'
        ):
            back([0, id])


def test_words():
    t = MADE['word']()
    assert len(t.encode_rows(ROWS)) == CORPUS.words('train')
    assert t.convert_ids_to_tokens(t.encode('the unheard-of crab <unk> <eos>')) == [
        'the',
        '<unk>',
        'crab',
        '<unk>',
        '<eos>',
    ]
    assert t.decode(t.encode_rows(['a crab\n', '', ' \n', 'the lobster\n'])) == 'a crab\n\n\nthe lobster\n'
    assert t.vocabulary[:4] == ['<unk>', '<eos>', 'lobster', 'the'] and build_vocab(reversed(ROWS), 1) == t.vocabulary


def test_min_count():
    assert len(build_vocab(ROWS, 3)) == len(build_vocab(ROWS, 1)) > len(build_vocab(ROWS, 4)) and build_vocab(
        ROWS, 99
    ) == ['<unk>', '<eos>']
    cut = lambda name, n: tokenize_corpus(CORPUS, name, n, '/dev/null/none')
    assert cut('word', 4).train.num_unk > cut('word', 3).train.num_unk == 3  # three are written in the text itself
    assert cut('whitespace', 4).train.num_unk > cut('whitespace', 3).train.num_unk == 0


def test_bytes_have_no_outside():
    t = MADE['bpe:300']()
    for text in ('\x00\x1f\x7f', 'ÿ \n\t', '🦞', 'e\u0301', '<|endoftext|>', ' ' * 50):
        assert t.decode(t.encode(text)) == text
    assert t.decode(t.encode_rows(ROWS)) == ''.join(ROWS)
    assert t.convert_ids_to_tokens([t.bos_id]) == ['<|endoftext|>'] and '\\x' in ''.join(
        t.convert_ids_to_tokens(t.encode('戦')[:1] + t.encode('🦞'))
    )


def test_the_third_notes_pieces_have_no_spaces_and_no_row_ends():
    t = MADE['bpe-note:60']()
    assert t.convert_ids_to_tokens(range(4)) == ['<PAD>', '<UNK>', '<BOS>', '<EOS>']
    assert (t.bos_id, t.unk_id, t.eos) == (2, 1, None)
    joined = ' '.join(row for row in ROWS if row.strip())
    assert t.encode(joined) == t.encode_rows(ROWS).tolist()
    assert t.encode('the crab,') == t.encode('the  crab ,')
    assert not t.keeps_text and not t.row_ends


def test_a_letter_that_the_third_notes_pieces_lack_is_unknown(tmp_path):
    other = Corpus('other', {'train': ROWS, 'validation': ['a ž crab\n'], 'test': ROWS})
    data = tokenize_corpus(other, 'bpe-note:60', cache=tmp_path)
    assert (data.validation.num_unk, data.train.num_unk) == (1, 0)


def test_the_third_notes_tokens_have_words_and_no_bytes(tmp_path):
    plain = Corpus('plain', dict.fromkeys(SPLITS, ['the crab\n', '', 'a crab , a lobster\n']))
    data = tokenize_corpus(plain, 'bpe-note:60', cache=tmp_path)
    assert (data.train.num_words, data.train.num_bytes) == (7, None)
    assert data.train.fingerprint != plain.fingerprint('train')


def test_a_text_too_short_for_its_merges_has_fewer_types():
    t = train_bpe(['ab ab'], 5000)
    assert 257 < t.vocab_size < 262 and t.name == 'bpe:5000'


@pytest.mark.parametrize(
    'name, sentence',
    [
        ('words', "'words' is no tokenizer; there are word, whitespace, gpt2, gpt2-note, bpe:N"),
        ('', 'is no tokenizer'),
        (None, "'None' is no tokenizer"),
        ('word:3', 'is no tokenizer'),
        ('bpe', 'a number of pieces from 257'),
        ('bpe:', 'a number of pieces'),
        ('bpe:256', 'a number of pieces'),
        ('bpe:-300', 'a number of pieces'),
        ('bpe:1e4', 'a number of pieces'),
        ('bpe:٣٠٠', 'a number of pieces'),
        ('bpe-note', 'a number of pieces from 5 on'),
        ('bpe-note:4', 'four special tokens and a letter'),
        ('bpe-notes:400', 'is no tokenizer'),
    ],
)
def test_names_that_are_none(name, sentence, tmp_path):
    with pytest.raises(TokenError) as e:
        load_tokenizer(name, CORPUS, cache=tmp_path)
    assert sentence in str(e.value) and isinstance(e.value, LMCourseError) and not list(tmp_path.iterdir())


@pytest.mark.parametrize('n', [0, -1, 2.5, '3'])
def test_counts_that_are_none(n, tmp_path):
    with pytest.raises(TokenError, match='min_count is a whole number of at least 1'):
        load_tokenizer('word', CORPUS, n, tmp_path)


@pytest.mark.parametrize('name', ['whitespace', 'gpt2-note', 'bpe-note:60'])
def test_a_split_without_tokens(name, tmp_path):
    if name == 'gpt2-note' and not gpt2_available():
        pytest.skip("GPT-2's tokenizer is not on this machine")
    blank = Corpus('blank', {'train': ROWS, 'validation': ['', ' \n'], 'test': ROWS})
    with pytest.raises(TokenError, match='the validation split of blank has no tokens'):
        tokenize_corpus(blank, name, cache=tmp_path)


@pytest.mark.parametrize(
    'env, reason', [({}, 'gpt2/tokenizer.json is not there'), ({'LMCOURSE_DATA': 'here'}, 'is not there')]
)
def test_without_gpt2(env, reason, tmp_path):
    "One sentence with the remedies, at once where the hub must not be asked."
    (tmp_path / 'here').mkdir()
    env = (
        {k: v for k, v in os.environ.items() if k != 'LMCOURSE_DATA'}
        | dict(HF_HUB_OFFLINE='1', HF_HOME=str(tmp_path), HF_HUB_CACHE=str(tmp_path))
        | env
    )
    code = 'from lmcourse.data.tokens import *; print(gpt2_available()); load_tokenizer("gpt2")'
    r = subprocess.run([sys.executable, '-c', code], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    last = r.stderr.strip().splitlines()[-1]
    assert (
        r.stdout == 'False\n'
        and 'TokenError' in last
        and reason in last
        and 'hf download' in last
        and 'or go online' in last
    )


def test_a_damaged_gpt2_file(tmp_path, monkeypatch):
    (tmp_path / 'gpt2').mkdir()
    (tmp_path / 'gpt2' / 'tokenizer.json').write_text('{"version": "1.0", "trunc')
    monkeypatch.setenv('LMCOURSE_DATA', str(tmp_path))
    with pytest.raises(TokenError, match="is not GPT-2's tokenizer .*; fetch it again"):
        load_tokenizer('gpt2')


@pytest.fixture
def pieces_as_gpt2(tmp_path, monkeypatch):
    "A small byte-level vocabulary where GPT-2's is looked for, old enough to be trusted, and a cache of its own."
    path = tmp_path / 'gpt2' / 'tokenizer.json'
    path.parent.mkdir()
    path.write_text(train_bpe(ROWS, 300).backend.to_str())
    monkeypatch.setenv('LMCOURSE_DATA', str(tmp_path))
    monkeypatch.setenv('LMCOURSE_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr('lmcourse.data.cache.SETTLED', -3600.0)
    return path


def test_cached_ids_need_no_open_tokenizer(pieces_as_gpt2):
    "The second time, GPT-2's file stays closed until a text is encoded; ids and facts are those of the first time."
    first, again = (tokenize_corpus(CORPUS, 'gpt2') for _ in range(2))
    assert 'backend' in vars(first.tokenizer)
    assert not {'backend', 'id_of'} & set(vars(again.tokenizer))
    assert again.train.ids.tolist() == first.train.ids.tolist()
    for fact in ('vocab_size', 'bos_id', 'unk_id', 'dtype', 'name', 'row_ends', 'keeps_text'):
        assert getattr(again.tokenizer, fact) == getattr(first.tokenizer, fact)
    assert again.tokenizer.identity() == first.tokenizer.identity()
    assert again.tokenizer.encode(ROWS[0]) == first.tokenizer.encode(ROWS[0])
    assert again.tokenizer.to_dict() == first.tokenizer.to_dict()


def test_a_later_tokenizer_is_another_one(pieces_as_gpt2):
    "A file that was replaced is noticed, by who loads it and by who has not opened it yet."
    load_tokenizer('gpt2')
    closed = load_tokenizer('gpt2')
    pieces_as_gpt2.write_text(train_bpe(ROWS, 290).backend.to_str())
    assert load_tokenizer('gpt2').vocab_size < closed.vocab_size
    with pytest.raises(TokenError, match='has been changed since'):
        closed.encode('a')


def test_the_same_pieces_share_a_cache(tmp_path):
    "A tokenizer revived from a run's file finds the ids of the one that it was stored from; another name does not."
    made = train_bpe(ROWS, 300)
    assert Tokenizer.from_dict(made.to_dict()).identity() == made.identity()
    assert SubwordTokenizer('bpe:299', made.backend, made.first).identity() != made.identity()


def test_other_processes_make_the_same_vocabulary(tmp_path):
    code = (
        'from lmcourse.data.tokens import *; from lmcourse.data.text import load_corpus; rows = load_corpus("markov")["train"];'
        ' import hashlib, json\nfor t in (WordTokenizer(build_vocab(rows)), train_whitespace(rows), train_bpe(rows,'
        ' 400), train_bpe_note(rows, 400)): print(hashlib.sha256(json.dumps(t.to_dict(), sort_keys=True).encode()).hexdigest())'
    )
    found = {
        subprocess.run(
            [sys.executable, '-c', code],
            env=dict(os.environ, PYTHONHASHSEED=s),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for s in '12'
    }
    assert len(found) == 1


class Repeated(Sequence):
    "Many rows that exist only while they are looked at."

    def __init__(self, n):
        self.rows = range(n)

    def __len__(self):
        return len(self.rows)

    def __iter__(self):
        return ('the lobster moults again\n' for _ in self.rows)

    def __getitem__(self, i):
        return ['the lobster moults again\n'] * len(self.rows[i])


@pytest.mark.parametrize('name', ['word', 'bpe:300'])
def test_a_long_text_is_cut_piece_by_piece(name, tmp_path, monkeypatch):
    "Two hundred thousand rows, of which no more than some ten thousand stand in memory."
    monkeypatch.setattr(cache, 'IN_MEMORY', 0)
    corpus = Corpus('repeated', {'train': Repeated(200_000), 'validation': ROWS, 'test': ROWS})
    tokenizer = MADE[name]()
    tracemalloc.start()
    data = tokenize_corpus(corpus, tokenizer, cache=tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert data.train.num_tokens > 990_000 and isinstance(data.train.ids, np.memmap) and peak < 10e6
    assert data.train.ids[-5:].tolist() == tokenizer.encode_rows(corpus['train'][-1:])[-5:].tolist()


def test_a_tokenizer_made_before_goes_on_other_text(tmp_path):
    other = Corpus('other', dict.fromkeys(SPLITS, ['a whale and a crab\n']))
    data = tokenize_corpus(other, MADE['word'](), cache=tmp_path)
    assert (
        data.vocab_size == MADE['word']().vocab_size
        and data.test.num_unk == 1
        and data.corpus == data.test.corpus == 'other'
    )


def test_measurements_and_what_they_compare_with(tmp_path):
    plain = Corpus('plain', dict.fromkeys(SPLITS, [row.replace('<unk>', 'green') for row in ROWS]))
    cut = lambda name, corpus=plain: tokenize_corpus(corpus, name, 1, tmp_path).validation
    conditions = dict(context_length=None, stride=None, state_carried=True, eval_batch_size=1)
    bpe, parted = (cut(name).measurement(100.0, **conditions) for name in ('bpe:300', 'whitespace'))
    word = cut('word', CORPUS).measurement(100.0, **conditions)
    assert (bpe.num_tokens, bpe.num_words, bpe.num_bytes) == (
        cut('bpe:300').num_tokens,
        plain.words('test'),
        plain.bytes('test'),
    )
    assert (word.eos, word.num_unk, word.split, bpe.eos) == (
        '<eos>',
        3,
        'validation',
        None,
    ) and bpe.nats == pytest.approx(100)
    assert compare(bpe, cut('bpe:400').measurement(90.0, **conditions), 'bits_per_byte').ratio == pytest.approx(
        100 / 90
    )
    with pytest.raises(NotComparable, match='<unk>'):
        compare(word, bpe, 'bits_per_byte')
    with pytest.raises(NotComparable, match='fingerprint'):
        compare(parted, bpe, 'bits_per_byte')  # it does not tell where rows end
