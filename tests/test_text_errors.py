"""Bad input to `load_corpus`: every refusal is a `CorpusError`, one sentence that says what was wrong, where, and what
to do."""

import gzip
import os
import socket
import time
from pathlib import Path

import pytest

from lmcourse.data import hub
from lmcourse.data.text import CORPORA, SPLITS, Corpus, CorpusError, corpus_available, load_corpus
from lmcourse.errors import LMCourseError

LINES = ''.join(f'line number {i}\n' for i in range(40))


def refusal(name, **kw):
    "The sentence with which a corpus is refused."
    with pytest.raises(CorpusError) as e:
        load_corpus(name, **kw)
    said = str(e.value)
    assert isinstance(e.value, LMCourseError) and isinstance(e.value, ValueError)
    assert said and '\n' not in said
    return said


def write(path, data=LINES):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    "No folder, an empty cache, and a network that no test reaches."
    for name in list(os.environ):
        if name.startswith(('HF_', 'HUGGINGFACE_', 'LMCOURSE_DATA')):
            monkeypatch.delenv(name)
    monkeypatch.setenv('HF_HOME', str(tmp_path / 'hf'))
    if hub.importlib.util.find_spec('huggingface_hub'):  # it reads the environment once, when it is imported
        monkeypatch.setattr('huggingface_hub.constants.HF_HOME', str(tmp_path / 'hf'))
        monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path / 'hf' / 'hub'))
        monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', False)
        monkeypatch.setattr('huggingface_hub.constants.ENDPOINT', 'http://127.0.0.1:9')
    for proxy in ('http_proxy', 'https_proxy', 'all_proxy'):
        monkeypatch.delenv(proxy, raising=False)
        monkeypatch.delenv(proxy.upper(), raising=False)
    return monkeypatch


# names and paths


@pytest.mark.parametrize(
    'name, meant',
    [('stdlb', 'stdlib'), ('Markov', 'markov'), ('wikitext2', 'wikitext-2'), ('wikitext-2-rwa', 'wikitext-2-raw')],
)
def test_unknown_name_did_you_mean(name, meant):
    assert f"did you mean '{meant}'?" in refusal(name)


def test_unknown_name_lists_the_corpora():
    said = refusal('shakespeare')
    assert all(name in said for name in CORPORA) and 'path' in said


@pytest.mark.parametrize('name', [None, 3, '', b'stdlib', ['stdlib']])
def test_not_a_name(name):
    assert 'a corpus is a name or a path' in refusal(name)


def test_missing_path(tmp_path):
    write(tmp_path / 'novel.txt')
    assert 'no file or folder' in refusal(tmp_path / 'nothing' / 'here.txt')
    assert f"did you mean '{tmp_path / 'novel.txt'}'" in refusal(tmp_path / 'nvoel.txt')


def test_file_used_as_a_folder(tmp_path):
    assert 'no file or folder' in refusal(write(tmp_path / 'novel.txt') / 'train.txt')


def test_broken_link(tmp_path):
    (tmp_path / 'link.txt').symlink_to(tmp_path / 'gone.txt')
    assert 'no file or folder' in refusal(tmp_path / 'link.txt')


