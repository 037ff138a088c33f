"""Scaling: operations counted by hand are those that the counter sees; a grid goes on where it was killed, in one
process or several; a law is found where there is one; a prediction comes before its run."""

import json
import math
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import lmcourse.experiments.scaling as S
from lmcourse.experiments.scaling import (
    ScalingError,
    ScalingLaw,
    completed,
    fit_isoflop,
    fit_law,
    fit_many,
    forward_flops_per_token,
    huber,
    isoflop_plan,
    predict_loss,
    predict_then_run,
    run_grid,
    size_overrides,
    train_and_measure,
    training_flops_per_token,
)
from lmcourse.files import read_json
from lmcourse.models.base import ConfigError
from lmcourse.models.transformer import TransformerConfig
from lmcourse.training.recipes import get_recipe, num_parameters, override
from lmcourse.training.trainer import Diverged


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('LMCOURSE_CACHE', str(tmp_path / 'cache'))


def base(**changes):
    "The lesson's base on the made source, in windows of 16."
    return override(
        get_recipe('scaling-small'),
        {
            'data.corpus': 'markov',
            'data.tokenizer': 'word',
            'data.seq_len': 16,
            'model.context_length': 16,
            'train.max_steps': 6,
            'optim.warmup_steps': 1,
        }
        | changes,
    )


TYPES = 26  # the made source: 24 words, the row's end and <unk>
PLAN = {f'run {n}': size_overrides(16, 1) | {'train.max_steps': n} for n in (3, 4, 5)}
plain = lambda rows: [{k: v for k, v in r.items() if k != 'seconds'} for r in rows]

# ---- what a token costs


@pytest.mark.parametrize(
    'c',
    [
        TransformerConfig(24, 2, 96, 3, 40, 0.1),
        TransformerConfig(24, 2, 36, 1, 20, 0.0, positions='rotary', activation='swiglu', bias=False),
        TransformerConfig(
            32,
            2,
            50,
            2,
            64,
            0.0,
            positions='rotary',
            norm='rms',
            activation='relu2',
            qk_norm=True,
            bias=False,
            lm_head_bias=False,
            init='zero_residual',
        ),
    ],
    ids=['notes', 'swiglu', 'all'],
)
@pytest.mark.parametrize('length', [None, 16])
def test_every_product_is_counted_once_forward_and_twice_backward(c, length):
    T = length or c.context_length
    model, x_BT = c.build(70), torch.randint(70, (3, T))
    loss = lambda: F.cross_entropy(model.logits(x_BT)[0].flatten(0, 1), x_BT.flatten())

    def seen(run):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    assert seen(loss) == x_BT.numel() * sum(forward_flops_per_token(c, 70, length).values())
    assert seen(lambda: loss().backward()) == x_BT.numel() * training_flops_per_token(c, 70, length)


def test_the_rule_of_thumb_is_the_count_without_attention_for_tied_tables():
    c = override(base(), size_overrides(64, 3)).model
    f = forward_flops_per_token(c, 1024)
    matrices = (
        num_parameters(override(base(), size_overrides(64, 3)), 1024) - (2 * c.num_layers + 1) * 64
    )  # all but the norms
    assert 3 * (f['linear layers'] + f['head']) == 6 * matrices


# ---- one run


def test_a_run_says_what_it_cost_and_reads_no_more_than_it_may():
    r = train_and_measure(base())
    assert (r['num_tokens'], r['unique'], r['steps']) == (6 * 8 * 16, 6 * 8 * 16, 6)
    assert (
        r['num_parameters'] == num_parameters(base(), TYPES)
        and r['non_embedding'] < r['num_parameters']
        and r['nats'] > 0
    )
    few = train_and_measure(base(**{'train.epochs': 7}), unique=128)
    assert (few['num_tokens'], few['unique'], few['steps']) == (768, 128, 6) and few['nats'] != r['nats']


