"""Several processes make the run that one makes; a stop is no trace, only the first writes, and whoever is left alone
says so."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import lmcourse.training.distributed as S
from lmcourse.cli import main
from lmcourse.training.checkpoint import named_weights
from lmcourse.training.distributed import (
    DDPTrainer,
    allreduce_bytes,
    fit_distributed,
    local_device,
    rank_and_world_size,
    shard_batch,
    step_seed,
)
from lmcourse.training.recipes import get_recipe, override, tiny
from lmcourse.training.runs import Run
from lmcourse.training.trainer import Trainer, TrainingError, count_targets, from_checkpoint, train

BIN = Path(sys.executable).parent
ALONE = {k: v for k, v in os.environ.items() if k not in ('LMCOURSE_DATA', 'RANK', 'WORLD_SIZE')} | dict(
    HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1'
)
FILES = {
    'config.json',
    'environment.json',
    'tokenizer.json',
    'metrics.jsonl',
    'summary.json',
    'best.safetensors',
    'last.safetensors',
    'state.safetensors',
}


def recipe(corpus, **changes):
    "The small version of the note's largest model on a text of which one row is left at the end of a pass, two passes."
    fixed = {
        'model.dropout': 0,
        'data.batch_size': 8,
        'data.seq_len': 16,
        'train.precision': 'fp32',
        'train.device': 'cpu',
        'train.epochs': 2,
        'train.max_steps': None,
        'train.log_every': 1,
        'train.eval_every': 10,
    }
    return override(
        tiny(get_recipe('chinchilla-4'), str(corpus)), fixed | {k.replace('__', '.'): v for k, v in changes.items()}
    )


def text(folder):
    "A text with as many rows as leave one window over."
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / 'mine.txt'
    for n in range(400, 440):
        path.write_text(
            ''.join(
                f'{"the a one no".split()[i % 4]} {"cat dog bird".split()[i * i % 3]}'
                f' {"sat ran slept".split()[i // 2 % 3]} {"here there".split()[i * i // 3 % 2]}\n'
                for i in range(n)
            )
        )
        t = Trainer(recipe(path), folder / f'probe {n}', show=False)
        if t.batches.num_windows % 8 == 1:
            return path
    raise AssertionError('no such text')


def rows(run):
    return [
        (m['step'], m['tokens_seen'], m.get('lr'), m.get('train_nats', m.get('perplexity')), m.get('grad_norm'))
        for m in run.metrics()
    ]


def two(*command, env=None):
    "A Python command in two processes, as torchrun would start it: [(status, output, errors)]."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    told = [
        ALONE
        | dict(
            RANK=str(r),
            WORLD_SIZE='2',
            LOCAL_RANK=str(r),
            LOCAL_WORLD_SIZE='2',
            MASTER_ADDR='127.0.0.1',
            MASTER_PORT=str(port),
        )
        | (env or {})
        for r in range(2)
    ]
    both = [
        subprocess.Popen(
            [sys.executable, *map(str, command)], env=e, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for e in told
    ]
    try:
        return [(p.returncode, *out) for p in both if (out := p.communicate(timeout=300))]
    finally:
        for p in both:
            p.kill()


def as_one_of_two(folder, corpus):
    "What each of the two processes of the fixture does."
    import lmcourse.training.trainer as T

    def go(name, **changes):
        t = DDPTrainer(recipe(corpus, **changes), folder / name, show=False)
        assert (t.run is None) == bool(t.rank)
        assert (fit_distributed(t) is None) == bool(t.rank)
        torch.save([t.state.step, torch.initial_seed(), named_weights(t.model)], folder / f'{name} {t.rank}.pt')
        return t

    go('dry')
    go('grouped', optim__grad_accum_steps=3)
    go('wet', model__dropout=0.3)
    why = T.Trainer.stop_reason
    for name, changes in dict(dry={}, wet={'model__dropout': 0.3}).items():
        T.Trainer.stop_reason = lambda t, asked: 'interrupted' if t.state.step == 7 else why(t, asked)
        go(f'{name} stopped', **changes)
        T.Trainer.stop_reason = why
        if name == 'wet':
            fit_distributed(from_checkpoint(folder / 'wet stopped', False, DDPTrainer))
    try:
        DDPTrainer(recipe(corpus, data__batching='stateful'), folder / 'stateful')
    except TrainingError as e:
        (folder / f'lanes {rank_and_world_size()[0]}.txt').write_text(str(e))


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "The runs of two processes, in a folder."
    d = tmp_path_factory.mktemp('several')
    with pytest.MonkeyPatch.context() as m:
        m.setenv('LMCOURSE_CACHE', str(d / 'cache'))
        m.chdir(d)
        corpus = text(d / 'text')
        done = two(__file__, d, corpus, env=dict(LMCOURSE_CACHE=str(d / 'cache')))
        for status, out, err in done:
            assert status == 0, err
        yield d, corpus


def near(a, b):
    a, b = rows(a), rows(b)
    assert [r[:3] for r in a] == [r[:3] for r in b]
    assert [r[3] for r in a] == pytest.approx([r[3] for r in b], rel=1e-4)
    assert [r[4] for r in a if r[4]] == pytest.approx([r[4] for r in b if r[4]], rel=1e-3)


@pytest.mark.parametrize('name, changes', [('dry', {}), ('grouped', {'optim__grad_accum_steps': 3})])
def test_two_processes_make_the_run_of_one(made, name, changes):
    d, corpus = made
    team, alone = Run.open(d / name), train(recipe(corpus, **changes), d / f'{name} alone', show=False)
    near(team, alone)
    tokens = [r[1] for r in rows(alone)]
    if name == 'dry':
        assert 0 < min(b - a for a, b in zip(tokens, tokens[1:]) if b > a) <= 16, 'a batch of one row was among them'
    assert team.config == alone.config and team.summary['device'] == '2 x cpu' and alone.summary['device'] == 'cpu'
    for split in ('validation', 'test'):
        assert team.summary[split]['perplexity'] == pytest.approx(alone.summary[split]['perplexity'], rel=1e-4)


@pytest.mark.parametrize('name', ['dry', 'grouped', 'wet'])
def test_both_end_with_the_same_weights_after_the_same_steps(made, name):
    (steps, drawn, first), (also, otherwise, second) = (torch.load(made[0] / f'{name} {r}.pt') for r in range(2))
    last, meta = Run.open(made[0] / name).load('last')  # the first has its best weights again by then
    assert [drawn, otherwise] == [step_seed(0, steps - 1, r) for r in range(2)]
    assert steps == also == meta['step'] and first.keys() == second.keys() == last.keys()
    assert all(torch.equal(p, last[k]) for k, p in second.items())


def test_a_stop_leaves_no_trace(made):
    d, _ = made
    whole, parts = Run.open(d / 'wet'), Run.open(d / 'wet stopped')
    assert rows(parts) == rows(whole) and parts.summary['test'] == whole.summary['test']
    for name in ('best', 'last'):
        assert all(torch.equal(v, whole.load(name)[0][k]) for k, v in parts.load(name)[0].items())


def test_one_process_goes_on_where_two_were_stopped(made):
    d, _ = made
    assert Run.open(d / 'dry stopped').summary['stopped'] == 'interrupted'
    near(from_checkpoint(d / 'dry stopped', show=False).fit(), Run.open(d / 'dry'))


def test_dropout_is_drawn_for_each_process_and_step(made):
    assert len({step_seed(s, n, r) for s in (0, 1) for n in range(100) for r in range(8)}) == 1600
    a, b = rows(Run.open(made[0] / 'wet')), rows(Run.open(made[0] / 'dry'))
    assert all(abs(x[3] - y[3]) > 1e-4 for x, y in zip(a, b) if x[4])


def test_lanes_are_refused_by_both_and_only_the_first_writes(made):
    d, _ = made
    for r in range(2):
        assert (
            (d / f'lanes {r}.txt').read_text()
            == 'data.batching is stateful, whose state each process would have to carry and store: train in one process, or set data.batching to windows'
        )
    assert (
        {p.parent.name for p in d.glob('*/config.json')} >= {'dry', 'grouped', 'wet', 'wet stopped', 'dry stopped'}
        and not (d / 'stateful').exists()
        and not (d / 'runs').exists()
    )
    for name in ('dry', 'grouped', 'wet', 'wet stopped'):
        assert {p.name for p in (d / name).iterdir()} == FILES | {'.lock', '.writer'}


@pytest.mark.parametrize('size', [1, 2, 3, 7])
@pytest.mark.parametrize('B', [1, 2, 6, 7])
def test_shares_are_the_batch(B, size):
    x_BT, y_BT = torch.arange(B * 5).view(B, 5), torch.arange(B * 5).view(B, 5) + 100
    parts = [shard_batch((x_BT, y_BT), r, size) for r in range(size)]
    assert all(len(x) == len(y) >= 1 for x, y in parts) and sum(count_targets([p]) for p in parts) == B * 5
    assert sorted(torch.cat([y.flatten() for _, y in parts if count_targets([(_, y)])]).tolist()) == sorted(
        y_BT.flatten().tolist()
    )
    counts = [count_targets([p]) for p in parts]
    assert max(counts) - min(counts) <= 5


def test_where_a_process_belongs(monkeypatch):
    for k in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE'):
        monkeypatch.delenv(k, raising=False)
    assert rank_and_world_size() == (0, 1) and local_device('cpu').type == 'cpu'
    monkeypatch.setenv('RANK', '5')
    assert rank_and_world_size() == (0, 1)
    for k, v in dict(WORLD_SIZE='8', LOCAL_RANK='1', LOCAL_WORLD_SIZE='4').items():
        monkeypatch.setenv(k, v)
    assert rank_and_world_size() == (5, 8)
    set_to = []
    monkeypatch.setattr(torch.cuda, 'set_device', set_to.append)
    monkeypatch.setattr(
        S, 'pick_device', lambda name: torch.device({'auto': 'cuda:1', 'cuda': 'cuda:1'}.get(name, name))
    )
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    assert (
        local_device('auto') == local_device('cuda') == torch.device('cuda:1')
        and local_device('cpu').type == 'cpu'
        and set_to == [1, 1]
    )
    for name in ('cuda:1', 'mps'):
        with pytest.raises(TrainingError, match=f'{name} is one device, and the processes are several'):
            local_device(name)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    with pytest.raises(TrainingError, match='4 processes were started on a machine with 1 GPU:'):
        local_device('auto')
    assert local_device('cpu').type == 'cpu'


def test_bytes_on_the_way():
    assert (
        allreduce_bytes(1000, 1) == 0
        and allreduce_bytes(1000, 2) == 4000
        and allreduce_bytes(1000, 4) == 6000
        and allreduce_bytes(1000, 1000) < 8000
    )


BROKEN = '''
import os, sys
import lmcourse.training.distributed as S
take = S.DDPTrainer.train_step
def broken(self, group):
    if self.state.step == 3 and self.rank == int(sys.argv[1]): raise RuntimeError("out of order")
    return take(self, group)
S.DDPTrainer.train_step = broken
from lmcourse.cli import main
sys.exit(main(sys.argv[2:]))
'''


@pytest.mark.parametrize('rank', [0, 1])
def test_a_process_that_fails_ends_both_with_a_sentence(tmp_path, made, rank):
    tic = time.monotonic()
    done = two(
        '-c',
        BROKEN,
        rank,
        'run',
        'chinchilla-4',
        '--tiny',
        '--corpus',
        made[1],
        '--device',
        'cpu',
        '--out',
        tmp_path / 'run',
        env=dict(LMCOURSE_CACHE=str(made[0] / 'cache')),
    )
    assert time.monotonic() - tic < 240 and all(out == '' for _, out, _ in done)
    status, _, err = done[rank]
    assert status == 1 and err == f'lmcourse{", process 1" if rank else ""}: out of order\n'
    status, _, err = done[1 - rank]
    if rank:
        assert status == 1 and err.startswith('lmcourse: another of the processes has ended') and err.count('\n') == 1
    else:
        assert err == '' and status == 0, 'the first has said it, and answers for both'


def torchrun(d, *words, cwd, ask=None):
    "The command of the lesson: (status, output, errors); with `ask`, interrupted when that is true."
    p = subprocess.Popen(
        [BIN / 'torchrun', '--standalone', '--nproc-per-node', '2', '--no-python', BIN / 'lmcourse', *map(str, words)],
        cwd=cwd,
        text=True,
        env=ALONE | dict(LMCOURSE_CACHE=str(d / 'cache')),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        for _ in range(3000):
            if ask is None or ask() or p.poll() is not None:
                break
            time.sleep(0.05)
        if ask:
            p.send_signal(signal.SIGINT)
        out, err = p.communicate(timeout=300)
        return p.returncode, out, err
    finally:
        p.kill()


def test_the_command_is_interrupted_and_goes_on(tmp_path, made):
    d, corpus = made
    words = [
        '--tiny',
        '--corpus',
        corpus,
        '--device',
        'cpu',
        '--train.precision',
        'fp32',
        '--model.dropout',
        '0',
        '--data.batch_size',
        '8',
        '--data.seq_len',
        '16',
        '--train.log_every',
        '1',
        '--epochs',
        '400',
        '--max-steps',
        '100000',
    ]
    curve = lambda: list(tmp_path.glob('runs/*/metrics.jsonl'))
    torchrun(
        d,
        'run',
        'chinchilla-4',
        *words,
        cwd=tmp_path,
        ask=lambda: curve() and len(curve()[0].read_text().splitlines()) > 3,
    )
    (folder,) = tmp_path.glob('runs/*')
    s = Run.open(folder).summary
    assert s['stopped'] == 'interrupted' and s['steps'] >= 3
    status, out, err = torchrun(
        d, 'run', 'chinchilla-4', '--resume', '--max-steps', s['steps'] + 5, '--json', cwd=tmp_path
    )
    answer = json.loads(out)
    assert (status, answer['steps'], answer['device'], answer['stopped']) == (
        0,
        s['steps'] + 5,
        '2 x cpu',
        'max_steps',
    ) and out.count('\n') == 1
    assert (
        list(tmp_path.glob('runs/*')) == [folder]
        and {p.name for p in folder.iterdir()} == FILES | {'.lock', '.writer'}
        and 'Warning' not in err
    )
    assert [m['step'] for m in Run.open(folder).metrics() if 'train_nats' in m] == list(range(1, s['steps'] + 6))


LONG = [
    '--tiny',
    '--device',
    'cpu',
    '--train.precision',
    'fp32',
    '--data.batch_size',
    '8',
    '--data.seq_len',
    '16',
    '--train.log_every',
    '1',
    '--epochs',
    '400',
    '--max-steps',
    '100000',
]


def until(true, seconds=120):
    "Waits for something that other processes do."
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, 'it did not come'
        time.sleep(0.05)


def gone(number):
    "Whether a process has ended; one that nobody has waited for yet counts."
    try:
        return Path(f'/proc/{number}/stat').read_text().rpartition(')')[2].split()[0] == 'Z'
    except FileNotFoundError:
        return True


@pytest.mark.parametrize('rank', [0, 1])
def test_a_request_to_end_that_reaches_any_process_ends_all_and_saves(tmp_path, made, rank):
    d, corpus = made
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    told = [
        ALONE
        | dict(
            RANK=str(r),
            WORLD_SIZE='2',
            LOCAL_RANK=str(r),
            LOCAL_WORLD_SIZE='2',
            MASTER_ADDR='127.0.0.1',
            MASTER_PORT=str(port),
            LMCOURSE_CACHE=str(d / 'cache'),
        )
        for r in range(2)
    ]
    both = [
        subprocess.Popen(
            [BIN / 'lmcourse', 'run', 'chinchilla-4', *LONG, '--corpus', corpus, '--out', tmp_path / 'run'],
            env=e,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for e in told
    ]
    try:
        until(lambda: (tmp_path / 'run' / 'metrics.jsonl').exists())
        both[rank].send_signal(signal.SIGTERM)
        errors = [p.communicate(timeout=60)[1] for p in both]
    finally:
        for p in both:
            p.kill()
    assert [p.returncode for p in both] == [130, 0]
    assert '--resume' in errors[0] and not errors[1]
    run = Run.open(tmp_path / 'run')
    assert run.summary['stopped'] == 'interrupted'
    assert run.load('state')[1]['step'] == run.summary['steps'] == run.metrics()[-1]['step']


@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='asks Linux for the children of a process')
def test_no_process_trains_on_when_torchrun_was_killed(tmp_path, made):
    d, corpus = made
    p = subprocess.Popen(
        [
            BIN / 'torchrun',
            '--standalone',
            '--nproc-per-node',
            '2',
            '--no-python',
            BIN / 'lmcourse',
            'run',
            'chinchilla-4',
            *LONG,
            '--corpus',
            str(corpus),
            '--out',
            str(tmp_path / 'run'),
        ],
        env=ALONE | dict(LMCOURSE_CACHE=str(d / 'cache')),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    workers = []
    try:
        until(lambda: (tmp_path / 'run' / 'metrics.jsonl').exists())
        workers = [int(w) for f in Path(f'/proc/{p.pid}/task').glob('*/children') for w in f.read_text().split()]
        assert len(workers) == 2
        p.kill()
        p.wait()
        until(lambda: all(map(gone, workers)), 60)
    finally:
        p.kill()
        for w in workers:
            if not gone(w):
                os.kill(w, signal.SIGKILL)
    assert Run.open(tmp_path / 'run').summary['stopped'] == 'interrupted'


if __name__ == '__main__':
    as_one_of_two(Path(sys.argv[1]), sys.argv[2])


@pytest.mark.parametrize('words', [['list'], ['list', '--json'], ['baseline', 'markov', '--order', '1'], ['results']])
def test_what_is_not_shared_is_said_once(words, monkeypatch, capsys):
    "Under torchrun every process is given the command; the first alone carries it out."
    monkeypatch.setenv('WORLD_SIZE', '2')
    said = []
    for rank in (0, 1):
        monkeypatch.setenv('RANK', str(rank))
        assert main(words) == 0
        said.append(capsys.readouterr().out)
    assert said[0] and not said[1]
