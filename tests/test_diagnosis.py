"The checklist: what it says of curves whose fault is known, and that it says nothing where nothing can be known."

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from lmcourse.cli import main
from lmcourse.data.batches import WindowBatches
from lmcourse.errors import LMCourseError
from lmcourse.experiments import diagnosis
from lmcourse.experiments.diagnosis import (
    CAUSES,
    CHECKS,
    THRESHOLDS,
    broken_cases,
    curve_noise,
    diagnose,
    finding,
    grad_norms,
    lr_range_test,
    plateau_recipe,
    plateau_start,
    read_curves,
    reading_first,
    sound_recipe,
    unmasked,
    updates_per_epoch,
    window_nats,
)
from lmcourse.models.transformer import positions_affected
from lmcourse.training.recipes import get_recipe, override, tiny
from lmcourse.training.runs import RecordError, Run, publish, records
from lmcourse.training.trainer import Trainer

RECORDS = Path(diagnosis.__file__).parents[1] / 'records'
UNIGRAM, BIGRAM, FIVEGRAM = 6.0, 4.0, 3.0  # what counting is said to need in these tests
MEASURED = dict(corpus='mine.txt', tokenizer='word', fingerprint='f', vocab_size=1000, num_tokens=1000, ci95=None)
STEPS = 400


def fall(start, end, n, power=1.0):
    "A curve from one loss to another, steep at first where `power` is above one."
    return end + (start - end) * (1 - np.linspace(0, 1, n)) ** power


def made(folder, train, val, lr=None, norm=0.5, finished=True, optim=None, summary=None, measured=None, model=None):
    "A run's folder with these curves."
    data = dict(seq_len=64, batching='windows', corpus='mine.txt', tokenizer='word')
    optim = dict(optimizer='adamw', lr=1e-3, max_grad_norm=1.0, lr_schedule='constant', warmup_steps=0) | (optim or {})
    run = Run.create('made-up', dict(data=data, optim=optim, model=model or {}), str(folder))
    at = lambda n: [round(STEPS * (i + 1) / n) for i in range(n)]
    rates = np.ones(len(train)) if lr is None else lr
    rows = [
        dict(step=s, epoch=s / 100, tokens_seen=s * 10, train_nats=float(y), lr=float(r), grad_norm=norm)
        for s, y, r in zip(at(len(train)), train, rates)
    ]
    rows += [
        dict(step=s, epoch=s / 100, tokens_seen=s * 10, split='validation', nats_per_token=float(y))
        for s, y in zip(at(len(val)), val)
    ]
    for row in sorted(rows, key=lambda row: row['step']):
        run.log(**row)
    passport = MEASURED | dict(
        nats_per_token=float(min(val)), bits_per_byte=None, state_carried=False, context_length=64, accuracy=0.2
    )
    found = dict(steps=STEPS, epochs=4.0, tokens_seen=4000, finished=finished, validation=passport | (measured or {}))
    run.finish(found | (summary or {}))
    return run


@pytest.fixture
def counts(monkeypatch):
    "Counts that are said to be those of the text of `made`."
    by_order = {1: UNIGRAM, 2: BIGRAM, 5: FIVEGRAM}
    monkeypatch.setattr(diagnosis, '_ngram_counts', lambda run, measured: (by_order, None))


def names(run):
    return [f['finding'] for f in diagnose(run)]


COSINE = (1 + np.cos(np.linspace(0, math.pi, 40))) / 2
NOISE = np.random.default_rng(0).normal(0, 0.01, 40)
FLAT_END = np.concatenate([fall(5, 3.8, 6), [3.8, 3.79, 3.8, 3.795]])


def test_a_curve_that_still_falls(tmp_path, counts):
    assert names(made(tmp_path / 'run', fall(6, 3.5, 40), fall(6, 3.6, 10))) == ['still falling at the end']


def test_a_fall_within_the_noise_is_none(tmp_path, counts):
    val = fall(4, 3.9, 10) + np.tile([0.05, -0.05], 5)
    assert 'still falling at the end' not in names(made(tmp_path / 'run', fall(6, 3.5, 40, 4), val))