def test_name_too_long(tmp_path):
    assert 'cannot be read: File name too long' in refusal(tmp_path / ('x' * 5000))


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='this system has no named pipes')
def test_neither_file_nor_folder(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    assert 'neither a file nor a folder' in refusal(tmp_path / 'pipe')


# one file


def test_empty_file(tmp_path):
    assert 'is empty: it holds 0 bytes and no word' in refusal(write(tmp_path / 'a.txt', b''))


def test_only_a_mark(tmp_path):
    assert 'is empty: it holds 3 bytes' in refusal(write(tmp_path / 'a.txt', b'\xef\xbb\xbf'))


def test_only_blanks(tmp_path):
    assert 'no word' in refusal(write(tmp_path / 'a.txt', '\n  \n\t\n' * 30))


@pytest.mark.parametrize('lines', [1, 2, 19])
def test_too_short(tmp_path, lines):
    said = refusal(write(tmp_path / 'a.txt', 'a few words\n' * lines))
    assert 'too short to be split' in said and f'{lines} line' in said and 'at least 20' in said and 'a.txt' in said


def test_a_part_of_blanks(tmp_path):
    said = refusal(write(tmp_path / 'a.txt', 'words\n' * 19 + '\n'))
    assert 'its test part (1 of 20) are blank' in said


def test_latin_1(tmp_path):
    data = 'caf\u00e9 number\n'
    path = write(tmp_path / 'old.txt', LINES.encode() + data.encode('latin-1'))
    said = refusal(path)
    assert (
        str(path) in said
        and f'offset {len(LINES) + 3:,}, line 41' in said
        and '0xe9' in said
        and 'iconv -f LATIN1 -t UTF-8 old.txt' in said
    )


def test_latin_1_after_a_mark(tmp_path):
    assert 'offset 5, line 2' in refusal(write(tmp_path / 'old.txt', b'\xef\xbb\xbfa\n\xe9' + LINES.encode()))


@pytest.mark.parametrize('codec', ['utf-16', 'utf-16-le', 'utf-16-be'])
def test_utf_16(tmp_path, codec):
    bom = b'' if codec == 'utf-16' else ('\ufeff').encode(codec)
    said = refusal(write(tmp_path / 'w.txt', bom + LINES.encode(codec)))
    assert 'UTF-16' in said and 'iconv -f UTF-16' in said


def test_binary(tmp_path):
    assert 'is a binary file (a zero byte at offset 4)' in refusal(
        write(tmp_path / 'a.txt', b'\x7fELF\x00' + LINES.encode())
    )


def test_compressed(tmp_path):
    said = refusal(write(tmp_path / 'a.txt.gz', gzip.compress(LINES.encode() * 50)))
    assert 'binary' in said or 'not UTF-8' in said


def test_truncated_in_a_letter(tmp_path):
    assert f'offset {len(LINES)}' in refusal(write(tmp_path / 'a.txt', LINES.encode() + '\u00e9'.encode()[:1]))


def test_no_permission(tmp_path, monkeypatch):
    path = write(tmp_path / 'secret.txt')

    def deny(self):
        raise PermissionError(13, 'Permission denied', str(self))

    monkeypatch.setattr(Path, 'read_bytes', deny)
    said = refusal(path)
    assert str(path) in said and 'Permission denied' in said and 'ls -l' in said


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='the superuser may read everything')
def test_no_permission_for_real(tmp_path):
    (path := write(tmp_path / 'in' / 'secret.txt')).chmod(0)
    assert 'Permission denied' in refusal(path)
    path.parent.chmod(0)
    try:
        assert 'Permission denied' in refusal(path) and 'Permission denied' in refusal(path.parent)
    finally:
        path.parent.chmod(0o700)


# a folder


def test_empty_folder(tmp_path):
    said = refusal(tmp_path)
    assert 'is not a corpus' in said and 'train or validation or test' in said and 'found: nothing' in said


def test_folder_of_other_things(tmp_path):
    for i in range(9):
        write(tmp_path / f'chapter{i}.txt')
    said = refusal(tmp_path)
    assert 'chapter0.txt' in said and 'and 3 more' in said and 'expected: three text files' in said


def test_folder_without_a_test_file(tmp_path):
    for name in ('train.txt', 'valid.txt'):
        write(tmp_path / name)
    assert 'no text file for test (found: train.txt, valid.txt' in refusal(tmp_path)


def test_two_files_claim_train(tmp_path):
    for name in ('train.txt', 'old-train.txt', 'valid.txt', 'test.txt'):
        write(tmp_path / name)
    assert 'old-train.txt and train.txt both claim to be train' in refusal(tmp_path)


def test_valid_and_validation(tmp_path):
    for name in ('train.txt', 'valid.txt', 'validation.txt', 'test.txt'):
        write(tmp_path / name)
    assert 'valid.txt and validation.txt both claim to be validation' in refusal(tmp_path)


