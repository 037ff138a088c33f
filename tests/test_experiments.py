"""The experiments' own rooms: the sampled loss, the tuned model, the grid of changes, and results beside what counting
reaches."""

import json
from importlib.resources import files

import pytest
import torch
import torch.nn.functional as F

import lmcourse.training.trainer as T
from lmcourse.errors import LMCourseError
from lmcourse.experiments.ablation import ABLATIONS as CELL_ABLATIONS
from lmcourse.experiments.ablation import ablation_effects, run_ablation
from lmcourse.experiments.ladder import ladder_recipes
from lmcourse.experiments.recipes import (
    TIED_RNN_ABLATIONS as ABLATIONS,
)
from lmcourse.experiments.recipes import (
    TIED_RNN_LONG_RUN_ABLATIONS as LONG_RUN_ABLATIONS,
)
from lmcourse.measure.sampled_softmax import sample_candidates, sampled_cross_entropy
from lmcourse.models.base import ConfigError
from lmcourse.models.tied_rnn import TiedRNNConfig, zipf_bias_init
from lmcourse.training.recipes import get_recipe, num_parameters, override, tiny
from lmcourse.training.runs import all_baselines, records, results_table
from lmcourse.training.trainer import Trainer, from_checkpoint, precisions, random_first_length, train


def small(name='lstm-tuned', **changes):
    return override(tiny(get_recipe(name), corpus='markov'), changes)


@pytest.mark.parametrize('often, others', [(0, 1), (5, 10), (40, 3), (0, 200)])
def test_the_asked_speak_for_everybody_and_the_right_words_are_among_them(often, others):
    torch.manual_seed(0)
    y = torch.randint(100, (3, 7))
    y[0, :2] = -100
    ids_K, weight_K = sample_candidates(y, 100, often, others)
    assert (
        float(weight_K.sum()) == pytest.approx(100)
        and set(y[y >= 0].tolist()) <= set(ids_K.tolist())
        and set(range(often)) <= set(ids_K.tolist())
    )
    assert len(set(ids_K.tolist())) == len(ids_K) and float(weight_K.min()) >= 1


def test_everybody_asked_is_the_exact_loss_and_targets_stay_where_they_were():
    torch.manual_seed(0)
    h, w, b, y = (
        torch.randn(4, 6, 8, requires_grad=True),
        torch.randn(50, 8, requires_grad=True),
        torch.randn(50, requires_grad=True),
        torch.randint(50, (4, 6)),
    )
    y[1, 2:5] = -100
    exact = F.cross_entropy(F.linear(h, w, b).flatten(0, 1), y.flatten(), reduction='sum')
    for often, others in ((0, 50), (49, 1), (10, 45), (0, 1000)):
        tally = sampled_cross_entropy(h, w, b, y, often, others)
        assert tally.num_tokens == 21
        for a, t in zip(
            torch.autograd.grad(tally.nats, (h, w, b)), torch.autograd.grad(exact, (h, w, b), retain_graph=True)
        ):
            torch.testing.assert_close(a, t, rtol=1e-4, atol=1e-5)
    with pytest.raises(LMCourseError, match='at least one'):
        sampled_cross_entropy(h, w, b, y, 5, 0)


def test_estimated_nats_are_near_and_slopes_reach_every_type_in_the_end():
    torch.manual_seed(0)
    h, w, b, y = (
        torch.randn(64, 16),
        torch.randn(400, 16, requires_grad=True),
        torch.zeros(400),
        torch.randint(400, (64,)),
    )
    exact = float(F.cross_entropy(h @ w.detach().T / 4, y))
    nats, touched = [], torch.zeros(400, dtype=torch.bool)
    for _ in range(40):
        tally = sampled_cross_entropy(h / 4, w, b, y, 20, 60)
        touched |= torch.autograd.grad(tally.nats, w)[0].abs().sum(1) > 0
        nats.append(float(tally.mean.detach()))
    assert abs(sum(nats) / 40 - exact) < 0.02 and touched.all()


