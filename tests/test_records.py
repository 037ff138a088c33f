"""What a run leaves behind, where a notebook does not reach: full disks, folders that cannot be written, damaged files,
odd tensors."""

import builtins
import errno
import io
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lmcourse import files
from lmcourse.errors import LMCourseError
from lmcourse.files import FileError
from lmcourse.measure.perplexity import Measurement
from lmcourse.training import runs as R
from lmcourse.training.runs import RecordError, Run


def strict(text):
    "JSON by the letter: Python's own NaN and Infinity are refused."

    def refuse(name):
        raise AssertionError(f'{name} is no JSON')

    return json.loads(text, parse_constant=refuse)


def measured(perplexity=100.0, **other):
    facts = dict(
        num_tokens=1000,
        num_words=900,
        num_bytes=5000,
        vocab_size=50,
        num_unk=0,
        tokenizer='word',
        eos='<eos>',
        corpus='toy',
        split='validation',
        fingerprint='0' * 16,
        context_length=35,
        stride=None,
        state_carried=True,
        eval_batch_size=1,
    )
    return Measurement.from_nats(1000 * math.log(perplexity), **(facts | other)).to_dict()


def finished(path, recipe='toy', seed=0, perplexity=100.0, config=None, tiny=False, **passport):
    run = Run.create(recipe, config or {}, out=path, seed=seed)
    run.log(step=1, epoch=0, tokens_seen=10, seconds=0.1, train_nats=4.0, lr=1e-3)
    run.finish(dict(validation=measured(perplexity, **passport), test=None, finished=True, tiny=tiny))
    return run


class FullFile(io.FileIO):
    "A file on a disk with room for five more bytes."

    room = 5

    def write(self, data):
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        n = super().write(bytes(data)[: self.room])
        self.room -= n
        return n


@pytest.fixture
def full_disk(monkeypatch):
    real = builtins.open

    def opened(path, mode='r', buffering=-1, **kwargs):
        if not set(mode) & set('wa'):
            return real(path, mode, buffering, **kwargs)
        raw = FullFile(path, mode.replace('b', ''))
        return io.BufferedWriter(raw) if buffering else raw

    return lambda: monkeypatch.setattr(builtins, 'open', opened)


# folders


def test_errors_are_bad_requests():
    assert issubclass(RecordError, LMCourseError) and issubclass(RecordError, ValueError)


def test_new_folders_are_named_after_recipe_seed_and_time_and_never_shared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(R.time, 'strftime', lambda f: '20260102-030405')
    names = [Run.create('lstm-a', {}, seed=7).path.as_posix() for _ in range(3)]
    assert names == [
        'runs/lstm-a-s7-20260102-030405',
        'runs/lstm-a-s7-20260102-030405-2',
        'runs/lstm-a-s7-20260102-030405-3',
    ]


def test_runs_that_is_a_file_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('runs').write_text('')
    with pytest.raises(FileError, match='cannot write runs'):
        Run.create('toy', {})


def test_folder_that_holds_a_run_is_refused_and_left_alone(tmp_path):
    finished(tmp_path / 'r')
    before = {p.name: p.read_bytes() for p in (tmp_path / 'r').iterdir()}
    with pytest.raises(FileError, match='already holds a run.*--resume'):
        Run.create('other', {'a': 1}, out=tmp_path / 'r')
    assert {p.name: p.read_bytes() for p in (tmp_path / 'r').iterdir()} == before


def test_folder_with_other_things_is_used(tmp_path):
    (tmp_path / 'notes.txt').write_text('mine')
    Run.create('toy', {}, out=tmp_path)
    assert (tmp_path / 'notes.txt').read_text() == 'mine'


