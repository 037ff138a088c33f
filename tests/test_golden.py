"The numerics of training, held to curves that were made once: a change that moves them must be meant."

import json
import math
import signal
import sys
import tempfile
from pathlib import Path

import pytest

from lmcourse.training.recipes import get_recipe, override, tiny
from lmcourse.training.trainer import Trainer, from_checkpoint

GOLDEN = Path(__file__).parent / 'golden'
NAMES = ['lstm-a', 'gru-a', 'lstm-b', 'gru-b', 'chinchilla-1', 'chinchilla-1-tuned', 'lstm-tuned', 'awd-lstm']
EVAL_EVERY = {'awd-lstm': 5}  # steps; often enough for NT-ASGD to begin its average at step 35 of 50


def trainer(name, folder):
    "The small version on the made source, in single precision."
    changes = {'train.precision': 'fp32', 'train.eval_every': EVAL_EVERY.get(name, 25)}
    return Trainer(override(tiny(get_recipe(name), corpus='markov'), changes), folder, show=False)


def curve(run):
    "Training and validation losses."
    return [m.get('train_nats', m.get('nats_per_token')) for m in run.metrics()]


def golden(name):
    return json.loads((GOLDEN / f'{name}.json').read_text())


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('LMCOURSE_CACHE', str(tmp_path / 'cache'))


@pytest.mark.parametrize('name', NAMES)
def test_curve(name, tmp_path):
    want = golden(name)
    assert curve(trainer(name, tmp_path / 'run').fit()) == pytest.approx(want, rel=2e-3)
    if name in ('lstm-tuned', 'awd-lstm'):  # one starts from the words' frequencies, the other at a rate of 30
        assert want[-1] < math.log(26) - 0.15, 'it is better than 26 words that are alike'
    else:
        assert want[-1] < want[0] - 0.3, 'it has learnt something'
    if name in ('lstm-a', 'gru-a', 'lstm-b', 'gru-b'):
        assert want[0] == pytest.approx(3.26, abs=0.1), 'it starts near ln 26'


def test_a_curve_through_two_resumes(tmp_path, monkeypatch):
    "AWD-LSTM stopped before and after its average begins: the uninterrupted curve to the last bit, and the golden."
    whole = trainer('awd-lstm', tmp_path / 'whole').fit()
    step = Trainer.train_step

    def step_and_interrupt(self, group):
        if self.state.step in (17, 37):
            signal.raise_signal(signal.SIGINT)
        return step(self, group)

    monkeypatch.setattr(Trainer, 'train_step', step_and_interrupt)
    last, ended = trainer('awd-lstm', tmp_path / 'parts'), []
    while ended[-1:] != ['max_steps']:
        last = from_checkpoint(tmp_path / 'parts', show=False) if ended else last
        parts = last.fit()
        ended.append(parts.summary['stopped'])
    assert ended == ['interrupted', 'interrupted', 'max_steps']
    assert {int(last.optimizer.state[p]['step']) for p in last.model.parameters()} == {15}, 'steps in the average'
    assert curve(parts) == curve(whole)
    assert parts.summary['test'] == whole.summary['test']
    assert curve(whole) == pytest.approx(golden('awd-lstm'), rel=2e-3)


if __name__ == '__main__':  # python tests/test_golden.py makes all of them, or those that are named
    for name in sys.argv[1:] or NAMES:
        with tempfile.TemporaryDirectory() as d:
            made = curve(trainer(name, Path(d) / 'run').fit())
            (GOLDEN / f'{name}.json').write_text(json.dumps([round(x, 6) for x in made]) + '\n')