@pytest.mark.parametrize('name', ['lstm-tuned', 'gru-tuned'])
def test_a_resumed_run_has_the_curve_of_one_that_was_not_stopped(tmp_path, name):
    recipe = small(name, **{'train.max_steps': 12, 'train.log_every': 1, 'train.eval_every': 6})
    straight = train(recipe, tmp_path / 'a', show=False)
    first = train(override(recipe, {'train.max_steps': 6, 'optim.lr_schedule': 'constant'}), tmp_path / 'b', show=False)
    whole = train(override(recipe, {'optim.lr_schedule': 'constant'}), tmp_path / 'c', show=False)
    again = from_checkpoint(first.path, show=False, max_steps=12).fit()
    kept = lambda run: [(r['step'], r.get('train_nats'), r.get('perplexity')) for r in run.metrics()]
    assert kept(again) == kept(whole) != kept(straight)


def test_the_models_own_loss_is_for_training_only(tmp_path, monkeypatch):
    "Evaluation never estimates: with the estimate broken on purpose, a trained model is still scored exactly."
    t = Trainer(small(), tmp_path / 'run', show=False)
    exact = T.evaluate(t.model, t.data.validation, t.data.tokenizer.bos_id).perplexity
    monkeypatch.setattr(type(t.model), 'loss', lambda *a: pytest.fail('evaluation asked for the estimate'))
    assert T.evaluate(t.model, t.data.validation, t.data.tokenizer.bos_id).perplexity == exact


def test_cuts_move_from_pass_to_pass_and_every_token_is_still_scored_once(tmp_path):
    t = Trainer(small(), tmp_path / 'run', show=False)
    first = []
    for epoch in range(6):
        t.batches.set_epoch(epoch)
        sizes = [int((y != -100).sum()) for _, y in t.batches]
        assert sum(sizes) == t.data.train.num_tokens
        first.append(sizes[0])
    assert len(set(first)) > 2
    length = random_first_length(35)
    assert [length(0, 1, 0) for _ in range(3)] == [length(0, 1, 0)] * 3 and length(0, 1, 1) == 35
    with pytest.raises(ConfigError, match='data.random_offset'):
        override(get_recipe('lstm-a'), {'data.random_offset': True})


@pytest.mark.parametrize(
    'name, asked, pays, low',
    [
        ('lstm-tuned', 'auto', True, True),
        ('lstm-a', 'auto', True, True),
        ('lstm-tuned', 'auto', False, False),
        ('ladder-lstm', 'auto', True, False),
        ('ladder-lstm', 'bf16', False, True),
        ('lstm-tuned', 'fp32', True, False),
    ],
)
def test_16_bits_where_they_pay(monkeypatch, name, asked, pays, low):
    monkeypatch.setattr(
        T, 'resolve_precision', lambda asked, device: asked if asked != 'auto' else 'bf16' if pays else 'fp32'
    )
    r = get_recipe(name, train__precision=asked)
    with torch.device('meta'):
        model = r.model.build(33_278)
    made = precisions(r, model, torch.device('cpu'))
    assert (made['layers'] == 'bf16') is low
    assert made['loss'] == ('bf16' if asked == 'bf16' or asked == 'auto' and pays else 'fp32')


def test_the_ladder_that_the_command_trains():
    "A faster step changes how the lesson's two networks are trained, not what they are; the record is of those three."
    rows = json.loads((files('lmcourse') / 'records' / 'ladder.json').read_text(encoding='utf-8'))
    names, size = ladder_recipes(), rows[0]['vocab_size']
    assert ladder_recipes('bpe:512') == ('ladder-lstm', 'ladder-gru', 'ladder-transformer')
    for exact, fast in zip(ladder_recipes('bpe:512'), names):
        assert num_parameters(get_recipe(exact), size) == num_parameters(get_recipe(fast), size)
    assert [r['rung'] for r in rows[-3:]] == [get_recipe(n).model.label for n in names]
    assert [r['num_parameters'] for r in rows[-3:]] == [num_parameters(get_recipe(n), size) for n in names]


