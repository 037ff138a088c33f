"Corpora that must be the same everywhere, and WikiText from each of its three places, with stand-ins for the real one."

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from lmcourse.data import hub, text
from lmcourse.data.text import SPLITS, MarkovSource, conditional_entropy, load_corpus, ngram_overlap, split_files

ROWS = {split: ['', f' = {split} = \n', '', ' Some words about caf\u00e9s . \n'] * 3000 for split in SPLITS}


def fingerprints(corpus):
    return [corpus.fingerprint(s) for s in SPLITS]


def elsewhere(code, **env):
    "What a fresh Python prints, in another environment."
    env = {k: v for k, v in os.environ.items() if not k.startswith(('LC_', 'LANG', 'PYTHON'))} | env
    return subprocess.run(
        [sys.executable, '-W', 'error', '-c', code], env=env, capture_output=True, text=True, check=True, timeout=300
    ).stdout


def test_same_in_every_environment():
    code = (
        "from lmcourse.data.text import *; print([[load_corpus(name).fingerprint(s) for s in SPLITS] for name in ('stdlib',"
        " 'markov')])"
    )
    here = str([fingerprints(load_corpus(name)) for name in ('stdlib', 'markov')])
    for env in (dict(LC_ALL='C', PYTHONHASHSEED='1', PYTHONUTF8='0'), dict(LC_ALL='C.UTF-8', PYTHONHASHSEED='2')):
        assert elsewhere(code, **env).strip() == here


def test_stdlib_is_a_fit_size_and_clean():
    c = load_corpus('stdlib')
    total = sum(c.words(s) for s in SPLITS)
    assert 150_000 < total < 450_000 and all(0.04 < c.words(s) / total < 0.06 for s in SPLITS[1:])
    rows = [row for s in SPLITS for row in c[s]]
    assert len(rows) == len(set(rows)) and all(
        row.endswith('\n') and row.count('\n') == 1 and row.split() for row in rows
    )
    assert not any('>>>' in row or '::=' in row for row in rows) and sum(
        not row.isascii() for row in rows
    ) < 0.03 * len(rows)
    assert ngram_overlap(c['validation'], c['train']) < 0.06


def library(root, **files):
    "A standard library of our own."
    for name, source in files.items():
        path = root / name.replace('__', '/')
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix('.py').write_text(source, encoding='utf-8')
    return root


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    "No memory of an earlier stdlib, and another folder for it."
    for f in (text.stdlib_documents, text._stdlib):
        f.cache_clear()
    monkeypatch.setattr(text.sysconfig, 'get_path', lambda name: str(tmp_path))
    yield tmp_path
    for f in (text.stdlib_documents, text._stdlib):
        f.cache_clear()


MANY = {
    f'm{i}': (
        f'"""Module number {i} is here to be read by nobody at all."""\nimport nothing_of_the_kind\nraise SystemExit'
    )
    for i in range(60)
}


def test_stdlib_without_pydoc_data(fresh):
    library(
        fresh,
        **MANY,
        test__t='"""Nothing of the test suite is wanted here, ever."""',
        odd='"""A docstring with an odd escape \\d in it, read silently."""',
    )
    assert set(text.stdlib_documents()) == {*MANY, 'odd'}
    c = load_corpus('stdlib')
    assert c.words('test') and c.words('validation') and any('Module number 1 ' in row for s in SPLITS for row in c[s])


def test_stdlib_with_pydoc_data(fresh):
    library(
        fresh,
        m='"""This is the only module that there is."""',
        pydoc_data__topics="# made by a tool\ntopics = {'b': 'This is the chapter about the letter b.', 'a': 'x'}",
    )
    assert text.stdlib_documents() == {
        'reference b': ['This is the chapter about the letter b .\n'],
        'm': ['This is the only module that there is .\n'],
    }


def test_stdlib_that_is_not_there(fresh):
    with pytest.raises(text.CorpusError, match='no docstrings in .*markov'):
        load_corpus('stdlib')