def test_folder_under_a_file_is_told(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(FileError, match='cannot write .*--out'):
        Run.create('toy', {}, out=tmp_path / 'file' / 'run')


def test_read_only_folder_is_told(tmp_path, monkeypatch):
    def refuse(path, mode='r', *a, **k):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(builtins, 'open', refuse)
    with pytest.raises(FileError, match='cannot write .*Permission denied.*--out'):
        Run.create('toy', {}, out=tmp_path / 'r')


def test_a_config_that_json_cannot_hold_leaves_no_folder(tmp_path):
    with pytest.raises(FileError, match='model.device is a device'):
        Run.create('toy', {'model': {'device': torch.device('cpu')}}, out=tmp_path / 'r')
    assert not (tmp_path / 'r').exists()


def test_created_and_opened_are_equal(tmp_path):
    made = Run.create(
        'toy',
        {'betas': (0.9, 0.99), 'deep': {'path': Path('a/b')}, 'recipe': 'no', 'seed': 5},
        out=tmp_path / 'r',
        seed=2,
    )
    again = Run.open(tmp_path / 'r')
    assert (
        made.config
        == again.config
        == {
            'recipe': 'toy',
            'seed': 2,
            'betas': [0.9, 0.99],
            'deep': {'path': 'a/b'},
            'record_version': R.RECORD_VERSION,
        }
    )
    assert made.environment == again.environment and again.recipe == 'toy' and again.seed == 2
    assert made.summary is None and made.metrics() == []


def test_open_tells_what_is_no_run_and_what_is_damaged(tmp_path):
    with pytest.raises(FileError, match='holds no run'):
        Run.open(tmp_path)
    with pytest.raises(FileError, match='holds no run'):
        Run.open(tmp_path / 'nowhere')
    finished(tmp_path / 'r')
    for name in ('config.json', 'summary.json'):
        whole = (tmp_path / 'r' / name).read_bytes()
        (tmp_path / 'r' / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(FileError, match=f'{name} is damaged'):
            Run.open(tmp_path / 'r').summary
        (tmp_path / 'r' / name).write_bytes(whole)


def test_environment_names_no_machine_and_is_json():
    import platform

    text = json.dumps(R.environment(), allow_nan=False)
    assert str(Path.home()) not in text and f'"{platform.node()}"' not in text and os.getcwd() not in text


# rows


def test_rows_and_summaries_are_json_by_the_letter(tmp_path):
    run = Run.create('toy', {}, out=tmp_path / 'r')
    run.log(step=1, train_nats=math.nan, grad_norm=torch.tensor(math.inf), lr=np.float32(0.5), n=np.int64(3))
    run.finish({'validation': measured() | {'perplexity': math.inf}, 'ci95': (-math.inf, 2.0)})
    for p in (tmp_path / 'r').glob('[!.]*'):
        for line in p.read_text().splitlines() if p.suffix == '.jsonl' else [p.read_text()]:
            strict(line)
    assert run.metrics() == [{'step': 1, 'train_nats': None, 'grad_norm': None, 'lr': 0.5, 'n': 3}]
    assert run.summary['validation']['perplexity'] is None and run.summary['ci95'] == [None, 2.0]


def test_a_row_that_json_cannot_hold_changes_nothing(tmp_path):
    R.append_jsonl(tmp_path / 'm.jsonl', {'a': 1})
    with pytest.raises(FileError, match='b is a complex'):
        R.append_jsonl(tmp_path / 'm.jsonl', {'a': 2, 'b': 1j})
    assert R.read_jsonl(tmp_path / 'm.jsonl') == [{'a': 1}]


@pytest.mark.parametrize('stump', [b'{', b'{"step": 3', b'{"step": 3}', b'\xff\x00'])
def test_an_unfinished_last_line_does_not_count_and_is_cut_off(tmp_path, stump):
    path = tmp_path / 'm.jsonl'
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + stump)
    assert [r['step'] for r in R.read_jsonl(path)] == [1, 2]
    R.append_jsonl(path, {'step': 4})
    assert [r['step'] for r in R.read_jsonl(path)] == [1, 2, 4]


def test_a_file_of_nothing_but_a_stump(tmp_path):
    (tmp_path / 'm.jsonl').write_bytes(b'{"st')
    assert R.read_jsonl(tmp_path / 'm.jsonl') == []
    R.append_jsonl(tmp_path / 'm.jsonl', {'step': 1})
    assert R.read_jsonl(tmp_path / 'm.jsonl') == [{'step': 1}]


@pytest.mark.parametrize('line', [b'{"a": ', b'[1, 2]', b'7', b'', b'\x00\x00\x00'])
def test_a_damaged_line_is_named(tmp_path, line):
    (tmp_path / 'm.jsonl').write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 3}\n')
    with pytest.raises(FileError, match='m.jsonl, line 2, is damaged'):
        R.read_jsonl(tmp_path / 'm.jsonl')


