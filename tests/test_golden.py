"The numerics of training, held to curves that were made once: a change that moves them must be meant."

import json
from pathlib import Path
import pytest
from lmcourse.training.recipes import get_recipe, override, tiny
from lmcourse.training.trainer import train

GOLDEN = Path(__file__).parent / 'golden'
NAMES = ['lstm-a', 'gru-a', 'lstm-b', 'gru-b', 'chinchilla-1', 'chinchilla-1-tuned']


def curve(name, folder):
    "Training and validation losses of the small twin on the made source, in single precision."
    r = override(tiny(get_recipe(name), corpus='markov'), {'train.precision': 'fp32', 'train.eval_every': 25})
    run = train(r, folder, show=False)
    return [m.get('train_nats', m.get('nats_per_token')) for m in run.metrics()]


@pytest.mark.parametrize('name', NAMES)
def test_curve(name, tmp_path, monkeypatch):
    monkeypatch.setenv('LMCOURSE_CACHE', str(tmp_path / 'cache'))
    want = json.loads((GOLDEN / f'{name}.json').read_text())
    assert curve(name, tmp_path / 'run') == pytest.approx(want, rel=2e-3)
    assert want[-1] < want[0] - 0.3, 'it has learnt something'
    if name.startswith(('lstm', 'gru')):
        assert want[0] == pytest.approx(3.26, abs=0.1), 'it starts near ln 26'


if __name__ == '__main__':
    import tempfile

    for name in NAMES:
        with tempfile.TemporaryDirectory() as d:
            (GOLDEN / f'{name}.json').write_text(json.dumps([round(x, 6) for x in curve(name, Path(d) / 'run')]) + '\n')