def test_markov_is_the_chain():
    source, c = MarkovSource(), load_corpus('markov')
    ids = source.ids(c['validation'])
    assert len(ids) == c.words('validation') and ids[-1] == 0 and set(ids) == set(range(source.vocab_size))
    again, word = [], {0: ''} | dict(enumerate(source.words, 1))
    for row in ' '.join(word[i] or '\n' for i in ids).split('\n')[:-1]:
        again.append(row.strip() + '\n' if row.strip() else '')
    assert again == c['validation'] and c.bytes('train') is None
    assert abs(source.nats(c['train']).mean() - source.entropy_rate) < 4 * source.nats(c['train']).std() / 200_000**0.5


# WikiText


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    "No folder, no cache."
    for name in list(os.environ):
        if name.startswith(('HF_', 'LMCOURSE_DATA')):
            monkeypatch.delenv(name)
    monkeypatch.setenv('HF_HOME', str(tmp_path / 'hf'))
    if hub.importlib.util.find_spec('huggingface_hub'):  # it reads the environment once, when it is imported
        monkeypatch.setattr('huggingface_hub.constants.HF_HOME', str(tmp_path / 'hf'))
        monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path / 'hf' / 'hub'))
        monkeypatch.setattr('huggingface_hub.constants.ENDPOINT', 'http://127.0.0.1:9')
    return monkeypatch


def lay_out(folder, config='wikitext-2-raw-v1', shards=2):
    "A folder as the hub's repository has it."
    pa, pq = pytest.importorskip('pyarrow'), pytest.importorskip('pyarrow.parquet')
    (folder / config).mkdir(parents=True)
    for split, rows in ROWS.items():
        cut = len(rows) // shards
        for i in range(shards):
            pq.write_table(
                pa.table(dict(text=rows[i * cut : (i + 1) * cut])),
                folder / config / f'{split}-{i:05}-of-{shards:05}.parquet',
            )
    (folder / 'README.md').write_text(
        '---\nconfigs:\n- config_name: %s\n  data_files:\n%s---\n'
        % (config, ''.join(f'  - split: {s}\n    path: {config}/{s}-*\n' for s in SPLITS))
    )
    return folder


def assert_is_it(corpus, name='wikitext-2-raw'):
    assert corpus.name == name and [list(corpus[s]) for s in SPLITS] == list(ROWS.values())
    assert (
        len(corpus['test']) == 12000
        and corpus['test'][-1] == ROWS['test'][-1]
        and corpus['test'][1:3] == ROWS['test'][1:3]
    )
    assert corpus.bytes('test') == sum(len(row.encode()) for row in ROWS['test']) and not isinstance(
        corpus['train'], list
    )


def test_from_a_folder_without_datasets(nowhere, tmp_path):
    lay_out(tmp_path / 'data' / 'wikitext')
    nowhere.setenv('LMCOURSE_DATA', str(tmp_path / 'data'))
    nowhere.setattr(
        hub, 'splits_from_cache', lambda *args: pytest.fail('a folder was named, and somebody else was asked')
    )
    nowhere.setitem(sys.modules, 'datasets', None)
    assert text.corpus_available('wikitext-2-raw')
    assert_is_it(load_corpus('wikitext-2-raw'))


def test_from_the_offline_cache(nowhere, tmp_path):
    datasets = pytest.importorskip('datasets')
    lay_out(tmp_path / 'wikitext')
    datasets.load_dataset(str(tmp_path / 'wikitext'), 'wikitext-2-raw-v1', cache_dir=str(tmp_path / 'hf' / 'datasets'))
    (tmp_path / 'hf' / 'datasets' / 'wikitext').rename(tmp_path / 'hf' / 'datasets' / 'Salesforce___wikitext')
    nowhere.setattr(hub, 'splits_from_hub', lambda *args: pytest.fail('it was in the cache, and the hub was asked'))
    nowhere.setitem(sys.modules, 'datasets', None)
    assert text.corpus_available('wikitext-2-raw') and not text.corpus_available('wikitext-2')
    assert_is_it(load_corpus('wikitext-2-raw'))


