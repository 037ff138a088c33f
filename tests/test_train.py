"Runs that are stopped at awkward moments, resumed with other wishes, or broken: what was measured stays true."

import json
import math
import time
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from architectures import MODELS, V

from lmcourse.data.tokens import tokenize_corpus
from lmcourse.device import DeviceError, pick_device
from lmcourse.errors import LMCourseError
from lmcourse.models.base import ConfigError
from lmcourse.models.recurrent import RecurrentConfig
from lmcourse.training.optimizers import make_optimizer
from lmcourse.training.recipes import (
    Data,
    Optim,
    Recipe,
    Train,
    get_recipe,
    override,
    recipe_from_dict,
    tiny,
)
from lmcourse.training.runs import Run, baselines, best_record, plot_curves
from lmcourse.training.trainer import (
    Diverged,
    Trainer,
    TrainingError,
    TrainState,
    evaluate,
    from_checkpoint,
    train,
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('LMCOURSE_CACHE', str(tmp_path / 'cache'))


def twin(**changes):
    return override(
        tiny(get_recipe('lstm-a'), corpus='markov'),
        {'data.batching': 'stateful'} | {f'train.{k}': v for k, v in changes.items()},
    )


def rows(run):
    return [(m['step'], m['train_nats']) for m in run.metrics() if 'train_nats' in m]


def test_a_stop_between_two_rows_of_the_curve_loses_nothing(tmp_path):
    whole = train(twin(max_steps=20), tmp_path / 'whole', show=False)
    trainer = Trainer(twin(max_steps=20), tmp_path / 'parts', show=False)
    import lmcourse.training.trainer as T

    before = T.Trainer.stop_reason
    try:
        T.Trainer.stop_reason = lambda t, asked: 'interrupted' if t.state.step == 14 else before(t, asked)
        assert trainer.fit().summary['stopped'] == 'interrupted'
    finally:
        T.Trainer.stop_reason = before
    parts = from_checkpoint(tmp_path / 'parts', show=False).fit()
    assert rows(parts) == rows(whole) and parts.summary['test'] == whole.summary['test']


def test_what_a_resume_changes_is_kept(tmp_path):
    train(twin(max_steps=10), tmp_path / 'run', show=False)
    from_checkpoint(tmp_path / 'run', show=False, max_steps=15).fit()
    assert (
        Run.open(tmp_path / 'run').config['train']['max_steps'] == 15
        and Run.open(tmp_path / 'run').summary['steps'] == 15
    )


def test_a_text_that_changed_is_not_gone_on_with(tmp_path):
    text = tmp_path / 'mine.txt'
    lines = [f'the cat {i % 9} sat on the mat {i % 7}\n' for i in range(400)]
    text.write_text(''.join(lines))
    train(override(twin(max_steps=3), {'data.corpus': str(text)}), tmp_path / 'run', show=False)
    kept = (tmp_path / 'run' / 'tokenizer.json').read_bytes()
    text.write_text(''.join(lines).replace('cat', 'dog'))
    with pytest.raises(TrainingError, match='has changed'):
        from_checkpoint(tmp_path / 'run', show=False)
    assert (tmp_path / 'run' / 'tokenizer.json').read_bytes() == kept


def test_a_diverged_run_says_so_and_keeps_what_it_had(tmp_path):
    r = override(
        twin(max_steps=40, eval_every=10),
        {'optim.lr': 1e36, 'optim.max_grad_norm': 0, 'optim.warmup_steps': 0, 'train.log_every': 5},
    )
    with pytest.raises(Diverged, match='stopped being a number'):
        train(r, tmp_path / 'run', show=False)
    s = Run.open(tmp_path / 'run').summary
    assert s['stopped'] == 'diverged' and not s['finished']


def test_patience_stops_a_run_that_gets_no_better(tmp_path, monkeypatch):
    import lmcourse.training.trainer as T

    real, calls = T.evaluate, []

    def worse(*a, **k):
        calls.append(1)
        return replace(real(*a, **k), nats_per_token=1.0 + len(calls), perplexity=math.exp(1.0 + len(calls)))

    monkeypatch.setattr(T, 'evaluate', worse)
    s = train(twin(max_steps=40, eval_every=4, patience=2), tmp_path / 'run', show=False).summary
    assert (s['stopped'], s['steps']) == ('patience', 12)


def test_a_configuration_of_another_version_is_told():
    d = get_recipe('lstm-a').to_dict()
    with pytest.raises(ConfigError, match='another version'):
        recipe_from_dict(d | {'model': d['model'] | {'heads': 4}})
    with pytest.raises(ConfigError, match='no recipe'):
        recipe_from_dict({k: v for k, v in d.items() if k != 'name'})


def test_no_numbers_on_meta():
    with pytest.raises(DeviceError, match='holds no numbers'):
        pick_device('meta')


def test_windows_that_overlap_score_each_token_once_with_more_before_it():
    data = tokenize_corpus('markov')
    split = replace(data.validation, ids=data.validation.ids[:403] % V)
    torch.manual_seed(0)
    model = MODELS['decoder']().eval()
    found = evaluate(model, split, 1, seq_len=16, stride=5)
    assert (found.num_tokens, found.context_length, found.stride, found.state_carried) == (403, 16, 5, False)
    ids, nats = [1, *split.ids.tolist()], 0.0
    for i in range(403):  # by hand: the window that is the first to reach the token
        start = 0 if i < 16 else 5 * -(-(i - 15) // 5)
        nats -= float(model.logits(torch.tensor([ids[start : i + 1]]))[0][0, -1].log_softmax(-1)[split.ids[i]].detach())
    assert found.nats == pytest.approx(nats, rel=1e-5)
    assert (
        evaluate(model, split, 1, seq_len=16).nats
        == evaluate(model, split, 1, seq_len=16, stride=16).nats
        != found.nats
    )
    with pytest.raises(TrainingError, match='carries its state'):
        evaluate(MODELS['lstm'](), split, 1, stride=5)
    with pytest.raises(LMCourseError, match='leaves out tokens'):
        evaluate(model, split, 1, seq_len=16, stride=17)
    lost = evaluate(MODELS['lstm'](), split, 1, state_carried=False, seq_len=16, stride=5)
    assert (lost.num_tokens, lost.stride) == (403, 5)


def small(**changes):
    return override(
        Recipe(
            'small',
            RecurrentConfig('gru', 16, 16, 1),
            Data(corpus='markov', seq_len=20, batch_size=8),
            Optim(lr=3e-3),
            Train(),
        ),
        changes,
    )


def test_a_billion_epochs_are_planned_at_once(tmp_path):
    tic = time.monotonic()
    assert Trainer(small(**{'train.epochs': 10**9}), tmp_path / 'a', show=False).total_steps == 10**9 * 1251
    assert (
        Trainer(
            small(**{'train.epochs': 10**9, 'train.max_steps': 5, 'data.random_offset': True}),
            tmp_path / 'b',
            show=False,
        ).total_steps
        == 5
    )
    assert time.monotonic() - tic < 10


def test_a_device_that_gives_other_gradients_is_not_taken(monkeypatch, capsys):
    "`auto` compares one step; asking changes no random number of the run that asks."
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    torch.manual_seed(7)
    want = torch.rand(3)
    torch.manual_seed(7)
    assert pick_device('auto').type == 'cpu'
    assert torch.equal(torch.rand(3), want)
    assert 'does not give what the processor gives' in capsys.readouterr().err


@pytest.mark.parametrize('clip, advised', [(0.0, True), (5.0, True), (1.0, False), (0.25, False)])
def test_clipping_is_advised_where_it_would_change_something(clip, advised, tmp_path):
    trainer = Trainer(small(**{'optim.max_grad_norm': clip}), tmp_path / 'run', show=False)
    with pytest.raises(Diverged, match='Try --optim.lr 0.001') as e:
        trainer.raise_diverged()
    assert ('--optim.max_grad_norm 1.0' in str(e.value)) == advised


@pytest.mark.parametrize('clip', [0.0, 1.0])
@pytest.mark.parametrize('name', MODELS)
def test_a_step_asks_the_device_for_no_number(name, clip):
    "On torch's meta device there are no numbers, so whatever would wait for one on a GPU is an error here."
    with torch.device('meta'):
        model = MODELS[name]()
    optim = Optim(max_grad_norm=clip)
    trainer = object.__new__(Trainer)
    vars(trainer).update(
        model=model,
        forward=model,
        device=torch.device('meta'),
        state=TrainState(),
        total_steps=9,
        precision=dict(loss='fp32', layers='fp32'),
        recipe=Recipe('meta', None, Data(seq_len=6, batch_size=4), optim),
        optimizer=make_optimizer(model, optim),
    )
    ids = torch.arange(24).view(4, 6) % V
    for _ in range(2):
        nats, count, norm = trainer.train_step([(ids, ids)])
    assert nats.device.type == norm.device.type == 'meta'
    assert (count, trainer.state.step, trainer.state.num_tokens) == (24, 2, 48)


def test_the_figure_of_the_full_run_draws_the_counting_models_of_its_own_text_and_tokenizer():
    "What is drawn is compared with the file of baselines, read anew."
    root = Path(__file__).parents[1]
    (cell,) = [
        c
        for c in json.loads((root / 'nbs' / '12_training.ipynb').read_text(encoding='utf-8'))['cells']
        if 'Kneser-Ney {order}' in ''.join(c['source'])
    ]
    run = best_record('lstm-a')
    there = dict(lstm=run, baselines=baselines, plot_curves=plot_curves, plt=plt, math=math)
    exec(''.join(cell['source']), there)
    drawn = sorted(line.get_ydata()[0] for line in there['ax'].lines if list(line.get_xdata()) == [0, 1])
    said = run.summary['validation']
    rows = [b['validation'] for b in json.loads((root / 'lmcourse' / 'records' / 'baselines.json').read_text())]
    mine = sorted(m['perplexity'] for m in rows if (m['corpus'], m['tokenizer']) == (said['corpus'], said['tokenizer']))
    plt.close('all')
    assert drawn == mine
    assert [round(p) for p in mine[:3]] == [233, 241, 285]


def test_a_process_without_a_folder_can_say_that_it_diverged(tmp_path):
    "Of several processes only the first has a run's folder; the others stop with the same sentence."
    trainer = Trainer(twin(max_steps=20), tmp_path / 'run', show=False)
    trainer.state.validation = trainer.evaluate(trainer.data.validation)
    trainer.rank, trainer.run = 1, None
    with pytest.raises(Diverged, match='the checkpoints are as last saved'):
        trainer.raise_diverged()
    assert Run.open(tmp_path / 'run').summary is None


def test_asking_what_is_due_changes_nothing(tmp_path):
    trainer = Trainer(twin(max_steps=20), tmp_path / 'run', show=False)
    before = trainer.state.to_dict()
    for asked in (trainer.log_due, trainer.eval_due, trainer.save_due):
        asked()
    assert trainer.state.to_dict() == before


def test_the_energy_of_a_run_is_added_up_over_its_interruptions(tmp_path, monkeypatch):
    "Where the machine counts; and once it has not told, the whole is not known."
    monkeypatch.setattr('lmcourse.device.EnergyMeter.joules', lambda self: 2.0)
    first = Trainer(twin(), tmp_path / 'run')
    first.save_checkpoint()
    assert first.state.energy_joules == 2.0
    run = from_checkpoint(tmp_path / 'run').fit()
    assert run.summary['energy_joules'] >= 4.0
    assert run.summary['energy_joules'] % 2 == 0
    monkeypatch.setattr('lmcourse.device.EnergyMeter.joules', lambda self: None)
    silent = Trainer(twin(), tmp_path / 'silent')
    silent.save_checkpoint()
    monkeypatch.undo()
    assert from_checkpoint(tmp_path / 'silent').fit().summary['energy_joules'] is None
