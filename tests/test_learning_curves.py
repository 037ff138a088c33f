"""Learning curves: a power law gives its numbers back; a forecast reads nothing of what comes later; an interval from
a backtest holds as often as it says; and what is left to run is counted."""

import json
import math

import numpy as np
import pytest

import lmcourse.experiments.learning_curves as L
from lmcourse.experiments.learning_curves import (
    NOTE_RUNS,
    Curve,
    Forecast,
    ForecastError,
    PowerLaw,
    backtest,
    calibrated,
    curve_of_run,
    curves_of_experiments,
    error_per_doubling,
    fit_power_law,
    forecast_from_fit,
    forecast_of_run,
    outcome,
    unfinished,
    unfinished_table,
)
from lmcourse.training.recipes import get_recipe
from lmcourse.training.runs import Run, records

TOKENS = np.arange(1, 65) * 1000.0


def a_curve(law, noise=0.0, seed=0, name='made', falling=False):
    "Training rows of a power law with noise, and an evaluation at every eighth, a tenth of a nat above."
    train = law(TOKENS) + noise * np.random.default_rng(seed).standard_normal(len(TOKENS))
    validation = np.stack([TOKENS, law(TOKENS) + 0.1], 1)[7::8]
    return Curve(name, np.stack([TOKENS, train], 1), validation, falling)


@pytest.mark.parametrize('floor, scale, exponent', [(3.0, 1.2, 0.5), (0.0, 5.0, 0.1), (4.0, 0.01, 1.2)])
def test_a_power_law_gives_its_numbers_back(floor, scale, exponent):
    law = PowerLaw(floor, scale, exponent, TOKENS[-1])
    found = fit_power_law(TOKENS, law(TOKENS))
    assert found.exponent == pytest.approx(exponent, rel=0.03)
    assert found(4 * TOKENS[-1]) == pytest.approx(law(4 * TOKENS[-1]), abs=0.01)


def test_the_fit_is_the_best_of_its_exponents():
    "Against numpy's least squares with that exponent."
    noisy = PowerLaw(3.0, 1.0, 0.4, TOKENS[-1])(TOKENS) + 0.05 * np.random.default_rng(1).standard_normal(len(TOKENS))
    found = fit_power_law(TOKENS, noisy)
    x = (TOKENS / TOKENS[-1]) ** -found.exponent
    (floor, scale), *_ = np.linalg.lstsq(np.stack([np.ones_like(x), x], 1), noisy, rcond=None)
    assert (found.floor, found.scale) == pytest.approx((floor, scale))


def test_a_floor_is_not_negative():
    steep = 9 - np.log2(TOKENS / 1000)
    assert fit_power_law(TOKENS, steep).floor >= 0


def test_a_short_curve_and_the_past_are_refused():
    with pytest.raises(ForecastError, match='4 rows and a power law needs at least 5'):
        fit_power_law(TOKENS[:4], TOKENS[:4])
    with pytest.raises(ForecastError, match='one of the past'):
        forecast_from_fit(TOKENS, 1 / TOKENS, TOKENS[-1] / 2)
    with pytest.raises(ForecastError, match='had not been evaluated after 2,000 tokens'):
        a_curve(PowerLaw(3.0, 1.0, 0.4, 1e4)).forecast(64_000, 2_000)


def test_the_interval_of_the_fit_holds_where_the_law_is_true():
    "With independent noise, the only case that it is made for: at least 90 of 100 times."
    law, held = PowerLaw(3.0, 1.0, 0.4, TOKENS[-1]), 0
    for seed in range(100):
        noisy = law(TOKENS) + 0.05 * np.random.default_rng(seed).standard_normal(len(TOKENS))
        f = forecast_from_fit(TOKENS, noisy, 4 * TOKENS[-1])
        held += f.low <= law(4 * TOKENS[-1]) <= f.high
    assert held >= 90


def test_without_a_level_there_is_no_interval_and_the_same_forecast():
    curve = a_curve(PowerLaw(3.0, 1.0, 0.4, TOKENS[-1]), 0.02)
    bare, full = curve.forecast(64_000, 32_000), curve.forecast(64_000, 32_000, 0.95)
    assert math.isnan(bare.low) and math.isnan(bare.high)
    assert (bare.nats, bare.doublings) == (full.nats, full.doublings) and full.low < full.nats < full.high