def hub_cache(tmp_path, **layout):
    "A folder as `huggingface_hub` keeps a dataset after it was fetched."
    kept = tmp_path / 'hf' / 'hub' / 'datasets--Salesforce--wikitext'
    lay_out(kept / 'snapshots' / ('a' * 40), **layout)
    (kept / 'refs').mkdir()
    (kept / 'refs' / 'main').write_text('a' * 40)
    return kept / 'snapshots' / ('a' * 40)


def test_from_what_the_hub_sent_before(nowhere, tmp_path):
    pytest.importorskip('huggingface_hub')
    hub_cache(tmp_path)
    nowhere.setattr(hub, 'splits_from_hub', lambda *args: pytest.fail('it was in the cache, and the hub was asked'))
    assert text.corpus_available('wikitext-2-raw') and not text.corpus_available('wikitext-2')
    assert_is_it(load_corpus('wikitext-2-raw'))


@pytest.mark.parametrize('split', SPLITS)
@pytest.mark.parametrize('part', [0, 2])
def test_a_part_that_is_missing_is_not_overlooked(split, part, nowhere, tmp_path):
    "Two files of three are another text: not in the cache, and not in a folder either."
    pytest.importorskip('huggingface_hub')
    folder = hub_cache(tmp_path, shards=3)
    assert text.corpus_available('wikitext-2-raw')
    (folder / 'wikitext-2-raw-v1' / f'{split}-{part:05}-of-00003.parquet').unlink()
    assert not text.corpus_available('wikitext-2-raw')
    folder.rename(tmp_path / 'wikitext')
    nowhere.setenv('LMCOURSE_DATA', str(tmp_path))
    assert not text.corpus_available('wikitext-2-raw')


class FakeHub(BaseHTTPRequestHandler):
    "Speaks as the hub does, on this machine: a list of the files, then each file; where `silent` fits, it says nothing."

    silent, sent = None, {}

    def log_message(self, *args):
        pass

    def do_GET(self):
        path, data = self.path.split('?')[0], None
        if path == '/api/datasets/Salesforce/wikitext':
            listed = [dict(rfilename=name) for name in self.sent]
            data = json.dumps(dict(id='Salesforce/wikitext', sha='a' * 40, siblings=listed)).encode()
        elif '/resolve/main/' in path:
            data = self.sent.get(path.split('/resolve/main/')[1])
        if self.silent and re.match(self.silent, f'{self.command} {path}'):
            time.sleep(600)
        self.send_response(404 if data is None else 200)
        self.send_header('Content-Length', str(len(data or b'')))
        self.send_header('ETag', f'"{hashlib.sha256(data or b"").hexdigest()}"')
        self.send_header('X-Repo-Commit', 'a' * 40)
        self.end_headers()
        if self.command == 'GET':
            self.wfile.write(data or b'')

    do_HEAD = do_GET


@pytest.fixture
def fake_hub(tmp_path):
    "A function that runs code in a fresh process for which the hub is a fake; it has a bare cache of its own."
    pytest.importorskip('huggingface_hub')
    lay_out(tmp_path / 'sent')
    sent = {str(p.relative_to(tmp_path / 'sent')): p.read_bytes() for p in (tmp_path / 'sent').rglob('*.*')}
    sent['tokenizer.json'] = b'{"of": "gpt2"}'
    handler = type('Handler', (FakeHub,), dict(sent=sent))
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def run(code, silent=None, **env):
        handler.silent = silent
        env = {k: v for k, v in os.environ.items() if not k.startswith(('HF_', 'LMCOURSE_DATA'))} | env
        places = dict(HF_HOME=str(tmp_path / 'hf'), LMCOURSE_CACHE=str(tmp_path / 'cache'))
        places |= dict(HF_ENDPOINT=f'http://127.0.0.1:{server.server_port}', NO_PROXY='127.0.0.1')
        r = subprocess.run([sys.executable, '-c', code], env=env | places, capture_output=True, text=True, timeout=300)
        assert r.returncode == 0, r.stderr
        return r.stdout

    yield run
    server.shutdown()
    server.server_close()


