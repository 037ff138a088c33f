"A run that was stopped goes on as the run that was not, for every kind of state; and what does not fit is refused."

import dataclasses
import json
import math
import signal

import pytest
import torch
from architectures import CONFIGS

from lmcourse.files import FileError, load_safetensors, save_safetensors
from lmcourse.models.base import ConfigError, evaluating
from lmcourse.models.recurrent import RecurrentConfig
from lmcourse.models.tied_rnn import TiedRNNConfig
from lmcourse.models.transformer import TransformerConfig
from lmcourse.training.progress import graceful_interrupt
from lmcourse.training.recipes import OPTIMIZERS, Data, Optim, Recipe, Train, get_recipe, override, tiny
from lmcourse.training.runs import Run
from lmcourse.training.trainer import (
    Diverged,
    Trainer,
    TrainingError,
    evaluate,
    evaluate_run,
    from_checkpoint,
    load_run,
    train,
)

LANES = Data(corpus='markov', batching='stateful', seq_len=20, batch_size=8)
KINDS = CONFIGS | {'gru, tied, one layer': TiedRNNConfig('gru', 16, 16, 1)}
GRU = RecurrentConfig('gru', 16, 16, 1)
LSTM = RecurrentConfig('lstm', 16, 16, 1)
DECODER = TransformerConfig(16, 2, 32, 1, 20)


def small(config, **changes):
    "A recipe of 24 steps: the state is carried where the model has one, else it reads windows that fit its context."
    with torch.device('meta'):
        model = config.build(50)
    seq_len = min(LANES.seq_len, model.context_length or LANES.seq_len)
    data = dataclasses.replace(LANES, seq_len=seq_len, batching='stateful' if model.stateful else 'windows')
    return override(
        Recipe('small', config, data, Optim(lr=3e-3), Train(epochs=1, max_steps=24, log_every=4, eval_every=12)),
        changes,
    )


def curve(run):
    return [(m['step'], m['train_nats']) for m in run.metrics() if 'train_nats' in m]


@pytest.mark.parametrize('name', KINDS)
def test_goes_on_bit_for_bit(name, tmp_path):
    whole = train(small(KINDS[name]), tmp_path / 'whole', show=False)
    train(small(KINDS[name], **{'train.max_steps': 12}), tmp_path / 'parts', show=False)
    parts = from_checkpoint(tmp_path / 'parts', show=False, max_steps=24).fit()
    assert curve(parts) == curve(whole)
    assert parts.summary['test'] == whole.summary['test']


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_every_optimizer_goes_on(optimizer, tmp_path):
    model = TransformerConfig(16, 2, 32, 1, 20)
    whole = train(small(model, **{'optim.optimizer': optimizer}), tmp_path / 'whole', show=False)
    train(small(model, **{'optim.optimizer': optimizer, 'train.max_steps': 12}), tmp_path / 'parts', show=False)
    assert curve(from_checkpoint(tmp_path / 'parts', show=False, max_steps=24).fit()) == curve(whole)


def test_precision_is_resolved_once_and_written_down(tmp_path, monkeypatch):
    import lmcourse.training.trainer as T

    run = train(small(DECODER, **{'train.max_steps': 12}), tmp_path / 'r', show=False)
    made = run.summary['precision']
    assert set(made) == {'loss', 'layers'} and set(made.values()) <= {'fp32', 'bf16'}
    other = 'fp32' if made['loss'] == 'bf16' else 'bf16'
    monkeypatch.setattr(T, 'resolve_precision', lambda asked, device: other)
    assert from_checkpoint(tmp_path / 'r', show=False, max_steps=24).precision == made, (
        'what the clock says today does not matter'
    )


def test_the_cosine_ends_where_the_batches_end(tmp_path):
    r = override(
        tiny(get_recipe('tuned-small'), 'markov'),
        {
            'train.max_steps': None,
            'train.epochs': 3,
            'data.seq_len': 300,
            'data.batch_size': 16,
            'model.num_sampled': 0,
        },
    )
    trainer = Trainer(r, tmp_path / 'r', show=False)
    made = 0
    for epoch in range(3):
        trainer.batches.set_epoch(epoch)
        made += len(trainer.batches)
    assert trainer.total_steps == made


def test_a_text_that_has_changed_is_refused(tmp_path, monkeypatch):
    rows = [f'the {a} {b} looks on\n' for a in ('green', 'old', 'sly') for b in ('crab', 'whelk', 'lobster')] * 12
    (tmp_path / 'book.txt').write_text(''.join(rows))
    monkeypatch.chdir(tmp_path)
    r = small(
        GRU,
        **{
            'data.corpus': 'book.txt',
            'data.min_count': 1,
            'data.batch_size': 2,
            'data.seq_len': 5,
            'train.max_steps': 4,
        },
    )
    run = train(r, tmp_path / 'r', show=False)
    assert run.config['data']['corpus'] == str(tmp_path / 'book.txt'), 'from wherever it is taken up'
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path / 'elsewhere')
    assert evaluate_run(tmp_path / 'r').perplexity == pytest.approx(run.summary['test']['perplexity'])
    (tmp_path / 'book.txt').write_text(''.join(rows[-30:] + rows[:-30]))
    for act in (evaluate_run, load_run, from_checkpoint):
        with pytest.raises(TrainingError, match='has changed since the run was begun'):
            act(tmp_path / 'r')