def test_a_forecast_reads_nothing_of_what_comes_later():
    curve = a_curve(PowerLaw(3.0, 1.0, 0.4, TOKENS[-1]), 0.02)
    other = Curve('other', curve.train.copy(), curve.validation.copy(), False)
    other.train[32:, 1], other.validation[4:, 1] = 99.0, 98.0
    assert curve.forecast(64_000, 32_000, 0.95) == other.forecast(64_000, 32_000, 0.95)


def test_a_backtest_of_power_laws_errs_little():
    rows = backtest([a_curve(PowerLaw(3.0, 1.0, b, TOKENS[-1]), name=str(b)) for b in (0.2, 0.4, 0.8)])
    assert [(r['run'], r['doublings']) for r in rows] == [(b, d) for b in ('0.2', '0.4', '0.8') for d in (1, 2, 3)]
    assert all(abs(r['forecast'] - r['end']) < 0.02 * (r['now'] - r['end']) for r in rows)
    assert all(r['now'] >= r['end'] for r in rows)


def test_an_interval_from_a_backtest_holds_on_other_runs_like_them():
    "Curves whose exponents change on the way: made from one half, tried on the other."
    rng = np.random.default_rng(0)

    def bent(k):
        first, second = (PowerLaw(3.0, 1.0, b, 16_000) for b in rng.uniform(0.1, 0.8, 2))
        nats = np.where(TOKENS <= 16_000, first(TOKENS), second(TOKENS))
        both = np.stack([TOKENS, nats], 1)
        return Curve(str(k), both, both[7::8], False)

    made, others = ([bent(k) for k in range(150)] for _ in range(2))
    errors = error_per_doubling(backtest(made))
    held = [
        f.low <= r['end'] <= f.high
        for r in backtest(others)
        for f in [calibrated(Forecast(r['forecast'], r['low'], r['high'], r['doublings']), errors, r['now'])]
    ]
    assert 0.83 < np.mean(held) < 0.97
    assert np.mean([r['low'] <= r['end'] <= r['high'] for r in backtest(others, level=0.95)]) < 0.7


def test_a_calibrated_forecast_is_never_above_the_best_so_far():
    f = calibrated(Forecast(5.2, 5.1, 5.3, 1), (-0.4, 0.2), 5.0)
    assert (f.nats, f.high) == (5.0, 5.0) and f.low == pytest.approx(5.0)
    g = calibrated(Forecast(4.0, 3.9, 4.1, 2), (-0.4, 0.2), 5.0)
    assert (g.nats, g.low, g.high) == pytest.approx((4.0, 3.6, 4.8))


def test_the_experiments_curves_know_whether_the_rate_falls():
    falling = {c.name.rsplit(',', 1)[0]: c.falling for c in curves_of_experiments()}
    assert not falling['ceiling: as it is'] and falling['ceiling: the rate falls to zero']
    assert falling['tuned: as it is'] and not falling['tuned: constant learning rate']


class Made(Run):
    "A run of which only the parts are there that a forecast reads."

    def __init__(self, recipe, summary, rows, schedule='constant'):
        self.path, self._s, self._rows = recipe, summary, rows
        self._config = dict(recipe=recipe, optim=dict(lr_schedule=schedule))

    recipe = property(lambda self: self._config['recipe'])
    seed = property(lambda self: 0)
    config = property(lambda self: self._config)
    summary = property(lambda self: self._s)
    metrics = lambda self: self._rows


def a_run(recipe, tokens, epochs, evaluated=True, **summary):
    "A run that has read so many tokens in so many epochs, at 1,000 a second."
    law = PowerLaw(4.0, 2.0, 0.4, 1e5)
    rows = [dict(tokens_seen=t, train_nats=float(law(t))) for t in np.linspace(tokens / 20, tokens, 20)]
    if evaluated:
        rows.append(
            dict(
                tokens_seen=tokens,
                epoch=epochs,
                split='validation',
                nats_per_token=float(law(tokens)),
                perplexity=math.exp(law(tokens)),
            )
        )
    return Made(recipe, dict(tokens_seen=tokens, epochs=epochs, tokens_per_second=1000.0) | summary, rows)


