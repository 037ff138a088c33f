"""The cache of cut texts: damage is noticed and mended, two writers do not disturb each other, and no cache is no
reason to stop."""

import errno
import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from lmcourse.data import cache, hub, text, tokens
from lmcourse.data.batches import StatefulBatches
from lmcourse.data.text import SPLITS, Corpus, load_corpus
from lmcourse.data.tokens import load_tokenizer, tokenize_corpus
from lmcourse.errors import LMCourseError
from lmcourse.files import digest

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


# what is remembered of files that did not change


def shelve(folder, **changed):
    "WikiText-2 as a folder has it, made of rows of our own, in files whose size follows from the lengths of the rows."
    pa, pq = pytest.importorskip('pyarrow'), pytest.importorskip('pyarrow.parquet')
    (folder / 'wikitext' / 'wikitext-2-v1').mkdir(parents=True, exist_ok=True)
    for split, rows in (CORPUS.splits | changed).items():
        path = folder / 'wikitext' / 'wikitext-2-v1' / f'{split}-00000-of-00001.parquet'
        plain = dict(compression='none', use_dictionary=False, write_statistics=False)
        pq.write_table(pa.table(dict(text=rows)), path, **plain)
    return folder


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    "The files, a cache of their own, and notes of files that are a moment old."
    monkeypatch.setenv('LMCOURSE_DATA', str(shelve(tmp_path / 'data')))
    monkeypatch.setenv('LMCOURSE_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(cache, 'SETTLED', 0)
    return tmp_path


def opened(train=ROWS, tokenizer='word'):
    "The corpus as it is opened now; what is known of it is what is known of these rows in memory."
    corpus, same = load_corpus('wikitext-2'), Corpus('wikitext-2', CORPUS.splits | dict(train=train))
    assert [len(corpus[s]) for s in SPLITS] == [len(same[s]) for s in SPLITS]
    assert [corpus.fingerprint(s) for s in SPLITS] == [same.fingerprint(s) for s in SPLITS]
    data = tokenize_corpus(corpus, tokenizer, 1)
    alone = tokens._in_memory(same, load_tokenizer(tokenizer, same, 1))
    for s in SPLITS:
        assert (getattr(data, s).ids == getattr(alone, s).ids).all()
        assert getattr(data, s).fingerprint == getattr(alone, s).fingerprint
    return data


def notes(shelf):
    return sorted((shelf / 'cache' / 'texts').glob('files-*.json'))


def unread(monkeypatch):
    "From now on no file of the corpus may be opened."
    monkeypatch.setattr(hub, '_read_text', lambda files: pytest.fail(f'{files} were read'))


@both
def test_unchanged_files_are_not_opened(name, shelf, monkeypatch):
    "Tokens, fingerprints and the folder of the cache are those of the first time."
    first = opened(tokenizer=name)
    made = files(shelf / 'cache')
    unread(monkeypatch)
    again = opened(tokenizer=name)
    x_BT, y_BT = next(iter(StatefulBatches(again.train.ids, 4, 5, again.tokenizer.bos_id)))
    assert (y_BT[0].numpy() == first.train.ids[:5]).all() and (x_BT[0, 1:] == y_BT[0, :-1]).all()
    assert files(shelf / 'cache') == made and len(notes(shelf)) == 3


def test_the_key_of_the_cache_is_that_of_the_text(shelf):
    "Rows in files and the same rows in memory share one folder of tokens."
    opened()
    tokenize_corpus(CORPUS, 'word', 1)
    assert len(list((shelf / 'cache' / 'tokens').iterdir())) == 1


OTHER = [row.replace('lobster', 'leopard') for row in ROWS]  # as long, so that the file has the same size
TRAIN = 'data/wikitext/wikitext-2-v1/train-00000-of-00001.parquet'


def times_put_back(shelf):
    "Another text of the same size in the same file, with the old time of its last change."
    before = (shelf / TRAIN).stat()
    shelve(shelf / 'data', train=OTHER)
    os.utime(shelf / TRAIN, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = (shelf / TRAIN).stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)


def moved_there(shelf):
    shelve(shelf / 'other', train=OTHER)
    os.replace(shelf / 'other' / TRAIN.removeprefix('data/'), shelf / TRAIN)


def link_to_another(shelf):
    shelve(shelf / 'other', train=OTHER)
    (shelf / 'data').rename(shelf / 'old')
    (shelf / 'data').symlink_to(shelf / 'other')


CHANGES = {
    'same size': lambda shelf: shelve(shelf / 'data', train=OTHER),
    'same size and time': times_put_back,
    'another file moved there': moved_there,
    'a link to another folder': link_to_another,
}


@pytest.mark.parametrize('change', CHANGES.values(), ids=CHANGES)
def test_a_changed_file_is_read_again(change, shelf):
    opened()
    change(shelf)
    opened(OTHER)
    opened(OTHER)
    shelve(shelf / 'data', train=ROWS[:-7])
    opened(ROWS[:-7])


def test_a_file_that_was_just_written_leaves_no_note(shelf, monkeypatch):
    "It could be written again within one tick of the file system's clock."
    monkeypatch.setattr(cache, 'SETTLED', 2.0)
    opened()
    assert not notes(shelf)
    later = time.time() + 3
    monkeypatch.setattr(hub.time, 'time', lambda: later)
    opened()
    assert len(notes(shelf)) == 3


def test_a_file_that_changes_while_it_is_read_leaves_no_note(shelf, monkeypatch):
    corpus, read = load_corpus('wikitext-2'), hub.remember
    monkeypatch.setattr(hub, 'remember', lambda *args: (shelve(shelf / 'data', train=OTHER), read(*args)))
    assert corpus.fingerprint('train') == CORPUS.fingerprint('train')
    assert not notes(shelf)
    monkeypatch.setattr(hub, 'remember', read)
    opened(OTHER)


def test_rows_wanted_after_their_file_was_changed(shelf):
    "They would not be the rows that the fingerprint belongs to: one sentence says so."
    opened()
    corpus = load_corpus('wikitext-2')
    shelve(shelf / 'data', train=OTHER)
    with pytest.raises(
        LMCourseError, match='wikitext-2-v1 has been changed since the corpus was opened; open it again'
    ):
        corpus['train'][0]


NOTES = {
    'empty': lambda data: b'',
    'cut short': lambda data: data[:-9],
    'one letter changed': lambda data: data.replace(b'"rows": 3', b'"rows": 4').replace(b'"rows": 5', b'"rows": 6'),
    'another fingerprint': lambda data: re.sub(rb'"fingerprint": "\w{4}', b'"fingerprint": "0000', data),
    'of another kind': lambda data: b'[]',
    'of another kind, checked': lambda data: json.dumps(dict(check=digest([1]), body=[1])).encode(),
    'without facts': lambda data: checked(data, lambda body: body.pop('facts')),
    'without a fingerprint': lambda data: checked(data, lambda body: body['facts'].pop('fingerprint')),
    'of another file': lambda data: checked(data, lambda body: body['identity'][0].__setitem__(1, 7)),
    'not text': lambda data: b'\xff\xfe\x00',
}


def checked(data, change):
    "A note that was changed by somebody who made its check agree."
    body = json.loads(data)['body']
    change(body)
    return json.dumps(dict(check=digest(body), body=body)).encode()


@pytest.mark.parametrize('damage', NOTES.values(), ids=NOTES)
def test_a_damaged_note_is_ignored_and_made_again(damage, shelf, monkeypatch):
    opened()
    before = {note: note.read_bytes() for note in notes(shelf)}
    for note, data in before.items():
        note.write_bytes(damage(data))
        assert note.read_bytes() != data
    opened()
    assert {note: note.read_bytes() for note in notes(shelf)} == before
    unread(monkeypatch)
    opened()


def test_a_folder_in_the_place_of_a_note(shelf):
    opened()
    for note in notes(shelf):
        note.unlink()
        note.mkdir()
    opened()


@pytest.mark.parametrize('place', ['file/cache', '/proc/lmcourse'])
def test_files_are_opened_where_nothing_can_be_kept(place, shelf, monkeypatch, capsys):
    (shelf / 'file').write_text('in the way')
    monkeypatch.setenv('LMCOURSE_CACHE', str(shelf / place))
    opened()
    opened()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all('they stay in memory' in line for line in said)


def test_what_was_kept_serves_where_nothing_can_be_written(shelf, monkeypatch):
    opened()
    monkeypatch.setattr('lmcourse.files.os.replace', lambda *args: pytest.fail('something was written'))
    monkeypatch.setattr(cache, 'FileLock', lambda path: pytest.fail('a lock was asked for'))
    unread(monkeypatch)
    corpus = load_corpus('wikitext-2')
    assert right(tokenize_corpus(corpus, 'word', 1))


OPEN = '''from lmcourse.data import cache; from lmcourse.data.text import *; from lmcourse.data.tokens import *
cache.SETTLED = 0
for _ in range(3):
    corpus = load_corpus('wikitext-2')
    data = tokenize_corpus(corpus, 'word', 1)
    print(*(corpus.fingerprint(s) for s in SPLITS), *(getattr(data, s).ids.astype(int).sum() for s in SPLITS))'''


def test_files_are_opened_by_several_processes_at_once(shelf):
    running = [
        subprocess.Popen([sys.executable, '-c', OPEN], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    ended = [p.communicate(timeout=300) for p in running]
    assert all(p.returncode == 0 and not err for p, (_, err) in zip(running, ended)), ended
    assert len({line for out, _ in ended for line in out.splitlines()}) == 1
    assert not [f for f in files(shelf / 'cache') if f.startswith('.')] and len(notes(shelf)) == 3
    opened()


def test_known_files_need_no_pyarrow(shelf, monkeypatch):
    opened()
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    corpus = load_corpus('wikitext-2')
    assert len(tokenize_corpus(corpus, 'word', 1).train.ids) == len(ROWS) * 9
    with pytest.raises(LMCourseError, match='wikitext-2-v1 holds parquet files, and reading them needs `pip install'):
        corpus['train'][0]


def a_folder(path, sizes=(3000, 200, 200), end='\n'):
    "Three files of text: words of several bytes, blank lines, signs that other programs take for the end of a line."
    path.mkdir()
    for name, n in zip(('train', 'valid', 'test'), sizes):
        lines = [f'caf\u00e9 {k % 7} of {k * k % 997}\x0b and \u2028 {name}' * (k % 5 > 0) for k in range(n)]
        (path / f'{name}.txt').write_bytes(('\ufeff' + end.join(lines)).encode())
    return path


@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'], ids=ascii)
@pytest.mark.parametrize('block', [1, 2, 100, 2**20])
def test_lines_on_the_disk_are_those_in_memory(end, block, tmp_path, monkeypatch):
    "Every line, every range, and the fingerprint, wherever a block ends."
    monkeypatch.setattr(cache, 'BLOCK', block)
    file = a_folder(tmp_path / 'text', (120, 1, 1), end) / 'train.txt'
    plain = text.read_lines(file)
    lines = cache.TextLines(file, text._cut_lines)
    assert list(lines) == plain
    assert len(lines) == len(plain)
    assert [lines[i] for i in range(-len(plain), len(plain))] == plain * 2
    for some in (slice(None), slice(3, 40), slice(-5, None), slice(50, 10, -3), slice(9, 9), slice(0, 10**6, 7)):
        assert lines[some] == plain[some]
    with pytest.raises(IndexError):
        lines[len(plain)]
    assert lines.fingerprint(text._fingerprint) == text._fingerprint(plain)


@pytest.mark.parametrize('name', ['word', 'whitespace', 'bpe:300', 'bpe-note:300'])
def test_a_folder_has_the_same_ids_from_the_disk(name, tmp_path, monkeypatch):
    "Vocabulary, ids, counts, fingerprints; and the fingerprint of the train split is what it always was."
    folder = a_folder(tmp_path / 'text')
    kept = tokenize_corpus(folder, name, cache=tmp_path / 'memory')
    assert isinstance(text.load_corpus(folder)['train'], list)
    monkeypatch.setattr(text, 'IN_LINES', 0)
    monkeypatch.setattr(cache, 'BLOCK', 1000)
    assert isinstance(text.load_corpus(folder)['train'], cache.TextLines)
    streamed = tokenize_corpus(folder, name, cache=tmp_path / 'disk')
    assert streamed.tokenizer.to_dict() == kept.tokenizer.to_dict()
    for split in text.SPLITS:
        ours, theirs = getattr(streamed, split), getattr(kept, split)
        assert ours.ids.dtype == theirs.ids.dtype and np.array_equal(ours.ids, theirs.ids)
        for fact in ('num_bytes', 'num_words', 'num_unk', 'fingerprint'):
            assert getattr(ours, fact) == getattr(theirs, fact)
    names = [[p.name for p in (tmp_path / where / 'tokens').iterdir()] for where in ('memory', 'disk')]
    assert names[0] == names[1]
    assert text.load_corpus(folder).fingerprint('train') == '10733ad4e307a08a'


@pytest.mark.parametrize('damage', [b'\xff\xfea\0', b'a\0b\n', b'sch\xf6n\n', b' \n\n', b''])
def test_a_large_file_that_is_no_text_is_refused_as_a_small_one(damage, tmp_path, monkeypatch):
    folder = a_folder(tmp_path / 'text')
    (folder / 'valid.txt').write_bytes(damage)
    said = []
    for size in (2**23, -1):
        monkeypatch.setattr(text, 'IN_LINES', size)
        with pytest.raises(text.CorpusError) as e:
            text.load_corpus(folder)
        said.append(str(e.value))
    assert said[0] == said[1]


def test_lines_wanted_after_their_file_was_changed(tmp_path):
    file = a_folder(tmp_path / 'text') / 'train.txt'
    lines = cache.TextLines(file, text._cut_lines)
    file.write_text('something else')
    with pytest.raises(LMCourseError, match='has been changed since the corpus was opened'):
        lines[0]
    file.unlink()
    with pytest.raises(LMCourseError, match='open it again'):
        list(lines)


PEAK = (
    'import sys\n'
    'from lmcourse.data.tokens import tokenize_corpus\n'
    'tokenize_corpus(*sys.argv[1:3], cache=sys.argv[3])\n'
    "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
)


@pytest.mark.skipif(sys.platform != 'linux', reason='memory is read from /proc')
def test_four_times_the_text_takes_no_more_memory(tmp_path):
    "48 MB against 12 MB, each in a process of its own: the peaks differ by less than a quarter of the added text."
    peaks = []
    for size in (12, 48):
        folder = a_folder(tmp_path / f'text{size}')
        line = ' '.join(chr(97 + k) * 60 for k in range(4)) + '\n'
        with (folder / 'train.txt').open('w') as file:
            for _ in range(size):
                file.write(line * (10**6 // len(line)))
        words = [sys.executable, '-c', PEAK, str(folder), 'word', str(tmp_path / f'cache{size}')]
        r = subprocess.run(words, capture_output=True, text=True, check=True)
        peaks.append(1024 * int(r.stdout))
    assert peaks[1] - peaks[0] < 36e6 / 4