def test_the_shorter_text_is_all_that_is_read(monkeypatch):
    seen, step = set(), S.Trainer.train_step

    def watch(t, group):
        seen.update(y for _, y_BT in group for y in y_BT.flatten().tolist())
        ids.append(t.data.train.ids[:128])
        return step(t, group)

    ids = []
    monkeypatch.setattr(S.Trainer, 'train_step', watch)
    train_and_measure(base(**{'train.epochs': 7}), unique=128)
    assert seen == set(ids[0].tolist())


def test_a_run_that_is_stopped_has_the_rate_of_the_whole(monkeypatch):
    rates, step = [], S.Trainer.train_step

    def watch(t, group):
        found = step(t, group)
        rates.append(t.optimizer.param_groups[0]['lr'])
        return found

    monkeypatch.setattr(S.Trainer, 'train_step', watch)
    whole = train_and_measure(base())
    first, rates[:] = rates[:], []
    half = train_and_measure(base(), stop=3)
    assert (
        rates == first[:3]
        and half['steps'] == 3
        and half['nats'] != whole['nats']
        and 2 * half['flops'] == whole['flops']
    )


def test_a_loss_that_is_no_number_stops_at_once():
    with pytest.raises(Diverged, match='step [1-9]+ of 60'):
        train_and_measure(base(**{'optim.lr': 1e12, 'train.max_steps': 60}))


# ---- a grid


def test_a_plan_spends_its_budgets_and_leaves_out_what_the_text_cannot_feed():
    sizes, budgets = [(16, 1), (32, 1), (32, 2)], [2e7, 4e7, 1e12]
    plan = isoflop_plan(base(), sizes, budgets, min_steps=3)
    assert plan and all(name.startswith(('2e+07', '4e+07')) for name in plan)
    for name, change in plan.items():
        r = override(base(), change)
        n = r.train.max_steps
        assert (
            n >= 3
            and abs(training_flops_per_token(r.model, TYPES, 16) * 128 * n - float(name.split()[0]))
            <= training_flops_per_token(r.model, TYPES, 16) * 64
        )
        assert r.optim.warmup_steps == n // 20
    assert not isoflop_plan(base(), sizes, [1e6], min_steps=3)


def test_rows_are_made_once(tmp_path, monkeypatch):
    rows = run_grid(base(), PLAN, tmp_path / 'grid.json')
    assert [r['run'] for r in rows] == list(PLAN) and read_json(tmp_path / 'grid.json') == rows
    monkeypatch.setattr(S, 'train_and_measure', lambda *a, **k: pytest.fail('made twice'))
    assert run_grid(base(), PLAN, tmp_path / 'grid.json') == rows
    assert run_grid(base(), dict(reversed(PLAN.items())), tmp_path / 'grid.json') == rows[::-1]
    with pytest.raises(ScalingError, match='other settings'):
        run_grid(base(), {'run 3': PLAN['run 4']}, tmp_path / 'grid.json')
    with pytest.raises(ScalingError, match='other settings'):
        run_grid(base(**{'optim.lr': 0.5}), PLAN, tmp_path / 'grid.json')


def test_a_mistake_in_the_settings_is_told_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(S, 'train_and_measure', lambda *a, **k: pytest.fail('ran'))
    with pytest.raises(ConfigError, match='depth'):
        run_grid(base(), PLAN | {'wrong': {'model.depth': 3}}, tmp_path / 'grid.json')
    assert not (tmp_path / 'grid.json').exists()


@pytest.mark.parametrize('jobs', [1, 2])
def test_a_broken_run_gets_a_row_that_says_so_and_the_others_go_on(tmp_path, jobs):
    told = []
    rows = run_grid(
        base(),
        {'bad': {'optim.lr': 1e12, 'train.max_steps': 60}, 'run 3': PLAN['run 3']},
        tmp_path / 'grid.json',
        jobs=jobs,
        log_fn=told.append,
    )
    assert (
        'stopped being a number' in rows[0]['broken']
        and [r['run'] for r in completed(rows)] == ['run 3']
        and len(told) == 2
    )
    assert any('stopped being a number' in line for line in told)
    assert plain(run_grid(base(), {'bad': {'optim.lr': 1e12, 'train.max_steps': 60}}, tmp_path / 'grid.json')) == plain(
        rows[:1]
    )