def test_two_evaluations_without_an_interval_are_no_fall_yet(tmp_path, counts):
    "It says in numbers what is missing, and how to get it."
    [f] = diagnose(made(tmp_path / 'run', fall(6, 3.5, 40), [5.0, 4.2]))
    assert f['finding'] == 'a difference without an interval'
    assert 'moved by -0.800 nats per token since 50% of the run' in f['evidence']
    assert 'no interval is known for two evaluations of 1,000 tokens' in f['evidence']
    assert '1 evaluation in the second half of the run, where the noise takes 5' in f['evidence']
    assert 'no ci95 in the summary' in f['evidence']
    assert '--train.eval_every' in f['next']


@pytest.mark.parametrize('end', [4.2, 5.8])
def test_an_interval_in_the_summary_is_enough(tmp_path, counts, end):
    measured = {'ci95': [math.exp(4.1), math.exp(4.3)], 'perplexity': math.exp(4.2)}
    found = names(made(tmp_path / 'run', fall(6, 3.5, 40), [5.0, end], measured=measured))
    assert 'a difference without an interval' not in found
    assert ('still falling at the end' in found) == (end < 5)


def test_a_difference_that_is_not_material_needs_no_interval(tmp_path, counts):
    assert names(made(tmp_path / 'run', fall(6, 3.5, 40), [4.21, 4.2])) == ['nothing to say']


def test_a_rise_of_unknown_noise_is_said_to_be_one(tmp_path, counts):
    found = diagnose(made(tmp_path / 'run', fall(6, 1, 40), [5.0, 3.8, 4.2, 4.6]))
    assert [f['finding'] for f in found] == ['overfitting', 'a difference without an interval']
    assert found[0]['evidence'].endswith('; no interval is known for the rise')


def test_a_flat_end_is_a_plateau_while_the_rate_is_at_work(tmp_path, counts):
    [f] = diagnose(made(tmp_path / 'run', fall(6, 3.7, 40, 4), FLAT_END))
    assert f['finding'] == 'plateau'
    assert 'flat since 60%' in f['evidence']
    assert 'cosine' in f['next']


def test_a_flat_end_is_nothing_once_the_rate_is_zero(tmp_path, counts):
    run = made(tmp_path / 'run', fall(6, 3.7, 40, 4), fall(6, 3.8, 10, 4), lr=COSINE, optim={'lr_schedule': 'cosine'})
    assert names(run) == ['nothing to say']


def test_validation_that_rises_while_training_falls(tmp_path, counts):
    val = np.concatenate([fall(5, 3.8, 4), fall(3.8, 4.6, 6)])
    assert names(made(tmp_path / 'run', fall(6, 1, 40), val)) == ['overfitting']


def test_a_gap_that_grows_while_validation_stands(tmp_path, counts):
    assert 'the gap to training grows' in names(made(tmp_path / 'run', fall(6, 2.5, 40), FLAT_END))


def test_no_gap_is_read_off_an_estimated_training_loss(tmp_path, counts):
    run = made(tmp_path / 'run', fall(6, 2.5, 40), FLAT_END, model={'num_sampled': 1024})
    assert 'the gap to training grows' not in names(run)


def test_training_that_rises_is_no_overfitting(tmp_path, counts):
    train = np.concatenate([fall(5, 3.7, 20), fall(3.7, 4.2, 20)]) + NOISE
    found = names(made(tmp_path / 'run', train, np.concatenate([fall(5, 3.8, 5), fall(3.8, 4.3, 5)])))
    assert found == ['training loss rises']


def test_training_above_a_uniform_guess(tmp_path, counts):
    train = np.full(40, 20.0) + NOISE
    assert 'worse than a uniform guess' in names(made(tmp_path / 'run', train, fall(9, 3.5, 10)))


def test_a_loss_that_waits_for_the_rate_to_fall(tmp_path, counts):
    val = np.concatenate([np.full(5, 4.9), fall(4.8, 3.9, 5)])
    run = made(tmp_path / 'run', fall(5, 3.9, 40), val, lr=COSINE, optim={'lr_schedule': 'cosine'})
    assert names(run) == ['flat until the rate fell']


def test_divergence_is_said_without_a_curve(tmp_path):
    run = Run.create('made-up', dict(optim=dict(lr=1.0)), str(tmp_path / 'run'))
    run.finish(dict(steps=7, stopped='diverged', finished=False))
    assert names(run) == ['the loss stopped being a number']