def test_a_kill_loses_no_row(tmp_path):
    program = (
        "from lmcourse.training.runs import Run\nrun = Run.create('toy', {}, out='r')\nstep = 0\nwhile True:\n    step += 1;"
        " run.log(step=step, text='x' * 500)\n    if step == 200: print('go', flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, '-c', program], cwd=tmp_path, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b'go\n'
    child.send_signal(signal.SIGKILL)
    child.wait()
    run = Run.open(tmp_path / 'r')
    steps = [row['step'] for row in run.metrics()]
    assert len(steps) >= 200 and steps == list(range(1, len(steps) + 1))
    run.truncate(150)
    run.log(step=151)
    assert [row['step'] for row in run.metrics()] == list(range(1, 152))


def test_truncate_without_a_curve(tmp_path):
    run = Run.create('toy', {}, out=tmp_path / 'r')
    run.truncate(3)
    assert run.metrics() == []


# full disks


def test_a_full_disk_leaves_everything_as_it_was(tmp_path, full_disk):
    run = finished(tmp_path / 'r')
    run.save('best', {'w': torch.ones(3)}, {'step': 1})
    before = {p.name: p.read_bytes() for p in run.path.iterdir()}
    full_disk()
    attempts = [
        lambda: run.log(step=2),
        lambda: run.finish({'a': 1}),
        lambda: run.truncate(1),
        lambda: run.save('best', {'w': torch.zeros(3)}),
        lambda: run.save('last', {'w': torch.zeros(3)}),
    ]
    for attempt in attempts:
        with pytest.raises(FileError, match='is full.*what was saved before is untouched'):
            attempt()
    assert {p.name: p.read_bytes() for p in run.path.iterdir()} == before


def test_a_row_cut_by_a_full_disk_is_taken_back(tmp_path, monkeypatch, full_disk):
    path = tmp_path / 'm.jsonl'
    R.append_jsonl(path, {'step': 1})
    with monkeypatch.context() as m:
        full_disk()
        with pytest.raises(FileError, match='is full'):
            R.append_jsonl(path, {'step': 2})
        m.undo()
    assert path.read_bytes() == b'{"step": 1}\n'


def test_a_new_run_on_a_full_disk_is_told_and_can_be_made_later(tmp_path, monkeypatch, full_disk):
    full_disk()
    with pytest.raises(FileError, match='is full'):
        Run.create('toy', {}, out=tmp_path / 'r')
    monkeypatch.undo()
    assert Run.create('toy', {}, out=tmp_path / 'r').recipe == 'toy'


def test_publishing_to_a_full_disk_is_told(tmp_path, full_disk):
    run = finished(tmp_path / 'r')
    full_disk()
    with pytest.raises(FileError, match='is full'):
        R.publish(run, tmp_path / 'shelf')


# checkpoints


def test_tensors_of_every_kind_come_back(tmp_path):
    base = torch.randn(6, 4)
    tensors = {
        'tied/a': base,
        'tied/b': base,
        'slice': base[1:3],
        'transposed': base.t(),
        'scalar': torch.tensor(2.5),
        'empty': torch.zeros(0, 3),
        'empty too': torch.zeros(0, 3),
        'half': base.half(),
        'bf16': base.bfloat16(),
        'long': torch.arange(5),
        'byte': torch.get_rng_state(),
        'bool': base > 0,
        'double': base.double(),
        'parameter': torch.nn.Parameter(base.clone()),
    }
    R.save_safetensors(tmp_path / 't.safetensors', tensors, {'nested': {'best': math.inf}, 'list': [1, None]})
    back, meta = R.load_safetensors(tmp_path / 't.safetensors')
    assert back.keys() == tensors.keys() and meta == {'nested': {'best': math.inf}, 'list': [1, None]}
    for k, t in tensors.items():
        assert back[k].dtype == t.dtype and torch.equal(back[k], t.detach()), k
    assert back['tied/a'] is back['tied/b'] and back['slice'] is not back['tied/a']


def test_a_file_of_the_library_is_read(tmp_path):
    from safetensors.torch import save_file

    save_file({'w': torch.ones(2)}, tmp_path / 't.safetensors')
    tensors, meta = R.load_safetensors(tmp_path / 't.safetensors')
    assert torch.equal(tensors['w'], torch.ones(2)) and meta == {}


def test_a_model_with_tied_weights_is_stored_once_and_loads(tmp_path):
    model = torch.nn.Sequential(torch.nn.Embedding(50, 8), torch.nn.Linear(8, 50))
    model[1].weight = model[0].weight
    R.save_safetensors(tmp_path / 't.safetensors', model.state_dict())
    assert (tmp_path / 't.safetensors').stat().st_size < 50 * 8 * 4 * 1.5 + 600
    other = torch.nn.Sequential(torch.nn.Embedding(50, 8), torch.nn.Linear(8, 50))
    other.load_state_dict(R.load_safetensors(tmp_path / 't.safetensors')[0])
    assert torch.equal(other[1].weight, model[0].weight)


def test_a_checkpoint_cut_short_anywhere_is_told(tmp_path):
    run = finished(tmp_path / 'r')
    run.save('last', {'w': torch.randn(20, 10)}, {'step': 3})
    path = run.path / 'last.safetensors'
    whole = path.read_bytes()
    for n in (0, 1, 7, 8, 20, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n])
        with pytest.raises(FileError, match='last.safetensors is damaged.*--resume'):
            run.load('last')
    path.write_bytes(whole + b'x')
    with pytest.raises(FileError, match='is damaged'):
        run.load('last')


def test_a_bit_turned_over_in_the_numbers_is_told(tmp_path):
    R.save_safetensors(tmp_path / 't.safetensors', {'w': torch.ones(64)})
    whole = (tmp_path / 't.safetensors').read_bytes()
    for at in (-1, -100, -256):
        odd = bytearray(whole)
        odd[at] ^= 1
        (tmp_path / 't.safetensors').write_bytes(odd)
        with pytest.raises(FileError, match='is damaged'):
            R.load_safetensors(tmp_path / 't.safetensors')


def test_a_save_that_is_interrupted_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    run = finished(tmp_path / 'r')
    run.save('last', {'w': torch.ones(3)}, {'step': 1})

    def stop(fd):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, 'fsync', stop)
    with pytest.raises(KeyboardInterrupt):
        run.save('last', {'w': torch.zeros(3)}, {'step': 2})
    assert run.load('last')[1] == {'step': 1} and not list(run.path.glob('*.tmp'))


def test_a_half_written_file_of_a_killed_save_is_no_obstacle(tmp_path):
    run = finished(tmp_path / 'r')
    (run.path / 'last.safetensors.tmp').write_bytes(b'half')
    run.save('last', {'w': torch.ones(3)})
    assert torch.equal(run.load('last')[0]['w'], torch.ones(3)) and not list(run.path.glob('*.tmp'))


def test_what_a_checkpoint_cannot_hold_is_told(tmp_path):
    with pytest.raises(FileError, match='state beside t.safetensors'):
        R.save_safetensors(tmp_path / 't.safetensors', {}, {'f': max})
    assert not list(tmp_path.iterdir())


def test_a_missing_checkpoint_says_what_there_is(tmp_path):
    run = finished(tmp_path / 'r')
    with pytest.raises(FileError, match=r"no checkpoint 'best' \(it has: none\)"):
        run.load('best')
    run.save('last', {'w': torch.ones(1)})
    with pytest.raises(FileError, match=r'it has: last'):
        run.load('best')
    with pytest.raises(FileError, match='there is no'):
        R.load_safetensors(tmp_path / 'none.safetensors')
    with pytest.raises(FileError):
        R.load_safetensors(tmp_path)


# publishing


def test_publishing_needs_a_summary(tmp_path):
    run = Run.create('toy', {}, out=tmp_path / 'r')
    with pytest.raises(FileError, match='no summary yet'):
        R.publish(run, tmp_path / 'shelf')
    assert not (tmp_path / 'shelf').exists()


