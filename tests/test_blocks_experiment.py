"""Semantic blocks against dense models: rivals that are equal in what they say, runs that go on after a stop, a verdict
that leaves the leak out, and a record that holds all of it."""

import json
import math
from importlib.resources import files

import pytest

from lmcourse.experiments import blocks, scaling
from lmcourse.experiments.blocks import LEAKING, PARTS, RATES, SETTINGS, run_rivals, verdict
from lmcourse.experiments.campaign import load_campaign
from lmcourse.models import semantic_blocks
from lmcourse.models.semantic_blocks import SemanticBlocksConfig
from lmcourse.training.recipes import get_recipe, num_parameters, override, tiny
from lmcourse.training.trainer import Trainer

RECORDS = files('lmcourse') / 'records'
OLD = ('mu-sota', 'dense-baseline-old', 'dense-64-old', 'dense-flops-old', 'dense-nontable-old')
NEW = ('mu-sota-long', 'mu-small', 'dense-baseline', 'dense-64', 'dense-flops', 'dense-nontable')


def record(name):
    return json.loads((RECORDS / name).read_text(encoding='utf-8'))


def operations(name):
    r = get_recipe(name)
    count = semantic_blocks if isinstance(r.model, SemanticBlocksConfig) else scaling
    vocab_size = int(r.data.tokenizer.partition(':')[2])
    return sum(count.forward_flops_per_token(r.model, vocab_size, r.data.seq_len).values())


# the recipes


def test_the_notes_models_have_the_notes_parameters():
    assert num_parameters(get_recipe('mu-sota')) == 16_690_000
    assert num_parameters(get_recipe('dense-baseline')) == 16_702_816
    assert num_parameters(get_recipe('dense-baseline'), 50_257) == 16_756_272


@pytest.mark.parametrize('name', OLD)
def test_the_first_settings_are_the_notes(name):
    r = get_recipe(name)
    assert (r.data.corpus, r.data.tokenizer) == ('wikitext-2-raw', 'bpe-note:50000')
    assert (r.data.seq_len, r.data.stride, r.data.batch_size, r.optim.grad_accum_steps) == (128, 64, 6, 4)
    assert (r.optim.lr, r.optim.warmup_steps, r.optim.schedule_stretch, r.train.epochs) == (3e-4, 500, 4, 10)


@pytest.mark.parametrize('name', NEW)
def test_the_second_settings_are_the_notes(name):
    r = get_recipe(name)
    assert (r.data.seq_len, r.data.stride, r.data.batch_size, r.optim.grad_accum_steps) == (192, 96, 4, 8)
    assert (r.optim.lr, r.optim.warmup_steps, r.optim.schedule_stretch, r.train.epochs) == (1e-4, 2000, 1, 30)


@pytest.mark.parametrize('blocks_name, suffix', [('mu-sota', '-old'), ('mu-sota-long', '')])
def test_each_rival_is_equal_in_what_it_says(blocks_name, suffix):
    r = get_recipe(blocks_name)
    tables = semantic_blocks.parameter_breakdown(r.model, 50_000)['gating tables']
    whole = num_parameters(r)
    assert num_parameters(get_recipe(f'dense-baseline{suffix}')) == pytest.approx(whole, rel=1e-3)
    assert num_parameters(get_recipe(f'dense-nontable{suffix}')) == pytest.approx(whole - tables, rel=5e-3)
    assert num_parameters(get_recipe(f'dense-64{suffix}')) == pytest.approx(whole - tables, rel=5e-3)
    assert operations(f'dense-flops{suffix}') == pytest.approx(operations(blocks_name), rel=1e-2)
    same = get_recipe(f'dense-64{suffix}').model
    assert (same.d_model, same.num_layers) == (r.model.d_model, r.model.num_layers)


def test_each_small_rival_is_equal_in_what_it_says():
    r = get_recipe('blocks-small')
    tables = semantic_blocks.parameter_breakdown(r.model, 2048)['gating tables']
    whole = num_parameters(r)
    for name in ('dense-small-params', 'dense-small-planned'):
        assert 0.99 * whole < num_parameters(get_recipe(name)) <= whole
    assert num_parameters(get_recipe('dense-small-64')) == pytest.approx(whole - tables, rel=5e-3)
    assert operations('dense-small-flops') == pytest.approx(operations('blocks-small'), rel=2e-2)
    same = get_recipe('dense-small-64').model
    assert (same.d_model, same.num_layers) == (r.model.d_model, r.model.num_layers)


def test_the_small_recipes_differ_in_their_model_and_each_has_the_best_rate_that_was_tried():
    found = {name: get_recipe(name) for name, _ in SETTINGS.values()}
    assert len({(r.data, r.train) for r in found.values()}) == 1
    assert len({override(r, {'optim.lr': 1.0}).optim for r in found.values()}) == 1
    best = {}
    for r in sorted(record('blocks_rates.json'), key=lambda r: -r['validation']['nats_per_token']):
        best[r['recipe']] = r['changes']['optim.lr']
    assert {name: found[name].optim.lr for name in best} == best
    assert {found[name].optim.lr for name in ('dense-small-flops', 'dense-small-64')} == {best['dense-small-params']}


def test_the_6x6_matrix_holds_nine_blocks():
    assert get_recipe('mu-small').model.num_blocks == 9


@pytest.mark.parametrize('settings', [SETTINGS, PARTS, RATES], ids=['settings', 'parts', 'rates'])
def test_every_setting_is_a_recipe_with_changes(settings):
    made = [override(get_recipe(name), changes) for name, changes in settings.values()]
    assert len({str(r.to_dict()) for r in made}) == len(settings)


def test_only_one_setting_sees_the_future():
    seeing = [s for s, (_, changes) in SETTINGS.items() if changes.get('model.sees_future')]
    assert seeing == [LEAKING]