def test_a_process_that_is_ended_by_the_system_is_a_broken_run_too(tmp_path, monkeypatch):
    monkeypatch.setattr(S.pickle, 'dumps', lambda work: b'no work')
    rows = run_grid(base(), {'run 3': PLAN['run 3']}, tmp_path / 'grid.json', jobs=2)
    assert all('its process ended with 1' in r['broken'] for r in rows)


def test_two_at_a_time_come_to_the_same(tmp_path):
    one, two = (run_grid(base(), PLAN, tmp_path / f'{jobs}.json', jobs=jobs) for jobs in (1, 2))
    assert plain(one) == plain(two) and {r['run'] for r in read_json(tmp_path / '2.json')} == set(PLAN)


SCRIPT = '''
import sys
from lmcourse.experiments.scaling import *
from lmcourse.training.recipes import get_recipe, override
sys.path.insert(0, sys.argv[2])
from test_scaling import base, PLAN
run_grid(base(), {f'run {n}': PLAN['run 3'] | {'train.max_steps': n} for n in range(20, 25)}, sys.argv[1], jobs=int(sys.argv[3]))
'''


@pytest.mark.parametrize('jobs', [1, 2])
def test_killed_it_goes_on_where_it_was(tmp_path, jobs):
    out, settings = tmp_path / 'grid.json', {f'run {n}': PLAN['run 3'] | {'train.max_steps': n} for n in range(20, 25)}
    process = subprocess.Popen([sys.executable, '-c', SCRIPT, out, str(Path(__file__).parent), str(jobs)])
    for _ in range(6000):
        if out.exists() or process.poll() is not None:
            break
        time.sleep(0.02)
    process.kill()
    process.wait()
    before = read_json(out)
    assert 1 <= len(before) < 5
    rows = run_grid(base(), settings, out)
    assert read_json(out)[: len(before)] == before and {r['run'] for r in rows} == set(settings)
    assert plain(rows) == plain(run_grid(base(), settings, tmp_path / 'whole.json'))


# ---- the law

KNOWN = ScalingLaw(2.0, 300.0, 0.5, 400.0, 0.45)