def test_bad_file_in_a_folder_is_named(tmp_path):
    for name in ('train.txt', 'valid.txt'):
        write(tmp_path / name)
    assert 'test.txt is empty' in refusal(write(tmp_path / 'test.txt', b'').parent)
    assert 'test.txt is not UTF-8' in refusal(write(tmp_path / 'test.txt', b'ab\xff').parent)


def test_folder_of_parquet(tmp_path):
    for split in SPLITS:
        write(tmp_path / f'{split}-00000-of-00001.parquet', b'PAR1\x00')
    assert 'train-00000-of-00001.parquet' in refusal(tmp_path)


def test_folders_named_like_splits(tmp_path):
    for split in SPLITS:
        write(tmp_path / split / '1.txt')
    assert 'is not a corpus' in refusal(tmp_path)


# good input that looks odd


def test_mark_and_line_ends(tmp_path):
    a = load_corpus(write(tmp_path / 'a.txt', b'\xef\xbb\xbf' + LINES.replace('\n', '\r\n').encode()))
    b = load_corpus(write(tmp_path / 'b.txt', LINES))
    c = load_corpus(write(tmp_path / 'c.txt', LINES.replace('\n', '\r')))
    assert (
        [a.fingerprint(s) for s in SPLITS] == [b.fingerprint(s) for s in SPLITS] == [c.fingerprint(s) for s in SPLITS]
    )
    assert a['train'][0] == 'line number 0\n' and a.name == 'a.txt'


def test_odd_white_space_is_no_line_end(tmp_path):
    row = 'a\x0bb\x0cc\x1cd\x85e\u2028f\n'
    corpus = load_corpus(write(tmp_path / 'a.txt', row * 20))
    assert corpus['test'] == [row] and corpus.bytes('test') == len(row.encode())


def test_last_line_without_newline(tmp_path):
    corpus = load_corpus(write(tmp_path / 'a.txt', LINES + 'the end'))
    assert corpus['test'][-1] == 'the end' and sum(corpus.bytes(s) for s in SPLITS) == len(LINES) + 7


@pytest.mark.parametrize(
    'names',
    [
        ('train.txt', 'valid.txt', 'test.txt'),
        ('ptb.train.txt', 'ptb.valid.txt', 'ptb.test.txt'),
        ('wiki.train.tokens', 'wiki.valid.tokens', 'wiki.test.tokens'),
        ('TRAIN', 'Validation.TXT', 'test.md'),
    ],
)
def test_folder_names(tmp_path, names):
    for i, name in enumerate(names):
        write(tmp_path / 'my corpus' / name, f'part {i}\n')
    for extra in ('README', '.train.txt.swp', 'train.npy', 'trainer.txt', 'contest.txt'):
        write(tmp_path / 'my corpus' / extra, 'something else\n')
    corpus = load_corpus(str(tmp_path / 'my corpus'))
    assert [list(corpus[s]) for s in SPLITS] == [[f'part {i}\n'] for i in range(3)] and corpus.name == 'my corpus'


def test_home_and_relative_paths(tmp_path, monkeypatch):
    write(tmp_path / 'mine.txt')
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert (
        load_corpus('~/mine.txt').fingerprint('train')
        == load_corpus('mine.txt').fingerprint('train')
        == load_corpus('./mine.txt').fingerprint('train')
    )


def test_a_name_goes_before_a_file(tmp_path, monkeypatch):
    write(tmp_path / 'markov')
    monkeypatch.chdir(tmp_path)
    assert load_corpus('markov')['train'][0] != load_corpus('./markov')['train'][0] == 'line number 0\n'


# a corpus made by hand


@pytest.mark.parametrize(
    'splits, said',
    [
        (dict(train=['a']), 'no validation split'),
        (dict(train='a', validation=['b'], test=['c']), 'one string'),
        (dict(train=['a'], validation=[], test=['c']), 'validation has no rows'),
    ],
)
def test_corpus_by_hand(splits, said):
    with pytest.raises(CorpusError, match=said):
        Corpus('mine', splits)


def test_no_such_split():
    with pytest.raises(CorpusError, match="'valid' is no split"):
        load_corpus('markov').bytes('valid')


