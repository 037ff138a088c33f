"""The cache of cut texts: damage is noticed and mended, two writers do not disturb each other, and no cache is no
reason to stop."""

import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from lmcourse.data import cache, tokens
from lmcourse.data.text import SPLITS, Corpus
from lmcourse.data.tokens import load_tokenizer, tokenize_corpus

ROWS = [f'row {i} of {i % 7} lobsters and {i % 3} crabs\n' for i in range(300)]
CORPUS = Corpus('rows', {'train': ROWS, 'validation': ROWS[:50], 'test': ROWS[50:100]})
both = pytest.mark.parametrize('name', ['word', 'bpe:300'])


def cut(cache, name='word'):
    return tokenize_corpus(CORPUS, name, 1, cache)


def folder_of(cache):
    return next((cache / 'tokens').iterdir())


def files(cache):
    return sorted(p.name for p in cache.rglob('*') if p.is_file())


def right(data):
    return all(
        (getattr(data, s).ids == data.tokenizer.encode_rows(CORPUS[s])).all() and getattr(data, s).num_unk == 0
        for s in SPLITS
    )


@both
def test_cut_once(name, tmp_path, capsys, monkeypatch):
    "The second time nothing is cut and no vocabulary is made, and nothing is said either time."
    first = cut(tmp_path, name)
    for work in ('build_vocab', 'train_bpe', 'write_ids'):
        monkeypatch.setattr(tokens, work, None)
    again = cut(tmp_path, name)
    assert right(first) and right(again) and not again.train.ids.flags.writeable
    assert [vars(getattr(first, s)).keys() for s in SPLITS] == [vars(getattr(again, s)).keys() for s in SPLITS]
    assert capsys.readouterr() == ('', '') and files(folder_of(tmp_path)) == [
        'facts.json',
        'test.npy',
        'train.npy',
        'validation.npy',
    ]


def test_keyed_by_content(tmp_path):
    "Another text, vocabulary or meaning of bytes is another folder; the same text under another name is the same."
    cut(tmp_path), cut(tmp_path, 'bpe:300')
    tokenize_corpus(CORPUS, 'word', 2, tmp_path)
    tokenize_corpus(Corpus('renamed', CORPUS.splits), 'word', 1, tmp_path)
    assert len(list((tmp_path / 'tokens').iterdir())) == 3
    tokenize_corpus(Corpus('rows', CORPUS.splits, meaningful_bytes=False), 'word', 1, tmp_path)
    tokenize_corpus(Corpus('rows', CORPUS.splits | {'test': ROWS[50:99]}), 'word', 1, tmp_path)
    assert len(list((tmp_path / 'tokens').iterdir())) == 5


def overwrite(path, data):
    "Another file under the same name, as damage to a file that nobody has mapped."
    path.unlink()
    path.write_bytes(data)


def other_type(path):
    ids = np.load(path).astype(np.int64)
    path.unlink()
    np.save(path, ids)


DAMAGE = {
    'array cut short': lambda d: overwrite(d / 'train.npy', (d / 'train.npy').read_bytes()[:-7]),
    'array cut in its header': lambda d: overwrite(d / 'test.npy', (d / 'test.npy').read_bytes()[:40]),
    'array empty': lambda d: overwrite(d / 'test.npy', b''),
    'array of another type': lambda d: other_type(d / 'validation.npy'),
    'array with one byte changed': lambda d: overwrite(
        d / 'train.npy', (b := (d / 'train.npy').read_bytes())[:-1] + bytes([b[-1] ^ 1])
    ),
    'array gone': lambda d: (d / 'train.npy').unlink(),
    'facts cut short': lambda d: overwrite(d / 'facts.json', (d / 'facts.json').read_bytes()[:-20]),
    'facts empty': lambda d: overwrite(d / 'facts.json', b''),
    'facts changed': lambda d: overwrite(
        d / 'facts.json', (d / 'facts.json').read_bytes().replace(b'"num_unk": 0', b'"num_unk": 5')
    ),
    'facts of another kind': lambda d: overwrite(d / 'facts.json', b'[1, 2]'),
    'facts not text': lambda d: overwrite(d / 'facts.json', b'\xff\xfe\x00'),
    'facts gone': lambda d: (d / 'facts.json').unlink(),
}


