"Bits per byte stand only where every byte is paid for, and what a denominator counts is what was predicted."

import json
from importlib.resources import files

import pytest

from lmcourse.data.text import SPLITS, Corpus
from lmcourse.data.tokens import TokenError, Tokenizer, load_tokenizer, tokenize_corpus, train_bpe

PLAIN = ['the green lobster moults\n', '\n', 'and the crab looks on\n'] * 8
CONDITIONS = dict(context_length=None, stride=None, state_carried=True, eval_batch_size=1)


def measured(rows, name, tmp_path, **kwargs):
    "A split of those rows as that tokenizer cuts them, at 100 nats."
    data = tokenize_corpus(Corpus('rows', dict.fromkeys(SPLITS, rows), **kwargs), name, 1, tmp_path)
    return data.validation.measurement(100.0, **CONDITIONS)


def test_every_byte_is_paid_for(tmp_path):
    m = measured(PLAIN, 'word', tmp_path)
    assert m.num_bytes == sum(len(row.encode()) for row in PLAIN)
    assert m.bits_per_byte is not None
    assert m.num_words == sum(len(row.split()) + 1 for row in PLAIN)


@pytest.mark.parametrize('name', ['word', 'bpe:300', 'whitespace'])
def test_unk_in_the_text_hides_what_was_written(name, tmp_path):
    m = measured(['a <unk> lobster\n', *PLAIN], name, tmp_path)
    assert m.num_bytes is None
    assert m.bits_per_byte is None


def test_unknown_words_hide_what_was_written(tmp_path):
    data = tokenize_corpus(Corpus('rows', dict(train=PLAIN, validation=['a whelk\n'], test=PLAIN)), 'word', 1, tmp_path)
    assert data.validation.num_unk == 2
    assert data.validation.num_bytes is None
    assert data.test.num_bytes is not None


def test_a_tokenizer_that_loses_text_pays_for_no_bytes(tmp_path):
    m = measured(PLAIN, 'whitespace', tmp_path)
    assert m.num_bytes is None
    assert m.num_words == sum(len(row.split()) for row in PLAIN), 'row ends are not predicted, so they are not counted'


def test_made_up_words_have_no_bytes(tmp_path):
    assert measured(PLAIN, 'word', tmp_path, meaningful_bytes=False).bits_per_byte is None


def every_measurement():
    "Every measurement of every record, with where it stands."

    def inside(value, where):
        if isinstance(value, dict):
            if {'perplexity', 'num_tokens', 'tokenizer'} <= value.keys():
                yield where, value
            for k, v in value.items():
                yield from inside(v, f'{where}.{k}')
        if isinstance(value, list):
            for k, v in enumerate(value):
                yield from inside(v, f'{where}[{k}]')

    for folder in ('records', 'pretrained'):
        for p in sorted((files('lmcourse') / folder).rglob('*.json')):
            yield from inside(json.loads(p.read_text(encoding='utf-8')), f'{folder}/{p.parent.name}/{p.name}')


def test_no_record_has_bits_per_byte_that_were_not_paid_for():
    found = list(every_measurement())
    assert len(found) > 500
    for where, m in found:
        free = m['num_unk'] or m['corpus'] in ('markov', 'wikitext-2') or m['tokenizer'] == 'whitespace'
        assert (m['bits_per_byte'] is None) == bool(free), where
        assert (m['num_bytes'] is None) == bool(free), where


def test_records_count_what_the_tokenizer_predicts():
    counts = {}
    for where, m in every_measurement():
        if m['corpus'] != 'stdlib' or not m['fingerprint'].isalnum():
            continue
        key = m['tokenizer'], m['split']
        if key not in counts:
            counts[key] = getattr(tokenize_corpus('stdlib', m['tokenizer']), m['split'])
        split = counts[key]
        if (split.fingerprint, split.num_tokens) != (m['fingerprint'], m['num_tokens']):
            continue  # another Python's text
        assert (m['num_words'], m['num_bytes'], m['num_unk']) == (split.num_words, split.num_bytes, split.num_unk), (
            where
        )


@pytest.mark.parametrize(
    'stored',
    [
        {},
        {'name': 'word'},
        {'name': 'word', 'vocabulary': 3},
        {'name': 'word', 'vocabulary': ['a']},
        [],
        None,
        {'name': '../../x', 'backend': '{}', 'first': 'a', 'unk': None},
        {'name': 'bpe:300', 'backend': 'x', 'first': 'a', 'unk': None},
        {'name': '/etc/passwd', 'vocabulary': ['<unk>', '<eos>']},
        {'name': 'bpe:300', 'backend': None, 'first': 1, 'unk': 2},
    ],
)
def test_a_stored_tokenizer_that_is_none(stored):
    with pytest.raises(TokenError):
        Tokenizer.from_dict(stored)


@pytest.mark.parametrize('name', ['bpe:4294967296', 'bpe:' + '9' * 5000])
def test_a_vocabulary_beyond_all_measure_is_refused(name):
    with pytest.raises(TokenError, match='at most'):
        load_tokenizer(name, 'markov')


def test_a_line_without_blanks_takes_no_longer_than_another():
    "Learning merges takes the square of the longest word's time; the longest is cut."
    line = 'abcdefghijklmnopqrst' * 20_000
    tokenizer = train_bpe([line + '\n'] * 2, 300)
    ids = tokenizer.encode(line)
    assert tokenizer.decode(ids) == line
    assert max(len(piece) for piece in tokenizer.convert_ids_to_tokens(set(ids))) <= 256


def test_half_a_character_is_a_sentence():
    with pytest.raises(TokenError, match='half of a character'):
        train_bpe(PLAIN, 300).encode('caf\udce9')