@pytest.mark.parametrize(
    'value, said', [(5.9, 'no better than the unigram'), (5.2, 'far above the bigram'), (4.9, None), (3.5, None)]
)
def test_the_level_is_told_by_counting(tmp_path, counts, value, said):
    found = names(made(tmp_path / 'run', [], [value]))
    assert found == [said or 'nothing to say']


def test_what_follows_depends_on_whether_the_loss_moved(tmp_path, counts):
    falling = diagnose(made(tmp_path / 'a', fall(7, 5.2, 40), fall(7, 5.2, 10)))
    flat = diagnose(made(tmp_path / 'b', fall(7, 5.2, 40, 4), np.concatenate([fall(7, 5.2, 4), np.full(6, 5.2)])))
    following = [next(f['next'] for f in some if 'bigram' in f['finding']) for some in (falling, flat)]
    assert 'range test' in following[0]
    assert following[1].startswith('the gradient norm of each part')


@pytest.mark.parametrize(
    'measured, sign',
    [
        (dict(nats_per_token=1.7), 'counting needs 3.00'),
        (dict(nats_per_token=2.5, bits_per_byte=0.5), 'fewer than English has'),
        (dict(nats_per_token=0.6), 'less than one bit per token'),
        (dict(nats_per_token=2.5, bits_per_byte=1.0, num_bytes=4000, accuracy=0.99), '99.0% of the tokens guessed'),
    ],
)
def test_a_result_that_no_model_should_reach(tmp_path, counts, measured, sign):
    [f] = diagnose(made(tmp_path / 'run', [], [2.5], measured=measured))
    assert f['finding'] == 'implausibly low'
    assert sign in f['evidence']
    assert 'positions_affected' in f['next']


def test_a_good_result_is_no_leak(tmp_path, counts):
    measured = dict(nats_per_token=2.0, bits_per_byte=0.9, num_bytes=4000, accuracy=0.5)
    assert names(made(tmp_path / 'run', [], [2.0], measured=measured)) == ['nothing to say']


@pytest.mark.parametrize(
    'kind, said',
    [
        (dict(optim={'warmup_steps': 100}), 'a long warmup'),
        (dict(norm=40.0), 'every gradient is clipped, and by far'),
        (dict(optim={'lr_schedule': 'cosine'}, lr=np.linspace(1, 0.86, 40)), 'the schedule did not reach its end'),
        (dict(summary={'steps': 60}), 'few updates'),
        (dict(measured={'context_length': 8}), 'another context in evaluation'),
    ],
)
def test_settings_that_disagree_with_the_run(tmp_path, counts, kind, said):
    found = names(made(tmp_path / 'run', fall(6, 3.8, 40, 4), fall(6, 3.9, 10), **kind))
    assert said in found
    assert said not in names(made(tmp_path / 'other', fall(6, 3.8, 40, 4), fall(6, 3.9, 10)))


def test_nothing_is_said_of_the_warmup_of_a_run_that_goes_on(tmp_path, counts):
    "What fraction of the run it will be is not known yet."
    curves = fall(6, 3.8, 40, 4), fall(6, 3.9, 10)
    run = made(tmp_path / 'run', *curves, optim={'warmup_steps': 500}, finished=False)
    assert 'a long warmup' not in names(run)


def test_a_state_carried_in_evaluation_only(tmp_path, counts):
    reset = {'validation': dict(nats_per_token=3.95, perplexity=50.0)}
    kind = dict(measured={'state_carried': True, 'context_length': None}, summary={'state_reset_eval': reset})
    assert names(made(tmp_path / 'run', [], [3.9], **kind)) == ['another context in evaluation']


@pytest.mark.parametrize('dropout, said', [(0.0, 'training above validation'), (0.3, 'nothing to say')])
def test_training_above_validation_is_for_dropout_to_explain(tmp_path, counts, dropout, said):
    lr, model = COSINE, {'dropout': dropout}
    run = made(tmp_path / 'run', fall(6, 4.2, 40, 4), fall(6, 3.8, 10, 4), lr=lr, model=model)
    assert names(run) == [said]


