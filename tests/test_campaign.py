"A campaign: many runs under one clock, on a machine that has nothing but torch and a few libraries."

import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import pytest

from lmcourse.experiments.campaign import CampaignError, load_campaign, run_campaign, run_state
from lmcourse.training.recipes import RecipeError

QUIET = dict(device='cpu', log_fn=lambda line: None)
LACKING = (
    'fastcore',
    'fastprogress',
    'datasets',
    'ipywidgets',
    'anywidget',
    'traitlets',
    'nbdev',
    'jupyterlab',
    'IPython',
    'scipy',
    'huggingface_hub',
)
BLOCK = f"""import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {LACKING}: raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
sys.meta_path.insert(0, Absent())
"""


def toml(path, *runs):
    path.write_text('\n'.join(f'[[run]]\n{run}\n' for run in runs))
    return path


def small(steps=4, **more):
    return '\n'.join(
        [
            'recipe = "gru-a"',
            'tiny = true',
            'corpus = "markov"',
            f'fields = {{ "train.max_steps" = {steps} }}',
            *(f'{k} = {v}' for k, v in more.items()),
        ]
    )


@pytest.mark.parametrize(
    'words',
    [
        ['list'],
        ['run', 'lstm-a', '--tiny', '--corpus', 'markov', '--max-steps', '2', '--out', 'r'],
        ['eval', 'r', '--device', 'cpu'],
        ['campaign', 'c.toml', '--out', 'c', '--device', 'cpu'],
        ['results'],
        ['--version'],
    ],
)
def test_a_plain_machine_is_enough(words, tmp_path_factory):
    "The commands of a campaign, with everything blocked that a plain machine with a GPU lacks."
    folder = tmp_path_factory.getbasetemp() / 'plain'
    folder.mkdir(exist_ok=True)
    toml(folder / 'c.toml', small(2))
    if words[0] == 'eval' and not (folder / 'r').exists():
        pytest.skip('made by the test before')
    done = subprocess.run(
        [sys.executable, '-c', f'{BLOCK}from lmcourse.cli import main; sys.exit(main({words!r}))'],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_expectation_beside_result_and_everything_packed(tmp_path):
    rows = run_campaign(
        toml(tmp_path / 'c.toml', small(4, seeds='[0, 1]', expected='26.0')), tmp_path / 'out', jobs=2, **QUIET
    )
    assert [(r['recipe'], r['seed'], r['expected'], r['state'], r['steps']) for r in rows] == [
        ('gru-a', 0, 26.0, 'done', 4),
        ('gru-a', 1, 26.0, 'done', 4),
    ]
    assert all(r['measured'] > 1 for r in rows)
    assert json.loads((tmp_path / 'out' / 'campaign.json').read_text()) == rows
    with tarfile.open(tmp_path / 'out' / 'campaign.tar.gz') as archive:
        names = set(archive.getnames())
    assert {'campaign.json', 'gru-a-s0/summary.json', 'gru-a-s1/metrics.jsonl', 'gru-a-s0/log.txt'} <= names
    assert not any(n.endswith(('state.safetensors', 'last.safetensors')) for n in names)


def test_one_that_fails_takes_nothing_with_it(tmp_path):
    bad = small(4, seeds='[7]').replace('4 }', '4, "optim.lr" = 1e6, "optim.max_grad_norm" = 0 }')
    rows = run_campaign(toml(tmp_path / 'c.toml', bad, small(4)), tmp_path / 'out', **QUIET)
    assert [r['state'] for r in rows] == ['failed', 'done']


def test_the_clock_stops_a_run_and_another_call_goes_on(tmp_path):
    file = toml(tmp_path / 'c.toml', small(100_000).replace('100000', '100000, "train.epochs" = 1000'))
    rows = run_campaign(file, tmp_path / 'out', max_minutes=0.25, **QUIET)
    assert rows[0]['state'] == 'stopped'
    before = rows[0]['steps']
    assert before > 0
    rows = run_campaign(file, tmp_path / 'out', max_minutes=0.2, **QUIET)
    assert rows[0]['steps'] > before


@pytest.mark.parametrize('sign, status', [(signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_stopped_by_hand_everything_is_saved_and_nobody_is_left(sign, status, tmp_path):
    file = toml(
        tmp_path / 'c.toml',
        small(100_000, seeds='[0, 1]').replace('100000', '100000, "train.epochs" = 1000, "train.eval_every" = 100000'),
    )
    env = os.environ | {'OMP_NUM_THREADS': '1'}
    p = subprocess.Popen(
        [
            sys.executable,
            '-m',
            'lmcourse',
            'campaign',
            str(file),
            '--out',
            str(tmp_path / 'out'),
            '--jobs',
            '2',
            '--device',
            'cpu',
        ],
        env=env,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    curves = [tmp_path / 'out' / f'gru-a-s{k}' / 'metrics.jsonl' for k in (0, 1)]
    deadline = time.time() + 90
    while time.time() < deadline and not all(c.exists() for c in curves):
        time.sleep(0.2)
    p.send_signal(sign)
    try:
        p.communicate(timeout=90)
    finally:
        if p.poll() is None:
            p.kill()
    assert p.returncode == status
    assert [run_state(c.parent) for c in curves] == ['stopped', 'stopped']
    assert (tmp_path / 'out' / 'campaign.tar.gz').exists()


@pytest.mark.parametrize(
    'text, error, says',
    [
        ('', CampaignError, 'has no runs'),
        ('[[run]]\nrecipe = "lstm-z"', RecipeError, 'no recipe'),
        ('[[run]]\nseeds = [1]', CampaignError, 'names no recipe'),
        ('[[run', CampaignError, 'no TOML'),
        ('[[run]]\nrecipe = "lstm-a"\nx = 1', CampaignError, 'has x'),
        ('[[run]]\nrecipe = "lstm-a"\n[[run]]\nrecipe = "lstm-a"', CampaignError, 'twice'),
        ('[[run]]\nrecipe = "lstm-a"\nfields = { "optim.lrr" = 1 }', RecipeError, 'lrr'),
    ],
)
def test_a_file_that_asks_for_what_is_not_there(text, error, says, tmp_path):
    (tmp_path / 'c.toml').write_text(text)
    with pytest.raises(error, match=says):
        load_campaign(tmp_path / 'c.toml')


@pytest.mark.parametrize('name', ['gpu', 'rehearsal'])
def test_what_travels_can_be_read(name):
    assert load_campaign(name)