@pytest.mark.parametrize('damage', DAMAGE.values(), ids=DAMAGE)
def test_damage_is_noticed_and_mended(damage, tmp_path, capsys):
    cut(tmp_path)
    kept = files(tmp_path)
    damage(folder_of(tmp_path))
    assert right(cut(tmp_path)) and files(tmp_path) == kept
    said = capsys.readouterr().err.splitlines()
    assert (
        len(said) == 1
        and 'the cached tokens of rows as word are unfinished or damaged' in said[0]
        and 'tokenizing the text again' in said[0]
    )
    assert right(cut(tmp_path)) and capsys.readouterr().err == ''


@both
@pytest.mark.parametrize('size', [0, 30, -5])
def test_a_damaged_tokenizer_is_made_again(name, size, tmp_path, capsys):
    before = load_tokenizer(name, CORPUS, 1, tmp_path).to_dict()
    (path,) = (tmp_path / 'tokenizers').iterdir()
    path.write_bytes(path.read_bytes()[:size])
    assert load_tokenizer(name, CORPUS, 1, tmp_path).to_dict() == before
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and f'the cached {name} tokenizer of rows is damaged' in said[0]
    assert load_tokenizer(name, CORPUS, 1, tmp_path).to_dict() == before and capsys.readouterr().err == ''


def in_memory(cache, capsys, reason):
    data = cut(cache)
    said = capsys.readouterr().err.splitlines()
    assert right(data) and not isinstance(data.train.ids, np.memmap) and not data.train.ids.flags.writeable
    assert (
        len(said) == 1
        and 'the tokens of rows as word cannot be stored' in said[0]
        and reason in said[0]
        and 'they stay in memory' in said[0]
    )


def test_a_cache_that_is_a_file(tmp_path, capsys):
    (tmp_path / 'file').write_text('in the way')
    in_memory(tmp_path / 'file' / 'cache', capsys, 'Not a directory')


def test_a_full_disk(tmp_path, capsys, monkeypatch):
    "Nothing half-written is left behind."
    cut(tmp_path / 'warm')

    def full(file, *_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np.lib.format, 'write_array_header_1_0', full)
    in_memory(tmp_path / 'cold', capsys, 'No space left on device')
    assert not [f for f in files(tmp_path / 'cold') if f.endswith('.npy') or f.startswith('.')]


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may write anywhere')
def test_a_read_only_folder(tmp_path, capsys):
    tmp_path.chmod(0o555)
    try:
        in_memory(tmp_path / 'cache', capsys, 'Permission denied')
    finally:
        tmp_path.chmod(0o755)


def test_a_read_only_folder_seen_by_anybody(capsys):
    if not os.path.isdir('/proc/self'):
        pytest.skip('no /proc, the folder in which even root may not write')
    in_memory('/proc/lmcourse', capsys, 'No such file or directory')


CUT = '''import sys; from lmcourse.data.text import Corpus; from lmcourse.data.tokens import tokenize_corpus
rows = [f'row {i} of {i % 7} lobsters and {i % 3} crabs\\n' for i in range(30_000)]
corpus = Corpus('many', dict(train=rows, validation=rows[:50], test=rows[:50]))
for _ in range(4): print(int(tokenize_corpus(corpus, 'word', 1, sys.argv[1]).train.ids.astype(int).sum()))'''


def test_distributed_processes_at_once(tmp_path):
    "All come to the same tokens, whoever was first; what is left behind is whole."
    running = [
        subprocess.Popen(
            [sys.executable, '-c', CUT, tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    ended = [p.communicate(timeout=300) for p in running]
    assert all(p.returncode == 0 for p in running), ended
    assert len({line for out, _ in ended for line in out.splitlines()}) == 1
    assert not [f for f in files(tmp_path) if f.startswith('.')]
    r = subprocess.run([sys.executable, '-c', CUT, tmp_path], capture_output=True, text=True, check=True)
    assert (
        r.stderr == ''
        and json.loads((folder_of(tmp_path) / 'facts.json').read_text())['body']['train']['num_tokens'] == 30_000 * 9
    )


@pytest.mark.parametrize('limit', [0, 2**26])
def test_many_ids_are_mapped_and_few_are_beyond_reach(limit, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, 'IN_MEMORY', limit)
    cut(tmp_path)
    data = cut(tmp_path)
    assert isinstance(data.train.ids, np.memmap) == (limit == 0)
    if limit:  # what is in memory stays right, whatever happens to the file
        path = folder_of(tmp_path) / 'train.npy'
        path.write_bytes(path.read_bytes()[:200])
        assert right(data)