def test_a_recipe_of_ones_own_is_loaded_from_its_folder(tmp_path):
    train(
        Recipe(
            'my-own',
            RecurrentConfig(hidden_size=16, embedding_dim=16),
            Data(corpus='markov', batching='windows'),
            train=Train(max_steps=3),
        ),
        tmp_path / 'r',
        show=False,
    )
    assert load_run(tmp_path / 'r')[2].name == 'my-own'
    assert from_checkpoint(tmp_path / 'r', show=False, max_steps=5).fit().summary['steps'] == 5


def test_fewer_steps_than_were_made_are_refused(tmp_path):
    train(small(GRU), tmp_path / 'r', show=False)
    before = (tmp_path / 'r' / 'config.json').read_text()
    with pytest.raises(TrainingError, match='has made 24 steps already, and 6 are asked for'):
        from_checkpoint(tmp_path / 'r', show=False, max_steps=6)
    assert (tmp_path / 'r' / 'config.json').read_text() == before


def test_a_kill_between_the_state_and_its_best_weights(tmp_path):
    "The best weights are those that the state says, even where a kill left older ones."
    run = train(small(GRU), tmp_path / 'r', show=False)
    want, _ = load_safetensors(tmp_path / 'r' / 'best.safetensors')
    assert run.load('best')[1]['step'] == 24
    save_safetensors(tmp_path / 'r' / 'best.safetensors', {k: v + 1 for k, v in want.items()}, {'step': 12})
    from_checkpoint(tmp_path / 'r', show=False)
    again, meta = load_safetensors(tmp_path / 'r' / 'best.safetensors')
    assert meta['step'] == 24
    assert all(torch.equal(again[k], want[k]) for k in want)


def alter(path, change):
    tensors, meta = load_safetensors(path)
    save_safetensors(path, *change(tensors, meta))


@pytest.mark.parametrize(
    'change',
    [
        lambda t, m: ({k: v for k, v in t.items() if not k.startswith('optimizer')}, m),
        lambda t, m: (t, m | {'form': ['dict', [part for part in m['form'][1] if part[0] != 'batches']]}),
        lambda t, m: (t, m | {'form': ['heap', m['form'][1]]}),
        lambda t, m: (t | {k: v.long() for k, v in t.items() if k.startswith('model/')}, m),
        lambda t, m: (t | {k: v * math.nan for k, v in t.items() if k.startswith('model/')}, m),
    ],
)
def test_a_state_that_was_altered_is_refused(change, tmp_path):
    train(small(GRU), tmp_path / 'r', show=False)
    alter(tmp_path / 'r' / 'state.safetensors', change)
    with pytest.raises((TrainingError, FileError)):
        from_checkpoint(tmp_path / 'r', show=False, max_steps=30)


def test_stopped_before_anything_was_saved(tmp_path):
    Trainer(small(GRU), tmp_path / 'r', show=False)
    with pytest.raises(TrainingError, match='before anything had been saved.*delete that folder'):
        from_checkpoint(tmp_path / 'r')


@pytest.mark.parametrize('lr', [300.0, 1e6])
def test_divergence_is_a_sentence_and_loses_nothing(lr, tmp_path):
    with pytest.raises(Diverged, match='grew beyond measure') as e:
        train(
            override(
                tiny(get_recipe('lstm-a'), 'markov'), {'optim.lr': lr, 'optim.max_grad_norm': 0, 'train.eval_every': 10}
            ),
            tmp_path / 'r',
            show=False,
        )
    assert e.value.exit_code == 1
    assert Run.open(tmp_path / 'r').summary['stopped'] == 'diverged'


def test_clip_zero_never_touches_a_gradient(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.nn.utils, 'clip_grad_norm_', None)
    run = train(small(GRU, **{'optim.max_grad_norm': 0, 'train.max_steps': 4}), tmp_path / 'r', show=False)
    assert all(m['grad_norm'] > 0 for m in run.metrics() if 'grad_norm' in m)


def test_an_exception_leaves_the_model_as_it_was():
    model = RecurrentConfig(hidden_size=8, embedding_dim=8).build(30)
    with pytest.raises(ZeroDivisionError), evaluating(model):
        assert not model.training
        1 / 0
    assert model.training
    from lmcourse.data.tokens import tokenize_corpus

    with pytest.raises(Exception):
        evaluate(model, tokenize_corpus('markov').validation, 0, seq_len=0)
    assert model.training


def test_a_trainer_says_what_it_is(tmp_path):
    assert 'Trainer of small: step 0 of 24' in repr(Trainer(small(DECODER), tmp_path / 'r', show=False))


def test_two_writers_of_one_run_are_one_too_many(tmp_path):
    trainer = Trainer(small(GRU), tmp_path / 'r', show=False)
    with Run.open(tmp_path / 'r').lock(), pytest.raises(FileError, match='another process'):
        trainer.fit()