def test_publishing_copies_the_small_parts_and_no_folder_names(tmp_path):
    run = finished(tmp_path / 'r', config={'data': {'corpus': '/home/anna/novel.txt', 'folders': ['/a/b/']}})
    run.save('best', {'w': torch.zeros(10_000)})
    for step in range(5000):
        run.log(step=step, tokens_seen=10 * step + 20, train_nats=5.0)
    to = R.publish(str(run.path), tmp_path / 'shelf')
    assert to == tmp_path / 'shelf' / 'r' and sorted(p.name for p in to.iterdir()) == [
        'config.json',
        'environment.json',
        'metrics.jsonl',
        'summary.json',
    ]
    assert sum(p.stat().st_size for p in to.iterdir()) < 30_000 and 'anna' not in (to / 'config.json').read_text()
    assert Run(to).config['data'] == {'corpus': 'novel.txt', 'folders': ['b']}
    assert 190 <= len(Run(to).metrics()) <= 200


def test_publishing_again_replaces_and_in_place_does_nothing(tmp_path):
    run = finished(tmp_path / 'r')
    to = R.publish(run, tmp_path / 'shelf')
    run.finish({'validation': measured(50.0), 'finished': True})
    R.publish(run, tmp_path / 'shelf')
    assert Run(to).summary['validation']['perplexity'] == pytest.approx(50)
    assert R.publish(to, tmp_path / 'shelf') == to