def test_a_run_that_went_on_after_its_last_evaluation(tmp_path):
    run = made(tmp_path / 'run', fall(6, 3.8, 40, 4), fall(6, 3.9, 10), summary={'finished': False})
    rows = [r for r in run.metrics() if 'split' not in r or r['step'] <= STEPS // 2]
    (run.path / 'metrics.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
    assert names(run) == ['nothing to say']


def test_nothing_is_said_of_one_evaluation(tmp_path):
    [f] = diagnose(made(tmp_path / 'run', [], [4.0]))
    assert f['finding'] == 'nothing to say'
    assert f['evidence'].startswith('looked at 0 rows of training, 1 evaluations, 400 updates, no n-gram counts')


def test_nothing_is_said_of_a_run_that_has_only_begun(tmp_path):
    run = Run.create('made-up', dict(optim=dict(lr=1.0)), str(tmp_path / 'run'))
    [f] = diagnose(run)
    assert f['finding'] == 'nothing to say'
    assert 'the run has not finished' in f['evidence']


def test_every_finding_has_its_evidence_and_a_next_experiment(tmp_path, counts):
    for run in (made(tmp_path / 'run', np.full(40, 20.0) + NOISE, fall(9, 5.9, 10), norm=100.0), *records()):
        for f in diagnose(run):
            assert list(f) == ['finding', 'evidence', 'next']
            assert any(c.isdigit() for c in f['evidence'])
            assert f['next']


def test_every_threshold_has_a_reason():
    assert all(t.reason and t.unit and t.value > 0 for t in THRESHOLDS.values())
    assert len({check.__name__ for check in CHECKS}) == len(CHECKS)


# ---- the published records


def test_the_records_of_the_course():
    found = {run.recipe: names(run) for run in records()}
    assert found['chinchilla-1'] == ['still falling at the end']
    assert found['lstm-a'] == ['far above the bigram', 'another context in evaluation']
    assert found['lstm-tuned'] == found['awd-lstm-small'] == ['nothing to say']
    assert found['mu-sota'] == found['dense-baseline-old'] == ['a difference without an interval']


def test_the_counts_are_of_the_same_text_and_tokenizer():
    c = {run.recipe: read_curves(run) for run in records()}
    assert sorted(c['lstm-tuned'].counts) == [1, 2, 3, 5]
    assert c['chinchilla-1-tuned'].counts == {}
    assert c['chinchilla-1-tuned'].count_bits == pytest.approx(1.772, abs=1e-3)


def test_three_causes_helped_and_the_six_at_once_did_not():
    rows = json.loads((RECORDS / 'causes.json').read_text())
    assert {r['setting']: r['changes'] for r in rows} == CAUSES
    assert sorted((r['setting'], r['seed']) for r in rows) == sorted((s, k) for s in CAUSES for k in range(3))
    base = next(r for r in rows if r['setting'] == 'as it is')
    assert base['same_length'] == pytest.approx(base['validation']['nats_per_token'], abs=1e-6)


def test_what_was_caught_is_what_was_named(tmp_path):
    rows, cases = json.loads((RECORDS / 'diagnosis.json').read_text()), broken_cases(1, tmp_path)
    assert {r['case'] for r in rows} == set(cases)
    assert {r['seed'] for r in rows} == {1, 2, 3}
    for r in rows:
        case = cases[r['case']]
        assert r['named'] == [f['finding'] for f in r['findings']]
        assert r['sound'] or r['caught'] == bool({*r['named']} & {*case.faults})
        assert not r['sound'] or r['false_alarms'] == [n for n in r['named'] if n not in (*case.true, 'nothing to say')]


# ---- runs made here


@pytest.fixture(scope='module')
def leaking(tmp_path_factory):
    "A decoder without its mask, trained until it has learnt to read ahead."
    quick = {'train.max_steps': 120, 'train.eval_every': 120, 'optim.lr_schedule': 'constant'}
    t = Trainer(unmasked(override(sound_recipe(), quick)), tmp_path_factory.mktemp('leaking') / 'run', show=False)
    t.fit()
    return t


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    "The small version of a recurrent recipe: sound, and short."
    r = tiny(get_recipe('lstm-small'), 'markov')
    return Trainer(r, tmp_path_factory.mktemp('small') / 'run', show=False).fit()


def test_without_its_mask_a_model_reads_ahead(leaking):
    x_BT = torch.arange(12)[None]
    assert positions_affected(leaking.model, x_BT, 6)[0]


def test_the_command_on_a_run_that_leaks(leaking, capsys):
    assert main(['diagnose', str(leaking.run.path), '--json']) == 0
    answer = json.loads(capsys.readouterr().out)
    assert list(answer) == ['findings']
    assert 'implausibly low' in [f['finding'] for f in answer['findings']]


def test_the_command_on_a_sound_run(small, capsys):
    before = {p.name: p.stat().st_mtime_ns for p in small.path.iterdir()}
    assert main(['diagnose', str(small.path)]) == 0
    out = capsys.readouterr().out
    assert 'few updates' in out
    assert 'n-gram counts of orders 1, 2, 3, 5' in out.splitlines()[-1]
    assert {p.name: p.stat().st_mtime_ns for p in small.path.iterdir()} == before, 'a diagnosis changes nothing'


def test_the_command_on_a_published_record(small, tmp_path, capsys):
    to = publish(small, tmp_path)
    assert main(['diagnose', str(to), '--json']) == 0
    assert [f['finding'] for f in json.loads(capsys.readouterr().out)['findings']] == names(small)


def _damage(path, kind):
    "Does some harm to a copy of a run's folder."
    curve = path / 'metrics.jsonl'
    if kind == 'no run':
        (path / 'config.json').unlink()
    elif kind == 'half a configuration':
        (path / 'config.json').write_text('{"recipe": "lstm-small", ')
    elif kind == 'a line that is no object':
        curve.write_text('nonsense\n' + curve.read_text())
    elif kind == 'a loss that is a word':
        curve.write_text(curve.read_text().replace('"train_nats": ', '"train_nats": "high", "was": ', 1))
    elif kind == 'steps in no order':
        curve.write_text(''.join(reversed(curve.read_text().splitlines(keepends=True))))
    elif kind == 'a rate that is a word':
        config = json.loads((path / 'config.json').read_text())
        config['optim']['lr'] = 'fast'
        (path / 'config.json').write_text(json.dumps(config))
    elif kind == 'a model that is a word':
        config = json.loads((path / 'config.json').read_text())
        (path / 'config.json').write_text(json.dumps(config | dict(model='decoder')))
    elif kind == 'an interval of words':
        summary = json.loads((path / 'summary.json').read_text())
        summary['validation']['ci95'] = ['low', 'high']
        (path / 'summary.json').write_text(json.dumps(summary))
    elif kind == 'a state cut short':
        (path / 'state.safetensors').write_bytes((path / 'state.safetensors').read_bytes()[:500])
    return path


@pytest.mark.parametrize(
    'kind',
    [
        'no run',
        'half a configuration',
        'a line that is no object',
        'a loss that is a word',
        'steps in no order',
        'a rate that is a word',
        'a model that is a word',
        'an interval of words',
        'a state cut short',
    ],
)
def test_a_damaged_folder_gets_one_sentence(small, tmp_path, capsys, kind):
    path = _damage(Path(shutil.copytree(small.path, tmp_path / 'run')), kind)
    assert main(['diagnose', str(path), '--json']) == 2
    printed = capsys.readouterr()
    assert printed.out == ''
    assert printed.err.startswith('lmcourse: ')
    assert len(printed.err.strip().splitlines()) == 1
    assert 'damaged' in printed.err or 'holds no run' in printed.err


def test_weights_that_the_optimizer_never_moved(small, tmp_path):
    path = Path(shutil.copytree(small.path, tmp_path / 'run'))
    assert 'weights that never got a gradient' not in names(path)
    run = Run.open(path)
    tensors, meta = run.load('state')
    first = {k for k in tensors if k.startswith('optimizer/0/')}
    run.save('state', {k: torch.zeros_like(t) if k in first else t for k, t in tensors.items()}, meta)
    [f] = [f for f in diagnose(path) if f['finding'] == 'weights that never got a gradient']
    assert f['evidence'].startswith('1 of ')


# ---- the experiments


@pytest.mark.parametrize('trainer', ['SummedLoss', 'FrozenBlocks', 'ForgottenBlocks', 'OneStepInFour', 'OtherTargets'])
def test_a_broken_trainer_is_broken_as_it_says(trainer, tmp_path):
    recipe = override(sound_recipe('adamw'), {'train.max_steps': 20, 'optim.max_grad_norm': 0, 'optim.warmup_steps': 0})
    sound, broken = (kind(recipe, tmp_path / kind.__name__, show=False) for kind in (Trainer, vars(diagnosis)[trainer]))
    weights = {k: p.detach().clone() for k, p in broken.model.named_parameters()}
    for _ in range(2):
        group = [next(iter(sound.batches))]
        (nats, count, norm), (other_nats, _, other_norm) = (t.train_step(group) for t in (sound, broken))
    moved = {k for k, p in broken.model.named_parameters() if not torch.equal(p, weights[k])}
    inside = {k for k in weights if k.startswith('blocks')}
    if trainer == 'SummedLoss':
        assert float(other_norm) > 100 * float(norm)
    elif trainer in ('FrozenBlocks', 'ForgottenBlocks'):
        assert moved == set(weights) - inside
    elif trainer == 'OneStepInFour':
        rates = [t.optimizer.param_groups[0]['lr'] for t in (sound, broken)]
        assert rates[1] == recipe.optim.lr > rates[0]
    else:
        assert float(other_nats) != float(nats)


def test_a_partial_trainer_reads_the_beginning_and_no_more(tmp_path):
    t = reading_first(1000)(plateau_recipe(), tmp_path / 'run', show=False)
    assert t.batches.num_tokens == 1000
    assert t.steps_per_epoch == updates_per_epoch(1000, 64, 9)


@pytest.mark.parametrize('tokens, stride, accumulated', [(1000, None, 1), (1000, 32, 4), (64, None, 1), (10, None, 2)])
def test_updates_are_counted_as_the_batches_are_cut(tokens, stride, accumulated):
    batches = WindowBatches(np.zeros(tokens, dtype=int), 64, 3, 0, stride)
    assert updates_per_epoch(tokens, 64, 3, accumulated, stride) == -(-len(batches) // accumulated)


def test_window_by_window_is_the_evaluation(leaking):
    data = leaking.data
    nats_NT = window_nats(leaking.model, data.validation.ids, 64, data.tokenizer.bos_id)
    assert np.isfinite(nats_NT).sum() == data.validation.num_tokens
    assert np.nanmean(nats_NT) == pytest.approx(leaking.run.summary['validation']['nats_per_token'], abs=1e-5)


def test_gradient_norms_leave_the_run_as_it_was(leaking):
    group, before = [next(iter(leaking.batches))], leaking.state.step
    norms = grad_norms(leaking, group)
    assert set(norms) == {k for k, _ in leaking.model.named_parameters()}
    assert all(norm > 0 for norm in norms.values())
    assert leaking.state.step == before
    assert all(p.grad is None for p in leaking.model.parameters())


def test_the_range_test_raises_the_rate_at_every_step():
    rows = lr_range_test(sound_recipe('adamw'), 1e-5, 1e-3, 8)
    rates = np.array([r['lr'] for r in rows])
    np.testing.assert_allclose(rates, np.geomspace(1e-5, 1e-3, 8))
    assert all(math.isfinite(r['nats']) and r['grad_norm'] > 0 for r in rows)


def test_the_range_test_ends_where_the_loss_explodes():
    rows = lr_range_test(sound_recipe('adamw'), 1e-3, 1e6, 30)
    assert len(rows) < 30
    assert not rows[-1]['nats'] < rows[0]['nats'] + 1


@pytest.mark.parametrize('low, high, steps', [(1.0, 0.1, 10), (0.0, 1.0, 10), (1e-3, 1.0, 1)])
def test_a_range_that_is_none_is_refused(low, high, steps):
    with pytest.raises(LMCourseError, match='range test'):
        lr_range_test(sound_recipe(), low, high, steps)


def test_noise_is_measured_on_a_curve_that_falls():
    y = fall(6, 3, 400) + np.random.default_rng(1).normal(0, 0.05, 400)
    assert curve_noise(y) == pytest.approx(0.05, rel=0.15)
    assert curve_noise(fall(6, 3, 400)) == pytest.approx(0, abs=1e-9)
    assert curve_noise(y[:4]) is None


def test_a_plateau_begins_where_nothing_lower_follows():
    assert plateau_start([5.0, 4.5, 4.3, 4.29, 4.295]) == 2
    assert plateau_start([4.0, 3.99, 3.98, 3.97], 0.005) == 3
    assert finding('a', 'b', 'c') == dict(finding='a', evidence='b', next='c')


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RecordError, match='holds no run'):
        read_curves(tmp_path)