def test_the_campaign_has_the_claim_and_its_repairs():
    runs = [run for run in load_campaign('gpu') if run.recipe in ('mu-sota', 'mu-sota-long') or 'dense' in run.recipe]
    recipes = [run.to_recipe() for run in runs]
    leaking = [run for run, r in zip(runs, recipes) if run.recipe == 'mu-sota' and r.model.sees_future]
    assert [run.expected for run in leaking] == [402.17]
    assert {r.train.epochs for r in recipes} == {10}
    for name in ('mu-sota', 'dense-baseline-old'):
        mended = {r.optim.schedule_stretch for r in recipes if r.name == name}
        assert mended == {1, 4}


@pytest.mark.parametrize('name', ['mu-sota', 'dense-baseline-old'])
def test_the_small_twin_takes_a_step(name, tmp_path, monkeypatch):
    monkeypatch.setenv('LMCOURSE_CACHE', str(tmp_path / 'cache'))
    trainer = Trainer(tiny(get_recipe(name), 'markov'), tmp_path / 'run', show=False)
    nats, count, norm = trainer.train_step(next(trainer.steps()))
    assert math.isfinite(float(nats)) and float(norm) > 0
    assert count <= 4 * 16 * 35


# the runs


def test_runs_go_on_after_a_stop(tmp_path, monkeypatch):
    made = []

    def run(setting, recipe_name, changes, seed):
        made.append((setting, seed))
        if len(made) == 3:
            raise KeyboardInterrupt
        return dict(setting=setting, seed=seed, validation=dict(perplexity=2.0))

    monkeypatch.setattr(blocks, 'run_rival', run)
    settings, out = {'a': ('blocks-small', {}), 'b': ('dense-small-64', {})}, tmp_path / 'rows.json'
    with pytest.raises(KeyboardInterrupt):
        run_rivals(settings, range(2), out)
    assert len(json.loads(out.read_text())) == 2
    said = []
    rows = run_rivals(settings, range(2), out, said.append)
    assert [(r['setting'], r['seed']) for r in rows] == [('a', 0), ('b', 0), ('a', 1), ('b', 1)]
    assert made == [('a', 0), ('b', 0), ('a', 1), ('a', 1), ('b', 1)]
    assert said == ['a, seed 1: 2.00', 'b, seed 1: 2.00']


def test_a_run_is_a_row(tmp_path, monkeypatch):
    monkeypatch.setenv('LMCOURSE_CACHE', str(tmp_path / 'cache'))
    changes = {
        'data.corpus': 'markov',
        'data.tokenizer': 'word',
        'model.num_layers': 1,
        'model.matrix_size': 4,
        'model.num_heads': 4,
        'train.max_steps': 3,
        'train.log_every': 1,
    }
    row = blocks.run_rival('mine', 'blocks-small', changes, 5)
    assert (row['setting'], row['recipe'], row['seed'], row['steps']) == ('mine', 'blocks-small', 5, 3)
    assert row['validation']['num_tokens'] > 0 and 0 < row['validation']['accuracy'] < 1
    assert [step for step, _, _ in row['learnt']] == [1, 2, 3]
    assert len(row['curve']) == 1


# the verdict


def made(nats):
    "Rows as runs would give them: {setting: nats of each seed}."
    validation = lambda x: dict(nats_per_token=x, accuracy=0.25)
    return [
        dict(setting=s, seed=seed, num_parameters=7, validation=validation(x))
        for s, some in nats.items()
        for seed, x in enumerate(some)
    ]


def test_a_verdict_has_differences_with_intervals_and_no_leak():
    rows = made({'blocks': [4.0, 4.2, 4.1], 'dense': [3.0, 3.2, 3.1], LEAKING: [0.1, 0.1, 0.1]})
    mine, dense = verdict(rows)
    assert [r['setting'] for r in (mine, dense)] == ['blocks', 'dense']
    assert 'low' not in mine and mine['n'] == 3 and mine['accuracy'] == 0.25
    assert dense['difference'] == pytest.approx(-1)
    assert dense['low'] < -1 < dense['high'] < 0
    assert dense['lower'] == 3


def test_differences_seed_by_seed_do_without_what_the_seeds_share():
    rows = made({'blocks': [4.0, 5.0, 6.0], 'dense': [3.9, 4.91, 5.9]})
    _, dense = verdict(rows)
    assert dense['low'] < 0 < dense['high']
    assert dense['paired_low'] < dense['paired_high'] < 0


# the record


def test_the_record_holds_every_setting_with_five_seeds_on_the_same_tokens():
    rows = record('blocks.json')
    made = sorted((r['setting'], r['seed']) for r in rows)
    assert made == sorted([(s, n) for s in SETTINGS for n in range(5)] + [(s, n) for s in PARTS for n in range(3)])
    same = {(r['tokens_seen'], r['steps'], r['validation']['fingerprint'], r['validation']['num_tokens']) for r in rows}
    assert len(same) == 1
    for r in rows:
        name, changes = (SETTINGS | PARTS)[r['setting']]
        assert (r['recipe'], r['changes']) == (name, changes)
        assert r['num_parameters'] == num_parameters(override(get_recipe(name), changes))


def test_the_rates_were_tried_with_a_seed_that_is_not_compared():
    rows = record('blocks_rates.json')
    assert {r['setting'] for r in rows} == set(RATES)
    assert not {r['seed'] for r in rows} & {r['seed'] for r in record('blocks.json')}


def test_the_counts_of_the_notes_tokens_are_on_record():
    assert {m['num_tokens'] for m in record('blocks_ngrams.json')} == {231_667}
    assert {m['tokenizer'] for m in record('blocks_ngrams.json')} == {'bpe-note:50000'}