# WikiText with nothing at hand


def remedies(said, config='wikitext-2-v1'):
    "Whether a sentence names the dataset and the three ways out."
    return all(
        part in said
        for part in (
            'Salesforce/wikitext',
            config,
            'LMCOURSE_DATA',
            f'wikitext/{config}/*.parquet',
            'hf download',
            'go online',
        )
    )


@pytest.mark.parametrize('setting', ['1', 'true', 'ON'])
def test_offline(nowhere, setting):
    nowhere.setenv('HF_HUB_OFFLINE', setting)
    start, said = time.time(), refusal('wikitext-2-raw')
    assert (
        remedies(said, 'wikitext-2-raw-v1')
        and 'HF_HUB_OFFLINE keeps the hub from being asked' in said
        and time.time() - start < 60
    )


def test_network_refuses(nowhere):
    pytest.importorskip('huggingface_hub')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    nowhere.setattr('huggingface_hub.constants.ENDPOINT', f'http://127.0.0.1:{port}')
    said = refusal('wikitext-103', timeout=60)
    assert (
        remedies(said, 'wikitext-103-v1')
        and 'LMCOURSE_DATA is not set; the offline cache does not hold it; the hub did not deliver (' in said
    )


def test_silent_server_is_given_up(nowhere):
    pytest.importorskip('huggingface_hub')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        s.listen()
        nowhere.setattr('huggingface_hub.constants.ENDPOINT', f'http://127.0.0.1:{s.getsockname()[1]}')
        start, said = time.time(), refusal('wikitext-2', timeout=4)
    assert remedies(said) and 'the hub gave no answer within 4 s' in said and time.time() - start < 12


def test_without_the_package_huggingface_hub(nowhere):
    nowhere.setattr(hub.importlib.util, 'find_spec', lambda name: None)
    said = refusal('wikitext-2')
    assert remedies(said) and said.count('the package `huggingface_hub` is not installed') == 1


def test_folder_that_lacks_it(nowhere, tmp_path):
    nowhere.setenv('LMCOURSE_DATA', str(tmp_path))
    nowhere.setenv('HF_HUB_OFFLINE', '1')
    write(tmp_path / 'wikitext' / 'wikitext-2-v1' / 'train-00000-of-00001.parquet')
    said = refusal('wikitext-2')
    assert (
        remedies(said)
        and f"no {tmp_path / 'wikitext' / 'wikitext-2-v1'} with the parquet files of all three splits" in said
    )


@pytest.mark.parametrize(
    'data', [b'PAR1 this is not parquet PAR1', b'', b'version https://git-lfs.github.com/spec/v1\n']
)
def test_damaged_folder(nowhere, tmp_path, data):
    pytest.importorskip('pyarrow')
    nowhere.setenv('LMCOURSE_DATA', str(tmp_path))
    for split in SPLITS:
        write(tmp_path / 'wikitext' / 'wikitext-2-v1' / f'{split}-00000-of-00001.parquet', data)
    said = refusal('wikitext-2')
    assert 'wikitext-2-v1 is damaged' in said and 'fetch it again' in said


def test_parquet_without_text(nowhere, tmp_path):
    pa, pq = pytest.importorskip('pyarrow'), pytest.importorskip('pyarrow.parquet')
    nowhere.setenv('LMCOURSE_DATA', str(tmp_path))
    (folder := tmp_path / 'wikitext' / 'wikitext-2-v1').mkdir(parents=True)
    for split in SPLITS:
        pq.write_table(pa.table(dict(words=['a'])), folder / f'{split}-00000-of-00001.parquet')
    assert 'is damaged' in refusal('wikitext-2')


def test_have_corpus_never_asks_the_hub(nowhere, tmp_path):
    asked = []
    nowhere.setattr(hub, 'splits_from_hub', lambda *args: asked.append(args) or (None, 'asked'))
    assert (
        not corpus_available('wikitext-2')
        and not corpus_available('nothing')
        and not corpus_available(tmp_path / 'x')
        and not asked
    )
    assert corpus_available('stdlib') and corpus_available('markov') and corpus_available(tmp_path)