def points(law=KNOWN, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    return [
        dict(
            num_parameters=n,
            num_tokens=C / 7 / n,
            flops=C,
            nats=float(law(n, C / 7 / n)) * math.exp(noise * rng.standard_normal()),
        )
        for C in (2.5e11, 5e11, 1e12, 2e12)
        for n in (2e4, 4.5e4, 1e5, 1.6e5, 3.1e5, 7e5)
    ]


@pytest.mark.parametrize(
    'law', [KNOWN, ScalingLaw(1.7, 400.0, 0.34, 410.0, 0.28), ScalingLaw(0.3, 50.0, 0.25, 3000.0, 0.7)]
)
def test_a_law_is_found_where_there_is_one(law):
    found = fit_law(points(law))[0]
    for k, v in asdict(law).items():
        assert getattr(found, k) == pytest.approx(v, rel=0.01)


def test_one_bad_run_does_not_move_it_and_broken_ones_do_not_count():
    rows = points()
    rows[7]['nats'] *= 1.2
    found = fit_law(rows + [dict(broken='why')])[0]
    for k, v in asdict(KNOWN).items():
        assert getattr(found, k) == pytest.approx(v, rel=0.01)
    with pytest.raises(ScalingError, match='at least six'):
        fit_law(rows[:5])


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    held = []
    for seed in range(12):
        p = predict_loss(points(noise=0.01, seed=seed), 4e5, 2.5e6, resamples=100, seed=seed)
        held.append(
            p['low']
            < KNOWN(4e5, 2.5e6) * math.exp(0.01 * np.random.default_rng(1000 + seed).standard_normal())
            < p['high']
        )
        assert p['low'] < p['nats'] < p['high'] and p['runs'] == 24
    assert sum(held) >= 9


def test_the_best_way_to_spend_a_budget_is_the_best():
    n, d = KNOWN.best(3e12, 7.0)
    assert n * d * 7 == pytest.approx(3e12)
    assert all(KNOWN(n, d) < KNOWN(n * f, d / f) for f in (0.5, 0.9, 1.1, 2))
    assert KNOWN.best(16e12)[0] / KNOWN.best(1e12)[0] == pytest.approx(16 ** (0.45 / 0.95))


def test_huber_is_a_bowl_and_then_a_cone():
    r = torch.linspace(-0.01, 0.01, 41).double()
    assert huber(r.numpy()).sum() == pytest.approx(
        F.huber_loss(r, torch.zeros(41).double(), delta=1e-3, reduction='sum').item()
    )


def test_a_step_that_does_not_help_is_taken_back():
    rows = points(noise=0.01)
    n, d, y = np.log([[r[k] for r in rows] for k in ('num_parameters', 'num_tokens', 'nats')])
    start, last = np.array([[5.0, 3.0, 5.0, 3.0, -3.0], [0.0, 0.1, 0.0, 0.1, 1.0]]), np.full(2, np.inf)
    for rounds in (1, 2, 5, 20, 100):
        loss = fit_many(start, n, d, y, np.ones((2, len(n))), rounds)[1]
        assert (loss <= last).all()
        last = loss


def test_the_valley_is_between_the_runs_or_there_is_none():
    made = fit_isoflop(points(), [2.5e11, 5e11, 1e12, 2e12, 9e12])
    assert [v['budget'] for v in made] == [2.5e11, 5e11, 1e12, 2e12] and all(v['interior'] for v in made)
    for v in made:
        assert v['num_parameters'] == pytest.approx(KNOWN.best(v['budget'], 7.0)[0], rel=0.15) and v[
            'num_parameters'
        ] * v['num_tokens'] * 7 == pytest.approx(v['budget'], rel=0.01)
    left = [r for r in points() if r['num_parameters'] < 6e4 or r['flops'] < 3e11]
    assert [v['interior'] for v in fit_isoflop([r for r in points() if r['num_parameters'] > 1.5e5], [2.5e11])] == [
        False
    ] and len(fit_isoflop(left, [2e12])) == 0


# ---- a prediction


def seeded(folder, kinds=('grid',)):
    "A file as a grid would have left it, its nats from a known law."
    rows = []
    for n, (budget, sizes) in enumerate(
        ((2e7, [(16, 1), (32, 1)]), (4e7, [(16, 1), (32, 1), (32, 2)]), (8e7, [(16, 1), (32, 1), (32, 2)]))
    ):
        for name, change in isoflop_plan(base(), sizes, [budget], min_steps=1).items():
            r = override(base(), change)
            N, D = num_parameters(r, TYPES), 128 * r.train.max_steps
            rows.append(
                dict(
                    kind='grid',
                    run=name,
                    base='',
                    changes=change,
                    num_parameters=N,
                    num_tokens=D,
                    flops=training_flops_per_token(r.model, TYPES, 16) * D,
                    nats=1 + 20 / N**0.4 + 30 / D**0.4,
                )
            )
    (folder / 'grid.json').write_text(json.dumps(rows))
    return folder / 'grid.json'


def test_the_prediction_is_in_the_file_before_its_run_begins(tmp_path, monkeypatch):
    out, seen = seeded(tmp_path), []

    def watch(recipe):
        seen.append(read_json(out))
        return dict(num_parameters=1, num_tokens=1, flops=1.0, nats=3.0)

    monkeypatch.setattr(S, 'train_and_measure', watch)
    said, came = predict_then_run(base(), [(16, 1), (32, 1), (32, 2)], 2.4e8, out)
    assert len(seen) == 1 and seen[0][-1]['kind'] == 'prediction' and seen[0][-1] == said
    assert [r['kind'] for r in read_json(out)] == ['grid'] * 8 + ['prediction', 'larger'] and said['run'] == came['run']
    monkeypatch.setattr(S, 'predict_loss', lambda *a, **k: pytest.fail('said twice'))
    assert predict_then_run(base(), [(16, 1), (32, 1), (32, 2)], 2.4e8, out) == (said, came)


def test_nothing_is_foretold_of_what_is_there(tmp_path, monkeypatch):
    out = seeded(tmp_path)
    plan = isoflop_plan(base(), [(16, 1)], [2.4e8], min_steps=1)
    monkeypatch.setattr(S, 'train_and_measure', lambda *a, **k: dict(nats=3.0))
    run_grid(base(), plan, out, 'larger')
    with pytest.raises(ScalingError, match='no prediction'):
        predict_then_run(base(), [(16, 1)], 2.4e8, out)


# ---- the record

RECORD = read_json(Path(S.__file__).parents[1] / 'records' / 'scaling.json')


def test_the_record_is_of_runs_whose_counts_are_right():
    wiki = override(get_recipe('scaling-small'), {'data.corpus': 'wikitext-2-raw', 'data.tokenizer': 'bpe:1024'})
    assert {r['kind'] for r in RECORD} == {
        'rate',
        'grid',
        'seeds',
        'prediction',
        'larger',
        'epochs',
        'stopped',
        'batch',
        'counting',
    }
    for r in RECORD:
        if r['kind'] in ('prediction', 'counting'):
            continue
        recipe = override(wiki, {k: v for k, v in r['changes'].items() if k not in ('unique', 'stop')})
        d, stop = recipe.data, r['changes'].get('stop', recipe.train.max_steps)
        assert (
            r['num_parameters'] == num_parameters(recipe)
            and r['steps'] == stop
            and 0 <= stop * d.batch_size * d.seq_len - r['num_tokens'] < d.seq_len
        )  # the text's last window is short
        assert r['flops'] == pytest.approx(
            training_flops_per_token(recipe.model, 1024, 128) * r['num_tokens'], rel=1e-5
        )
        assert r['unique'] == r['changes'].get('unique', r['num_tokens'])


def test_the_record_has_its_prediction_before_the_run_and_from_the_grid_alone():
    kinds = [r['kind'] for r in RECORD]
    said, came = (next(r for r in RECORD if r['kind'] == k) for k in ('prediction', 'larger'))
    assert kinds.index('prediction') < kinds.index('larger') and max(
        i for i, k in enumerate(kinds) if k == 'grid'
    ) < kinds.index('prediction')
    grid = [r for r in RECORD if r['kind'] == 'grid']
    assert (
        said['run'] == came['run']
        and said['runs'] == len(grid)
        and 3 <= came['flops'] / max(r['flops'] for r in grid) <= 4
    )
    again = predict_loss(grid, said['num_parameters'], said['num_tokens'])
    for k in ('nats', 'low', 'high'):
        assert again[k] == pytest.approx(said[k], rel=1e-3)


@pytest.mark.parametrize('alike, says', [('num_parameters', 'same parameters'), ('num_tokens', 'same tokens')])
def test_a_law_wants_several_sizes_and_lengths(alike, says):
    rows = [
        dict(num_parameters=1e4 * (n + 1), num_tokens=1e6 * (9 - n), nats=4.0 - 0.1 * n) | {alike: 5e5}
        for n in range(9)
    ]
    with pytest.raises(ScalingError, match=says):
        fit_law(rows)


@pytest.mark.parametrize('nats', [math.nan, math.inf, -1.0, 0.0])
def test_a_law_wants_finite_nats(nats):
    rows = [dict(num_parameters=1e4 * (n + 1), num_tokens=1e6 * (9 - n), nats=4.0 - 0.1 * n) for n in range(9)]
    rows[3]['nats'] = nats
    with pytest.raises(ScalingError, match='no finite number'):
        fit_law(rows)