def test_bfloat16_is_not_taken_where_there_is_none(monkeypatch, tmp_path):
    "torch's LSTM would end in a sentence about primitives; here it is one about what to do, and nothing is written."
    monkeypatch.setattr(T, 'has_bf16', lambda device='cpu': False)
    with pytest.raises(T.TrainingError, match='no products in bfloat16: take auto, or fp32'):
        T.Trainer(
            override(tiny(get_recipe('ladder-lstm'), 'markov'), {'train.precision': 'bf16', 'train.device': 'cpu'}),
            tmp_path / 'run',
            show=False,
        )
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    'change', ['cell=rnn', 'embedding_dim=0', 'num_layers=0', 'input_dropout=1', 'hidden_dropout=-.1', 'num_sampled=-1']
)
def test_a_tuned_model_that_cannot_be_built(change):
    field, value = change.split('=')
    with pytest.raises(ConfigError, match=f'model.{field}'):
        get_recipe('lstm-tuned', **{f'model__{field}': value})


def test_tuned_models_are_no_larger_than_the_notes():
    most = num_parameters(get_recipe('lstm-a'))
    assert most == 18_124_286 and all(num_parameters(get_recipe(n)) <= most for n in ('lstm-tuned', 'gru-tuned'))
    m = TiedRNNConfig().build(100)
    assert m.lm_head.weight is m.embedding.weight
    assert float(zipf_bias_init(33_278).softmax(0)[0]) > 500 * float(zipf_bias_init(33_278).softmax(0)[-1])


@pytest.mark.parametrize(
    'grid, base', [(CELL_ABLATIONS, 'lstm-small'), (ABLATIONS, 'tuned-small'), (LONG_RUN_ABLATIONS, 'lstm-tuned')]
)
def test_every_change_of_a_grid_is_one_that_its_recipe_takes(grid, base):
    plain = get_recipe(base)
    assert grid['as it is'] == {} and all(override(plain, c) != plain for s, c in grid.items() if c)


def test_a_grid_goes_on_where_it_was_stopped(tmp_path):
    base, grid, told = small('lstm-small'), {'as it is': {}, 'one layer': {'model.num_layers': 1}}, []
    with pytest.raises(ConfigError):
        run_ablation(base, grid | {'wrong': {'model.depth': 3}}, 1, tmp_path / 'g.json', told.append, max_steps=2)
    assert len(told) == 2 and len(json.loads((tmp_path / 'g.json').read_text())) == 2
    rows = run_ablation(base, grid, 2, tmp_path / 'g.json', told.append, max_steps=2)
    assert len(told) == 4 and [(r['setting'], r['seed']) for r in rows] == [
        ('as it is', 0),
        ('one layer', 0),
        ('as it is', 1),
        ('one layer', 1),
    ]
    assert rows[1]['num_parameters'] < rows[0]['num_parameters'] and rows[0]['steps'] == 2
    found = ablation_effects(rows)
    assert (
        found[0]['difference'] == 0
        and found[1]['seeds'] == 2
        and found[1]['low'] < found[1]['difference'] < found[1]['high']
    )


def test_results_stand_beside_what_counting_reaches():
    lines = results_table(records(), all_baselines()).splitlines()
    words = [l for l in lines if '| wikitext-2 | word |' in l]
    doors = [float(l.split('|')[8].replace(',', '')) for l in words]
    assert (
        doors == sorted(doors, reverse=True)
        and any('Kneser-Ney, order 5' in l for l in words)
        and any('lstm-a' in l for l in words)
    )
    assert len({l.count('|') for l in lines}) == 1


def test_a_grid_that_is_interrupted_keeps_its_whole_runs_only(tmp_path, monkeypatch):
    base, why = small('lstm-small', **{'train.max_steps': 4}), T.Trainer.stop_reason
    run_ablation(base, {'as it is': {}}, 1, tmp_path / 'g.json')
    monkeypatch.setattr(
        T.Trainer, 'stop_reason', lambda t, asked: 'interrupted' if t.state.step == 2 else why(t, asked)
    )
    with pytest.raises(KeyboardInterrupt):
        run_ablation(base, {'as it is': {}, 'wider': {'model.hidden_size': 20}}, 1, tmp_path / 'g.json')
    monkeypatch.setattr(T.Trainer, 'stop_reason', why)
    assert [r['setting'] for r in json.loads((tmp_path / 'g.json').read_text())] == ['as it is']
    rows = run_ablation(base, {'as it is': {}, 'wider': {'model.hidden_size': 20}}, 1, tmp_path / 'g.json')
    assert [(r['setting'], r['steps']) for r in rows] == [('as it is', 4), ('wider', 4)]