@pytest.mark.parametrize('step', [3, 14])  # before the first evaluation, and after it
@pytest.mark.parametrize('which', ['SIGINT', 'SIGTERM', 'SIGHUP'])
def test_a_signal_stops_after_the_step_and_loses_nothing(step, which, tmp_path, monkeypatch):
    recipe = small(GRU)
    whole = train(recipe, tmp_path / 'whole', show=False)
    take = Trainer.train_step

    def take_and_signal(trainer, group):
        if trainer.state.step == step - 1:
            signal.raise_signal(getattr(signal, which))
        return take(trainer, group)

    monkeypatch.setattr(Trainer, 'train_step', take_and_signal)
    run = train(recipe, tmp_path / 'parts', show=False)
    assert (run.summary['stopped'], run.summary['steps'], run.summary['finished']) == ('interrupted', step, False)
    assert (run.summary['validation'] is None) == (step < 12)
    monkeypatch.undo()
    parts = from_checkpoint(tmp_path / 'parts', show=False).fit()
    assert curve(parts) == curve(whole)
    assert parts.summary['test'] == whole.summary['test']


def test_what_was_to_be_ignored_is_ignored():
    "`nohup` starts a command with hang-ups ignored: a run that has it so does not stop when the terminal is closed."
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with graceful_interrupt() as ask:
            signal.raise_signal(signal.SIGHUP)
        assert not ask.asked
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_interrupted_cell_says_where_it_stopped_and_how_to_go_on(tmp_path, monkeypatch, capsys):
    import lmcourse.training.trainer as T

    monkeypatch.setattr(T, 'in_notebook', lambda: True)
    monkeypatch.setenv('IN_TEST', '1')  # no bar
    monkeypatch.setattr(
        T.Trainer, 'stop_reason', lambda trainer, asked: 'interrupted' if trainer.state.step == 5 else None
    )
    train(small(GRU), tmp_path / 'run')
    assert (
        capsys.readouterr().out
        == f"Stopped at step 5 of 24. To go on: from_checkpoint({str(tmp_path / 'run')!r}).fit()\n"
    )


def test_a_trainer_that_another_has_overtaken_is_refused(tmp_path):
    "Two take up the same run; one trains; the other, which waited, would go back to steps that are made."
    train(small(GRU, **{'train.max_steps': 12}), tmp_path / 'run', show=False)
    first, late = (from_checkpoint(tmp_path / 'run', show=False, max_steps=24) for _ in range(2))
    made = curve(first.fit())
    with pytest.raises(TrainingError, match='has gone on since this trainer was made'):
        late.fit()
    assert curve(Run.open(tmp_path / 'run')) == made


def test_a_precision_that_this_device_has_not(tmp_path, monkeypatch, capsys):
    "A run from a machine with bf16 goes on where there is none, and says so."
    import lmcourse.training.trainer as T

    train(small(LSTM, **{'train.max_steps': 12}), tmp_path / 'run', show=False)
    alter(
        tmp_path / 'run' / 'state.safetensors',
        lambda tensors, meta: (tensors, json.loads(json.dumps(meta).replace('fp32', 'bf16'))),
    )
    monkeypatch.setattr(T, 'has_bf16', lambda device: False)
    monkeypatch.setattr(T, 'resolve_precision', lambda asked, device: 'fp32')
    trainer = from_checkpoint(tmp_path / 'run', show=False, max_steps=24)
    assert trainer.precision == {'loss': 'fp32', 'layers': 'fp32'}
    assert 'goes on in fp32' in capsys.readouterr().err


def test_another_number_of_processes_is_said(tmp_path, capsys):
    train(small(DECODER, **{'train.max_steps': 12}), tmp_path / 'run', show=False)
    alter(
        tmp_path / 'run' / 'state.safetensors',
        lambda tensors, meta: (
            tensors,
            json.loads(json.dumps(meta).replace('["world_size", ["value", 1]]', '["world_size", ["value", 2]]')),
        ),
    )
    from_checkpoint(tmp_path / 'run', show=False, max_steps=24)
    assert 'was trained by 2 process(es) and goes on with 1' in capsys.readouterr().err


def test_a_seed_beyond_the_whole_numbers_of_a_float_is_recorded_exactly(tmp_path):
    run = train(small(GRU, **{'train.seed': 2**53 + 1, 'train.max_steps': 2}), tmp_path / 'run', show=False)
    assert run.summary['seed'] == Run.open(tmp_path / 'run').seed == 2**53 + 1


@pytest.mark.parametrize(
    'model', [TiedRNNConfig('lstm', 16, 16, 1, num_sampled=0), TiedRNNConfig('lstm', 16, 16, 1, zipf_bias_init=False)]
)
def test_what_takes_the_first_ids_for_the_commonest_refuses_other_vocabularies(model, tmp_path):
    r = small(model, **{'data.tokenizer': 'bpe:300', 'data.corpus': 'stdlib'})
    with pytest.raises(ConfigError, match='sorted by frequency'):
        Trainer(r, tmp_path / 'r', show=False)
    assert not (tmp_path / 'r').exists()
