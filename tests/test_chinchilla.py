"""Note 004's settings on a large text: the beginnings of its documents, the recipe on them, and counts beside it."""

import json
from importlib.resources import files

import pytest

from lmcourse.data.text import CorpusError, load_corpus
from lmcourse.experiments.chinchilla import LARGE_TEXT, count_large_text, document_beginnings, large_text_recipe
from lmcourse.training.recipes import get_recipe, override


def library(folder):
    "A folder corpus of two books in each split, each with a title, a blank row and five rows of four words."
    for k, split in enumerate(('train', 'valid', 'test')):
        rows = ['a preface to all books\n']
        for book in 'AB':
            rows += [f' = Book {book}{k} = \n', '\n'] + [f'row {n} of {book}{k}\n' for n in range(5)]
        (folder / f'{split}.txt').write_text(''.join(rows))
    return folder


def test_a_document_is_taken_up_to_the_words_asked_for(tmp_path):
    "Title, blank row and rows until the words are used up; what stands before the first title belongs to no book."
    (tmp_path / 'all').mkdir()
    small = load_corpus(document_beginnings(tmp_path / 'small', library(tmp_path / 'all'), words=12))
    book = lambda name: [f' = Book {name} = \n', '\n', f'row 0 of {name}\n', f'row 1 of {name}\n']
    assert list(small['train']) == book('A0') + book('B0')
    assert list(small['test']) == book('A2') + book('B2')


def test_a_text_without_titles_has_no_documents(tmp_path):
    "The sentence says which split, and what a title looks like."
    for split in ('train', 'valid', 'test'):
        (tmp_path / f'{split}.txt').write_text('no title here\n' * 30)
    with pytest.raises(CorpusError, match='no row of train is a title between equals signs, as in `= Title =`'):
        document_beginnings(tmp_path / 'small', tmp_path)


def test_headings_within_a_document_are_no_titles(tmp_path):
    "WikiText's sections have two equals signs: `= = Section = =`."
    (tmp_path / 'all').mkdir()
    library(tmp_path / 'all')
    (tmp_path / 'all' / 'train.txt').write_text(' = One = \n' + ' word word \n' + ' = = Part = = \n' + 'word\n' * 9)
    small = load_corpus(document_beginnings(tmp_path / 'small', tmp_path / 'all', words=9))
    assert list(small['train']) == [' = One = \n', ' word word \n', ' = = Part = = \n']


def test_networks_and_counts_have_the_same_text(tmp_path):
    "One tokenizer and one validation text for both; the whole text has more to count."
    (tmp_path / 'all').mkdir()
    folder = document_beginnings(tmp_path / 'small', library(tmp_path / 'all'), words=12)
    rows = count_large_text(folder, tmp_path / 'all', orders=(1, 2))
    assert [(r['counted'], r['order']) for r in rows] == [
        (text, k) for text in ('the beginnings', 'the whole text') for k in (1, 2)
    ]
    assert len({r['validation']['fingerprint'] for r in rows}) == 1
    assert rows[0]['num_tokens'] < rows[2]['num_tokens']
    r = large_text_recipe(folder)
    assert (r.data.corpus, r.data.tokenizer, r.train.epochs) == (folder, 'bpe:4096', 1)


@pytest.mark.parametrize('n, name', [(3, 'all four, as experiment 3'), (4, 'as experiment 4'), (5, 'as experiment 5')])
def test_the_large_text_has_the_notes_settings(tmp_path, n, name):
    "Width, heads, blocks, dropout and rate of each experiment are those of its recipe."
    ours, note = override(large_text_recipe(tmp_path), LARGE_TEXT[name]), get_recipe(f'chinchilla-{n}')
    same = lambda r: (r.model.d_model, r.model.num_heads, r.model.d_ff, r.model.num_layers, r.model.dropout, r.optim.lr)
    assert same(ours) == same(note)
    assert ours.optim.weight_decay == note.optim.weight_decay


def test_the_record_of_the_large_text():
    "Every setting three times, at equal tokens, as many as were counted."
    rows, counted = (
        json.loads((files('lmcourse') / 'records' / f'{name}.json').read_text(encoding='utf-8'))
        for name in ('large_text', 'large_text_ngrams')
    )
    assert {(r['setting'], r['seed']) for r in rows} == {(s, n) for s in LARGE_TEXT for n in range(3)}
    assert all(r['changes'] == LARGE_TEXT[r['setting']] for r in rows)
    assert {r['tokens_seen'] for r in rows} == {c['num_tokens'] for c in counted if c['counted'] == 'the beginnings'}
    assert {r['validation']['fingerprint'] for r in rows} == {c['validation']['fingerprint'] for c in counted}