def test_what_is_left_is_counted():
    errors = (-0.4, 0.2)
    rows = {r['recipe']: r for r in unfinished([a_run('lstm-b', 2e6, 1.0), a_run('chinchilla-2', 2e6, 1.0)], errors)}
    assert set(rows) == set(NOTE_RUNS)
    assert rows['lstm-b']['hours'] == pytest.approx(12 * 2e6 / 1000 / 3600)
    assert rows['lstm-b']['doublings'] == pytest.approx(math.log2(13), abs=0.01)
    assert rows['chinchilla-2']['done'] == pytest.approx(2e6 / 115_716_078)
    assert rows['chinchilla-2']['hours'] == pytest.approx((10 * 115_716_078 - 2e6) / 1000 / 3600)
    assert rows['lstm-b']['low'] < rows['lstm-b']['forecast'] <= rows['lstm-b']['high'] <= rows['lstm-b']['now']
    assert 'now' not in rows['awd-lstm'] and rows['awd-lstm']['epochs'] == 750
    table = unfinished_table(list(rows.values()))
    assert 'untried' in next(line for line in table.splitlines() if line.startswith('| lstm-b'))


def test_a_run_that_is_there_and_a_tiny_one_are_left_out():
    rows = unfinished([a_run('lstm-b', 26e6, 13.0), a_run('gru-b', 26e6, 13.0, tiny=True)], (-0.4, 0.2))
    names = [r['recipe'] for r in rows]
    assert 'lstm-b' not in names and 'now' not in rows[names.index('gru-b')]


def test_a_run_that_was_stopped_before_its_first_step_is_none():
    rows = unfinished([a_run('lstm-b', 1000.0, 0.0, evaluated=False)], (-0.4, 0.2))
    assert 'done' not in next(r for r in rows if r['recipe'] == 'lstm-b')


def test_a_perplexity_stands_beside_its_text_and_tokenizer():
    to_go = [r for r in unfinished(records(), (-0.4, 0.2)) if 'now' in r]
    assert to_go and all(r['corpus'] and r['tokenizer'] for r in to_go)


def test_the_longest_run_counts():
    rows = unfinished([a_run('lstm-b', 2e6, 1.0), a_run('lstm-b', 8e6, 4.0)], (-0.4, 0.2))
    assert rows[[r['recipe'] for r in rows].index('lstm-b')]['done'] == pytest.approx(4)


def test_a_run_without_an_evaluation_has_a_row_without_a_forecast():
    run = a_run('lstm-b', 2e6, 1.0, evaluated=False)
    with pytest.raises(ForecastError, match='has no evaluation yet'):
        forecast_of_run(run, 13, (-0.4, 0.2))
    row = next(r for r in unfinished([run], (-0.4, 0.2)) if r['recipe'] == 'lstm-b')
    assert row['now'] is None and 'forecast' not in row
    assert '| lstm-b |' in unfinished_table([row])


def test_an_outcome_is_the_best_up_to_that_epoch():
    run = a_run('lstm-b', 2e6, 1.0)
    evaluated = lambda epoch, p: dict(split='validation', epoch=epoch, perplexity=p)
    run._rows = [evaluated(1.0, 50.0), evaluated(2.0, 40.0), evaluated(3.0, 45.0), evaluated(4.0, 30.0)]
    came = lambda epochs: outcome(dict(recipe='lstm-b', seed=0, epochs=epochs), [run])
    assert (came(2), came(3), came(4), came(5)) == (40.0, 40.0, 30.0, None)


def test_the_stored_forecasts_follow_from_the_records_first_two_epochs():
    """What was stored before the runs went on is what the function computes from that much of the published curves, within
    half a per cent: it was computed with half as many exponents."""
    stored = json.loads((L.files('lmcourse') / 'records' / 'forecasts.json').read_text(encoding='utf-8'))
    errors, runs = error_per_doubling(backtest(curves_of_experiments())), {r.recipe: r for r in records()}
    for f in stored:
        run = runs[f['recipe']]
        if run.summary['epochs'] > 1.99:
            again = forecast_of_run(run, f['epochs'], errors, known=f['known'])
            assert {k: f[k] for k in again} == pytest.approx(again, rel=5e-3)


def test_every_recipe_of_a_note_that_reports_a_perplexity_is_in_the_list():
    from lmcourse.training.recipes import RECIPES

    assert {n for n in RECIPES if get_recipe(n).reported_perplexity} <= set(NOTE_RUNS)


def test_a_records_curve_has_its_rows():
    curve = curve_of_run(next(r for r in records() if r.recipe == 'lstm-tuned'))
    assert curve.falling and len(curve.validation) == 9 and len(curve.train) > 100
    assert (np.diff(curve.train[:, 0]) > 0).all()