LOAD = """
from lmcourse.data.text import *
print(corpus_available('wikitext-2-raw'))
corpus = load_corpus('wikitext-2-raw', timeout=60)
print([corpus.fingerprint(s) for s in SPLITS])
"""


def test_from_a_hub(fake_hub):
    "The files are fetched once; then they are on this machine, and read there as those of a folder are."
    same = text.Corpus('same', ROWS)
    first, again = fake_hub(LOAD).splitlines(), fake_hub(LOAD, silent='GET', HF_HUB_OFFLINE='1').splitlines()
    assert first == ['False', str(fingerprints(same))]
    assert again == ['True', str(fingerprints(same))]


def test_gpt2_from_a_hub(fake_hub):
    code = 'from lmcourse.data.hub import *; print(find_gpt2()); print(fetch_gpt2(60).read_text(), find_gpt2() is None)'
    assert fake_hub(code) == 'None\n{"of": "gpt2"} False\n'
    assert '\n{"of": "gpt2"} False\n' in fake_hub(code, silent='GET', HF_HUB_OFFLINE='1')


WAIT = """
import socket, threading, time
from lmcourse.data import hub
import huggingface_hub, huggingface_hub.hf_api
at_most = hub.wait_at_most
hub.wait_at_most = lambda seconds, work: at_most(min(seconds, LIMIT), work)
for find in (lambda: hub.find_wikitext('wikitext-2-raw', 'wikitext-2-raw-v1', 60), lambda: hub.fetch_gpt2(60)) * 2:
    start = time.time()
    try:
        find()
    except hub.HubError as e:
        print(time.time() - start < 2 * LIMIT + 3, str(e))
start = time.time()
print(hub.splits_from_cache('wikitext-2-raw-v1'), hub.find_gpt2(), time.time() - start < 2)
print([t.daemon for t in threading.enumerate() if t is not threading.main_thread()])
print(time.time())
"""
HANGS = {
    'nothing is answered': dict(silent='.'),
    'no file is described': dict(silent='HEAD'),
    'no file is sent': dict(silent='GET .*/resolve/'),
    'no address is looked up': dict(code='import socket, time; socket.getaddrinfo = lambda *a, **kw: time.sleep(600)'),
}


@pytest.mark.parametrize('hang', HANGS.values(), ids=HANGS)
def test_a_hub_that_hangs_is_given_up(hang, fake_hub):
    """Wherever it hangs, the caller has its sentence when its time is over, may ask again, and can end at once; what
    is left behind are threads that keep no program from ending."""
    out = fake_hub(hang.get('code', '') + WAIT.replace('LIMIT', '2'), hang.get('silent')).splitlines()
    *asked, cached, threads, end = out
    assert len(asked) == 4 and all(line.startswith('True ') for line in asked), out
    assert all('the hub gave no answer within 2 s' in line and 'go online' in line for line in asked)
    assert cached == "(None, 'the offline cache does not hold it') None True"
    assert threads == str([True] * 4)
    assert time.time() - float(end) < 30


@pytest.mark.parametrize('name', ['valid', 'val', 'dev', 'validation', 'my.dev', 'ptb.valid'])
def test_names_of_the_validation_split(name, tmp_path):
    for split in ('train', name, 'test'):
        (tmp_path / f'{split}.txt').write_text(f'{split} rows\n')
    assert split_files(tmp_path)['validation'].name == f'{name}.txt'


def test_conditional_entropy_where_something_never_comes():
    p_VVV = np.full((2, 2, 2), 0.5)
    p_VVV[0, 0] = [0, 1]
    assert conditional_entropy(p_VVV) == pytest.approx(0.594126, abs=1e-6)
    assert all(np.isfinite(conditional_entropy(p_VVV, memory)) for memory in (0, 1, 2))
