"Corpora that must be the same everywhere, and WikiText from each of its three places, with stand-ins for the real one."

import os
import subprocess
import sys
import textwrap

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
        hub, 'run_child', lambda *args, **kw: pytest.fail('a folder was named, and somebody else was asked')
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
    assert text.corpus_available('wikitext-2-raw') and not text.corpus_available('wikitext-2')
    assert_is_it(load_corpus('wikitext-2-raw'))


def test_from_a_hub(nowhere, tmp_path):
    "With stand-ins for `huggingface_hub` and `datasets` that the child process imports."
    pa = pytest.importorskip('pyarrow')
    files = {}
    for split, rows in ROWS.items():
        files[split] = [str(tmp_path / f'{split}.arrow')]
        with pa.ipc.new_stream(files[split][0], (table := pa.table(dict(text=rows))).schema) as out:
            out.write_table(table)
    for package, source in dict(
        huggingface_hub='''
            class HfApi:
                def dataset_info(self, name): assert name == 'Salesforce/wikitext'
            ''',
        datasets=f'''
            import os, sys
            from types import SimpleNamespace
            def load_dataset(name, config, keep_in_memory):
                if os.environ.get('HF_HUB_OFFLINE') == '1': raise OSError('not cached')
                print('Downloading', name, config)
                return {{k: SimpleNamespace(cache_files=[dict(filename=f) for f in v]) for k, v in {files!r}.items()}}
            ''',
    ).items():
        (tmp_path / 'fake').mkdir(exist_ok=True)
        (tmp_path / 'fake' / f'{package}.py').write_text(textwrap.dedent(source))
    nowhere.setenv('PYTHONPATH', str(tmp_path / 'fake'))
    nowhere.setattr(hub.importlib.util, 'find_spec', lambda name: object())
    assert not text.corpus_available('wikitext-2-raw')
    assert_is_it(load_corpus('wikitext-2-raw', timeout=60))


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