def test_publishing_where_nothing_can_be_written_is_told(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(FileError, match='cannot write'):
        R.publish(finished(tmp_path / 'r'), tmp_path / 'file')


def test_thinning_keeps_evaluations_ends_and_the_sum_of_nats():
    rows, rng = [], np.random.default_rng(0)
    for step in range(1, 1001):
        rows.append(dict(step=step, tokens_seen=step * 10 + step % 7, train_nats=float(rng.uniform(2, 9))))
        if step % 100 == 0:
            rows.append(dict(step=step, tokens_seen=step * 10 + step % 7, split='validation', perplexity=9.0))

    def total(rows):
        rows = [r for r in rows if 'split' not in r]
        return sum(
            r['train_nats'] * (r['tokens_seen'] - b) for r, b in zip(rows, [0] + [r['tokens_seen'] for r in rows])
        )

    for most in (1, 20, 50, 200, 5000):
        thin = R.downsample_curve(rows, most)
        assert len(thin) <= max(most, 12) and thin[0] == rows[0] and thin[-1] == rows[-1]
        assert [r for r in thin if 'split' in r] == [r for r in rows if 'split' in r]
        assert total(thin) == pytest.approx(total(rows)) and [r['step'] for r in thin] == sorted(
            r['step'] for r in thin
        )
    assert R.downsample_curve([], 5) == [] and R.downsample_curve(rows[:1], 5) == rows[:1]


def test_thinning_curves_with_gaps_or_no_counts():
    rows = [dict(step=i, train_nats=None if i == 50 else 1.0) for i in range(100)]
    thin = R.downsample_curve(rows, 11)
    assert len(thin) == 11 and [r['train_nats'] for r in thin].count(None) == 1
    assert len(R.downsample_curve([dict(step=i, lr=0.1) for i in range(100)], 11)) == 11


def test_records_are_sorted_and_strays_are_ignored(tmp_path):
    for name, recipe, seed in (('x', 'b', 1), ('y', 'a', 10), ('z', 'a', 2)):
        R.publish(finished(tmp_path / name, recipe, seed), tmp_path / 'shelf')
    (tmp_path / 'shelf' / 'notes').mkdir()
    (tmp_path / 'shelf' / 'README.md').write_text('')
    assert [(r.recipe, r.seed) for r in R.records(tmp_path / 'shelf')] == [('a', 2), ('a', 10), ('b', 1)]
    assert R.records(tmp_path / 'nowhere') == []


def test_record_picks_the_best_and_prefers_full_size(tmp_path):
    config = {'optim': {'lr': 1e-3}}
    for name, seed, perplexity, tiny in (
        ('a', 0, 90.0, False),
        ('b', 1, 80.0, False),
        ('c', 2, 10.0, True),
        ('d', 3, math.inf, False),
    ):
        R.publish(
            finished(tmp_path / name, seed=seed, perplexity=perplexity, tiny=tiny, config=config), tmp_path / 'shelf'
        )
    shelf = tmp_path / 'shelf'
    assert (
        R.best_record('toy', shelf).name == 'b'
        and R.best_record('toy', shelf, tiny=True).name == 'c'
        and R.best_record('toy', shelf, seed=3).name == 'd'
    )
    assert (
        R.best_record('toy', shelf, lr=1e-3, seed=0).name == 'a'
        and R.best_record('toy', shelf, optim__lr=1e-3).name == 'b'
    )
    with pytest.raises(FileError, match="no record of 'toj'; there are records of: toy"):
        R.best_record('toj', shelf)
    with pytest.raises(FileError, match="no record of 'toy' has seed=8; there are: a, b, d"):
        R.best_record('toy', shelf, seed=8)
    with pytest.raises(FileError, match='there are records of: nothing'):
        R.best_record('toy', tmp_path / 'empty')


def test_record_does_not_choose_between_texts(tmp_path):
    R.publish(finished(tmp_path / 'a', corpus='one'), tmp_path / 'shelf')
    R.publish(finished(tmp_path / 'b', corpus='two', seed=1), tmp_path / 'shelf')
    with pytest.raises(FileError, match="do not compare, say which you mean: corpus='one'.*or corpus='two'"):
        R.best_record('toy', tmp_path / 'shelf')
    assert R.best_record('toy', tmp_path / 'shelf', corpus='two').seed == 1


def test_shipped_records_can_all_be_read():
    for run in R.records():
        assert run.recipe and run.summary and run.summary['validation'] and run.metrics()
        strict((run.path / 'summary.json').read_text())


# tables, comparisons, figures, seeds


def test_tables():
    assert R.markdown_table([]) == '|  |\n|  |'
    assert R.markdown_table([{'a': 1}, {'b': 'x'}]) == '| a | b |\n| --: | --- |\n| 1 | – |\n| – | x |'
    cells = R.markdown_table(
        [
            dict(a=v)
            for v in (
                0,
                0.0,
                -1234567,
                12.345,
                1e-9,
                True,
                math.inf,
                math.nan,
                'a\nb',
                '<eos>|',
                np.float64(2),
                torch.tensor(3),
            )
        ]
    )
    assert [line[2:-2] for line in cells.splitlines()[2:]] == [
        '0',
        '0',
        '-1,234,567',
        '12.35',
        '1e-09',
        'yes',
        '∞',
        '–',
        'a b',
        r'\<eos>\|',
        '2.00',
        '3',
    ]


def test_results_table_of_runs_at_every_stage(tmp_path):
    runs = [
        Run.create(
            'new', {'reported_perplexity': 152.0, 'data': {'tokenizer': 'word', 'corpus': 'toy'}}, out=tmp_path / 'a'
        ),
        finished(tmp_path / 'b'),
    ]
    runs.append(finished(tmp_path / 'c', tiny=True))
    lines = R.results_table(runs).splitlines()
    assert (
        'new, unfinished' in lines[2]
        and '152.00' in lines[2]
        and '100.00' in lines[3]
        and 'toy, tiny' in lines[4]
        and len(lines) == 5
    )


def test_compare_runs(tmp_path):
    a = finished(
        tmp_path / 'a', config={'name': 'a', 'model': {'d_model': 8}, 'data': {'seq_len': 35}, 'train': {'seed': 1}}
    )
    b = finished(
        tmp_path / 'b',
        config={'name': 'b', 'model': {'d_model': 9}, 'data': {'seq_len': 60}, 'train': {'seed': 2}},
        seed=1,
        perplexity=50.0,
        context_length=60,
    )
    found = R.compare_runs(a, b)
    assert found['configuration']['model.d_model'] == [8, 9] and found['environment'] == {} and found['test'] is None
    assert (
        found['validation']['unit'] == 'perplexity'
        and found['validation']['ratio'] == pytest.approx(2)
        and found['validation']['why_not'] is None
    )
    assert any('context length' in n for n in found['validation']['notes']) and found['notes'][0].startswith(
        '2 settings differ (model.d_model, data.seq_len)'
    )
    json.dumps(R.to_jsonable(found), allow_nan=False)


def test_compare_runs_that_do_not_compare(tmp_path):
    a, b = finished(tmp_path / 'a'), finished(tmp_path / 'b', tokenizer='gpt2', vocab_size=90)
    validation = R.compare_runs(a, b)['validation']
    assert validation['unit'] == 'bits_per_byte' and 'tokenizer' in validation['why_not']
    assert (
        R.compare_runs(a, finished(tmp_path / 'c', corpus='other', fingerprint='1' * 16))['validation']['unit'] is None
    )
    infinite = finished(tmp_path / 'd', perplexity=10.0)
    infinite.finish(infinite.summary | {'validation': measured() | {'perplexity': math.inf}})
    assert 'not a finite number' in R.compare_runs(a, infinite)['validation']['why_not']
    assert R.compare_runs(a, Run.create('toy', {}, out=tmp_path / 'e'))['validation'] is None


def test_curves_of_runs_at_every_stage(tmp_path):
    import matplotlib

    matplotlib.use('agg')
    import matplotlib.pyplot as plt

    empty, gaps = Run.create('empty', {}, out=tmp_path / 'a'), Run.create('gaps', {}, out=tmp_path / 'b')
    for i, nats in enumerate((900.0, math.nan, 3.0, 2.0)):
        gaps.log(step=i, tokens_seen=i, seconds=i, epoch=0, train_nats=nats, lr=0.1)
    full = finished(tmp_path / 'c')
    full.log(
        step=2,
        epoch=1,
        tokens_seen=20,
        seconds=0.2,
        split='validation',
        perplexity=90.0,
        nats_per_token=4.5,
        bits_per_byte=None,
    )
    for y in ('perplexity', 'nats_per_token', 'bits_per_byte', 'lr'):
        for x in ('tokens_seen', 'seconds', 'step', 'epoch'):
            ax = R.plot_curves([empty, gaps, full], x=x, y=y)
            ax.figure.canvas.draw()
            assert len(ax.lines) == 6
            plt.close(ax.figure)
    ax = R.plot_curves(full)
    assert ax.get_ylabel() == 'perplexity' and [t.get_text() for t in ax.texts] == ['toy']
    plt.close(ax.figure)
    ax = R.plot_curves([])
    plt.close(ax.figure)


def test_baselines_are_those_of_the_text_and_of_the_tokenizer():
    everything = R.all_baselines()
    for corpus, tokenizer in {(b['validation']['corpus'], b['validation']['tokenizer']) for b in everything}:
        rows = R.baselines(corpus, tokenizer)
        assert {(b['validation']['corpus'], b['validation']['tokenizer']) for b in rows} == {(corpus, tokenizer)}
        assert [b['validation']['context_length'] for b in rows] == sorted(
            b['validation']['context_length'] for b in rows
        )
    assert [b['validation']['perplexity'] for b in R.baselines('wikitext-2', 'word')][-3:] == pytest.approx(
        [284.73, 240.74, 232.50], abs=0.01
    )
    assert [round(b['validation']['perplexity']) for b in R.baselines('wikitext-2', 'whitespace')] == [166, 143, 139]


def test_baselines_that_are_not_there_are_told_with_those_that_are():
    for asked in (('wikitext-2', 'words'), ('toy', 'word'), ('wikitext-2-raw', 'word')):
        with pytest.raises(FileError, match='there are: .*wikitext-2 by word'):
            R.baselines(*asked)
    with pytest.raises(TypeError):
        R.baselines('wikitext-2')


def test_the_lesson_shows_the_baselines_that_it_announces():
    """The table under 'by words' holds the rows of WikiText-2 by words, and no bits per byte where the text holds
    unknown words."""
    import nbformat

    lesson = nbformat.read(Path(R.__file__).parents[2] / 'nbs' / '09_records.ipynb', 4)
    shown = [
        o['data']['text/markdown']
        for c in lesson.cells
        for o in c.get('outputs', [])
        if 'Kneser-Ney' in o.get('data', {}).get('text/markdown', '')
    ]
    assert len(shown) == 1 and 'whitespace' not in shown[0]
    cells = [[cell.strip() for cell in line.split('|')[1:-1]] for line in shown[0].splitlines() if 'Kneser-Ney' in line]
    head = [cell.strip() for cell in shown[0].splitlines()[0].split('|')[1:-1]]
    rows = R.baselines('wikitext-2', 'word')
    assert [row[head.index('validation')] for row in cells] == [f"{b['validation']['perplexity']:.2f}" for b in rows]
    assert {row[head.index('tokenizer')] for row in cells} == {'word'} and {
        row[head.index('bits/byte')] for row in cells
    } == {'–'}


def test_the_table_of_results_has_no_bits_per_byte_where_they_mean_nothing(tmp_path):
    def bits(**passport):
        return (
            R.results_table([finished(tmp_path / str(len(list(tmp_path.iterdir()))), **passport)])
            .splitlines()[2]
            .split('|')[11]
            .strip()
        )

    assert bits() != '–'
    for passport in (
        dict(num_unk=3),
        dict(corpus='wikitext-2'),
        dict(tokenizer='whitespace'),
        dict(tokenizer='bpe-note:64'),
    ):
        assert bits(**passport) == '–'
    assert all(
        R._bits(b['validation']) is None for b in R.all_baselines() if b['validation']['tokenizer'] == 'whitespace'
    )


def test_a_configuration_with_an_infinite_setting_is_refused_and_leaves_no_folder(tmp_path):
    with pytest.raises(FileError, match='optim.max_grad_norm is inf.*finite'):
        Run.create('toy', {'optim': {'max_grad_norm': math.inf}}, out=tmp_path / 'r')
    with pytest.raises(FileError, match=r'betas\[1\] is nan'):
        Run.create('toy', {'betas': (0.9, math.nan)}, out=tmp_path / 'r')
    assert not (tmp_path / 'r').exists()


def test_the_format_has_a_version_and_a_newer_one_is_told(tmp_path):
    run = finished(tmp_path / 'r')
    assert run.config['record_version'] == run.summary['record_version'] == run.record_version == 1
    for name in ('config.json', 'summary.json'):
        whole = json.loads((run.path / name).read_text())
        (run.path / name).write_text(json.dumps({k: v for k, v in whole.items() if k != 'record_version'}))
        assert Run.open(run.path).summary
        (run.path / name).write_text(json.dumps(whole | {'record_version': 2}))
        with pytest.raises(FileError, match=f'{name} is of version 2.*update'):
            Run.open(run.path).summary
        (run.path / name).write_text(json.dumps(whole))
    del run.config['record_version']
    assert run.record_version == 0


def test_a_recipes_name_cannot_lead_a_new_folder_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('../out', '/tmp/out', '..', 'a/b', 'x' * 101):
        with pytest.raises(FileError, match='--out'):
            Run.create(name, {})
    assert not list(tmp_path.rglob('out*'))


# one writer

HOLDER = (
    "import sys, time\nfrom lmcourse.training.runs import Run\nwith Run.open('r').lock():\n    print('held', flush=True);"
    " time.sleep(60)\n"
)


def test_a_run_has_one_writer_and_a_kill_frees_it(tmp_path):
    run = finished(tmp_path / 'r')
    child = subprocess.Popen([sys.executable, '-c', HOLDER], cwd=tmp_path, stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b'held\n'
        with pytest.raises(
            RecordError,
            match=(
                rf'r is being written by another process \(id {child.pid}\): wait for it, or name another folder with'
                r' --out'
            ),
        ):
            with run.lock():
                pass
        with pytest.raises(FileError, match='already holds a run'):
            Run.create('toy', {}, out=run.path)
        assert Run.open(run.path).summary and run.metrics()
    finally:
        child.kill()
        child.wait()
    with run.lock(), run.lock():
        run.log(step=2)
    with Run.open(run.path).lock():
        pass


def test_two_that_begin_in_one_folder_make_one_run(tmp_path):
    program = (
        "from lmcourse.training.runs import Run, RecordError\ninput()\ntry: Run.create('toy', {'who': %d}, out='r');"
        " print('made')\nexcept RecordError as e: print(e)"
    )
    both = [
        subprocess.Popen(
            [sys.executable, '-c', program % i], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]
    said = [None, None]
    for child in both:
        child.stdin.write('\n')
        child.stdin.flush()
    for i, child in enumerate(both):
        said[i] = child.communicate()[0].strip()
    assert said.count('made') == 1
    assert any('already holds a run' in s or 'is being written' in s for s in said)
    assert Run.open(tmp_path / 'r').config['who'] == said.index('made')


def test_a_lock_in_a_folder_that_cannot_be_written_is_told(tmp_path):
    run = finished(tmp_path / 'r')
    (tmp_path / 'r' / '.lock').unlink()
    (tmp_path / 'r' / '.lock').mkdir()
    with pytest.raises(FileError, match='cannot write'):
        with run.lock():
            pass


# checkpoints whose every part is checked


def test_a_bit_turned_over_anywhere_changes_nothing_in_silence(tmp_path):
    tensors, meta = (
        {'model/w': torch.arange(6.0), 'twin': torch.zeros(0), 'rng': torch.arange(3)},
        {
            'step': 120,
            'nats': 4.5,
            'position': [7, 9],
        },
    )
    tensors['same'] = tensors['model/w']
    path = tmp_path / 't.safetensors'
    R.save_safetensors(path, tensors, meta)
    whole = path.read_bytes()
    for at in range(len(whole) * 8):
        odd = bytearray(whole)
        odd[at // 8] ^= 1 << at % 8
        path.write_bytes(odd)
        try:
            back, about = R.load_safetensors(path)
        except FileError:
            continue
        assert (
            about == meta
            and back.keys() == tensors.keys()
            and all(torch.equal(back[k], tensors[k]) and back[k].dtype == tensors[k].dtype for k in back)
        ), at


def test_a_checkpoint_from_before_the_version_is_read(tmp_path):
    from safetensors.torch import save_file

    tensors = {'w': torch.ones(3)}
    save_file(
        tensors,
        tmp_path / 't.safetensors',
        dict(lmcourse='{"step": 3}', same='{}', crc=str(files._tensor_crc(tensors))),
    )
    assert R.load_safetensors(tmp_path / 't.safetensors')[1] == {'step': 3}
    save_file(tensors, tmp_path / 't.safetensors', dict(lmcourse='{"step": 3}', same='{}', crc='1'))
    with pytest.raises(FileError, match='is damaged'):
        R.load_safetensors(tmp_path / 't.safetensors')


@pytest.mark.parametrize(
    'weight',
    [
        torch.ones(3, dtype=torch.int64),
        torch.ones(3, dtype=torch.bool),
        torch.ones(3, dtype=torch.complex64),
        torch.tensor([1.0, math.nan]),
        torch.tensor([math.inf]),
    ],
)
def test_weights_are_floating_and_finite(tmp_path, weight):
    run = finished(tmp_path / 'r')
    for name, key in (('best', 'w'), ('last', 'w'), ('state', 'model/w')):
        run.save(name, {key: weight})
        with pytest.raises(FileError, match=f'{name}.safetensors .*{key}'):
            run.load(name)


def test_a_state_holds_more_than_weights(tmp_path):
    run = finished(tmp_path / 'r')
    run.save('state', {'model/w': torch.ones(2), 'rng/cpu': torch.get_rng_state(), 'optimizer/0/step': torch.tensor(3)})
    assert set(run.load('state')[0]) == {'model/w', 'rng/cpu', 'optimizer/0/step'}


def test_a_whole_checkpoint_in_a_folder_whose_name_is_not_utf8_is_read(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b'/r\xe9sum\xff'))
    run = finished(folder)
    run.save('best', {'w': torch.ones(3)})
    assert torch.equal(Run.open(folder).load('best')[0]['w'], torch.ones(3))
    (folder / 'best.safetensors').write_bytes(b'x' * 40)
    with pytest.raises(FileError, match='is damaged'):
        run.load('best')


def test_a_whole_checkpoint_that_the_library_refuses_is_not_to_be_deleted(tmp_path):
    header = json.dumps({'w': {'dtype': 'F99', 'shape': [1], 'data_offsets': [0, 4]}}).encode()
    (tmp_path / 't.safetensors').write_bytes(len(header).to_bytes(8, 'little') + header + bytes(4))
    with pytest.raises(FileError, match='may be whole: keep it'):
        R.load_safetensors(tmp_path / 't.safetensors')


# whatever lies in a folder

HOSTILE = [
    b'',
    b'null',
    b'7',
    b'[]',
    b'"x"',
    b'{',
    b'\xff\xfe',
    b'[' * 100_000,
    b'{"a":' * 900 + b'1' + b'}' * 900,
    b'{"epochs": ' + b'9' * 5000 + b'}',
    b'{"recipe": [], "seed": {}}',
    b'{"recipe": "x", "seed": "y"}',
    b'{"validation": 7}',
    b'{"validation": {"perplexity": "a"}}',
    b'{"validation": {"perplexity": [1]}}',
    b'{"validation": {"unknown": {}}}',
    b'{"epochs": "many"}',
    b'{"tokens_seen": {}}',
    b'{"seconds": 1e999}',
    b'{"parameters": ' + b'9' * 4000 + b'}',
    b'{"record_version": "x"}',
    b'{"test": []}',
    b'{"finished": 3}',
    b'{"recipe": "$\\\\href{a}{b}$", "validation": {"perplexity": 3}}',
    b'{"recipe": null, "seed": null, "validation": {"perplexity": null}}',
]


@pytest.mark.parametrize('name', ['config.json', 'summary.json', 'environment.json', 'metrics.jsonl'])
def test_hostile_files_give_a_sentence_or_a_row(tmp_path, name, capsys):
    import matplotlib

    matplotlib.use('agg')
    import matplotlib.pyplot as plt

    other = finished(tmp_path / 'runs' / 'other')
    run = finished(tmp_path / 'runs' / 'r')
    for content in HOSTILE:
        (run.path / name).write_bytes(content + b'\n' * (name == 'metrics.jsonl'))
        found = R.records(tmp_path / 'runs')
        assert any(r.name == 'other' for r in found)
        R.results_table(found)
        for act in (
            lambda: R.compare_runs(Run.open(run.path), other),
            lambda: R.publish(run.path, tmp_path / 'shelf'),
            lambda: R.best_record('toy', tmp_path / 'runs'),
            lambda: R.plot_curves(Run.open(run.path)).figure.canvas.draw(),
        ):
            try:
                act()
            except FileError:
                pass
        plt.close('all')


def test_a_damaged_run_does_not_end_a_table_of_results(tmp_path, capsys):
    for i in range(3):
        finished(tmp_path / f'r{i}', seed=i)
    (tmp_path / 'r1' / 'config.json').write_text('{')
    assert [r.seed for r in R.records(tmp_path)] == [0, 2]
    said = capsys.readouterr()
    assert said.out == '' and said.err.count('\n') == 1 and 'left out' in said.err and 'r1' in said.err


@pytest.mark.parametrize(
    'name', ['config.json', 'summary.json', 'environment.json', 'metrics.jsonl', 'best.safetensors']
)
@pytest.mark.parametrize('kind', ['pipe', 'device', 'loop', 'folder', 'huge'])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, name, kind):
    run = finished(tmp_path / 'r')
    path = run.path / name
    path.unlink(missing_ok=True)
    if kind == 'pipe':
        os.mkfifo(path)
    if kind == 'device':
        path.symlink_to('/dev/zero')
    if kind == 'loop':
        path.symlink_to(path)
    if kind == 'folder':
        path.mkdir()
    if kind == 'huge':
        with open(path, 'wb') as f:
            f.truncate(2**41)

    def read():
        again = Run.open(run.path)
        return again.summary, again.environment, again.metrics(), again.load('best')

    with pytest.raises(FileError) as e:
        read()
    assert name in str(e.value)
    if kind == 'loop' and name != 'summary.json':
        assert 'leads back to itself' in str(e.value)


def test_a_run_that_was_stopped_before_its_first_save_is_told_as_that(tmp_path):
    run = Run.create('toy', {}, out=tmp_path / 'r')
    with pytest.raises(FileError, match='stopped before it had saved anything: delete that folder'):
        run.load('state')
    with pytest.raises(FileError, match='saved nothing so far.*delete that folder'):
        Run.create('toy', {}, out=tmp_path / 'r')


def test_the_results_of_many_runs_read_each_file_once(tmp_path, monkeypatch):
    for i in range(20):
        finished(tmp_path / f'r{i}', seed=i, perplexity=100.0 + i)
    read, real = [], files.read_bytes
    monkeypatch.setattr(files, 'read_bytes', lambda path, most: read.append(str(path)) or real(path, most))
    runs = [r for r in R.records(tmp_path) if r.summary]
    assert len(R.results_table(runs).splitlines()) == 22 and [r.summary['seed'] for r in runs] == list(range(20))
    assert len(read) == len(set(read)) == 40


def test_a_summary_that_changes_is_seen(tmp_path):
    run = finished(tmp_path / 'r')
    assert run.summary['finished']
    Run.open(run.path).finish({'finished': False})
    assert not run.summary['finished']


# publishing, and what a record says of whose it is


def test_a_record_of_another_run_is_never_replaced(tmp_path):
    one, two = finished(tmp_path / 'a' / 'r'), finished(tmp_path / 'b' / 'r', perplexity=50.0)
    two.truncate(0)
    two.log(step=1, epoch=0, tokens_seen=10, seconds=0.2, train_nats=3.9, lr=1e-3)
    to = R.publish(one, tmp_path / 'shelf')
    before = {p.name: p.read_bytes() for p in to.iterdir()}
    with pytest.raises(FileError, match='record of another run: rename the folder'):
        R.publish(two, tmp_path / 'shelf')
    assert {p.name: p.read_bytes() for p in to.iterdir()} == before
    assert R.publish(one, tmp_path / 'shelf') == to


@pytest.mark.parametrize(
    'corpus',
    [
        'anna/novel.txt',
        './anna/novel.txt',
        '../anna/novel.txt/',
        '~/anna/novel.txt',
        r'C:\anna\novel.txt',
        r'anna\novel.txt',
        '/home/anna/novel.txt',
    ],
)
def test_a_corpus_leaves_no_folder_in_a_record(tmp_path, corpus):
    run = finished(tmp_path / 'r', config={'data': {'corpus': corpus}}, corpus=corpus)
    to = R.publish(run, tmp_path / 'shelf')
    assert all('anna' not in p.read_text() for p in to.iterdir()) and Run(to).config['data']['corpus'] == 'novel.txt'


# Markdown


@pytest.mark.parametrize(
    'value',
    [
        '<b>x</b>',
        '\\<script>alert(1)</script>',
        '\\\\<b>',
        'a\rb',
        'a\r\n\n# b',
        '[x](javascript:y)',
        '![x](y)',
        '`x`',
        '$\\href{a}{b}$',
        'a|b\\|c',
        '{role}`x`',
        '&lt;b&gt;',
        'a\u2028b',
        'a\x85b',
        '***',
        'x\\',
        '<!-- records -->',
        '[x]: y',
        '~~x~~',
    ],
)
def test_a_value_is_shown_letter_by_letter(value):
    "Read by the parser that makes the site, with nothing but text in it."
    from markdown_it import MarkdownIt

    text = R.markdown_text(value)
    tokens = MarkdownIt('commonmark', {'html': True}).enable('strikethrough').parse(f'**{text}.**')[1].children
    assert {t.type for t in tokens} <= {'text', 'strong_open', 'strong_close', 'text_special'}
    table = MarkdownIt('commonmark', {'html': True}).enable('table').parse(R.markdown_table([{'a': value, 'b': 'end'}]))
    cells = [t for t in table if t.type == 'inline'][2:]
    assert (
        len(cells) == 2
        and cells[1].content == 'end'
        and all(t.type in ('text', 'text_special') for t in cells[0].children)
    )
