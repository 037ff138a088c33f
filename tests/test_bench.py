"The scales, not the weights: what benchmarks write, and what they refuse. No time is ever asserted."

import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lmcourse.data.text import Corpus
from lmcourse.data.tokens import tokenize_corpus
from lmcourse.errors import LMCourseError
from lmcourse.experiments import bench
from lmcourse.models.counting import CountingError
from lmcourse.models.ngram import KneserNey


def test_rounds_take_turns():
    calls, now = [], iter(range(1000))
    seconds = bench.time_interleaved({n: lambda n=n: calls.append(n) for n in 'abc'}, 4, clock=lambda: next(now))
    assert ''.join(calls) == 'abc' + 'abc' + 'bca' + 'cab' + 'abc'
    assert seconds == {n: [1] * 4 for n in 'abc'}


def test_slow_ones_are_called_once():
    "A slow contestant takes its turn in the first round, without a warmup; its ratio is that round's."
    calls, now = [], iter(range(1000))
    fns = {n: lambda n=n: calls.append(n) for n in 'ab'}
    seconds = bench.time_interleaved(fns, 3, clock=lambda: next(now), once=['b'])
    assert ''.join(calls) == 'a' + 'ab' + 'a' + 'a'
    assert bench.ratio(seconds, 'b', 'a') == (1, 1, 1)


def test_ratio_is_of_rounds_not_of_medians():
    seconds = dict(a=[2.0, 30.0, 4.0], b=[1.0, 10.0, 4.0])
    assert bench.ratio(seconds, 'a', 'b') == (2, 1.5, 2.5)


def test_what_is_kept_is_what_is_returned(tmp_path):
    answer = bench.run_benchmarks(tmp_path / 'kept.json', quick=True, only=['ngram'])
    kept = json.loads((tmp_path / 'kept.json').read_text())
    assert list(kept) == ['environment', 'quick', 'ngram'] == list(answer) and kept['quick'] is True
    assert kept['ngram']['num_tokens'] == answer['ngram']['num_tokens'] == 20_000
    assert not any(str(tmp_path) in line for line in (tmp_path / 'kept.json').read_text().splitlines())


def test_refusals(tmp_path):
    with pytest.raises(LMCourseError, match='no benchmark haste'):
        bench.run_benchmarks(only=['haste'])
    with pytest.raises(LMCourseError, match='its folder is not there'):
        bench.run_benchmarks(tmp_path / 'no' / 'kept.json', only=['ngram'])
    with pytest.raises(LMCourseError, match='a contestant and a round'):
        bench.time_interleaved({'a': print}, 0)


def test_what_is_shipped_can_be_read():
    kept = bench.load_stored()
    assert not kept['quick'] and set(kept) >= {'environment', *bench.BENCHMARKS}
    for case in kept['fused_loss']['shapes'] + kept['fused_loss']['curve']:
        assert (
            set(case) == {'num_tokens', 'width', 'vocab_size', 'seconds', 'memory'} and 'fused fp32' in case['seconds']
        )
        assert 'times as long' in bench.ratios_table([case], 'fused fp32')


def test_slow_16_bits_do_not_compete():
    assert not any(name.endswith(('bf16', 'autocast')) for name in bench.losses(False))
    assert {'fused bf16', 'full autocast'} <= set(bench.losses(True))


def test_a_step_is_counted_by_hand():
    "Two LSTM layers of 256, a head of 33,278 types, 2,240 tokens: products, exponentials and bytes."
    n = bench.count_step('lstm-a', 33_278)
    assert n['layers']['flops'] == 6 * 2240 * 2 * 4 * 256 * (256 + 256)
    assert n['layers']['exps'] == 2240 * 2 * 5 * 256
    assert n['head and loss'] == dict(
        flops=6 * 2240 * 33_278 * 256, exps=2240 * 33_278, bytes=8 * (33_278 * 256 + 33_278 + 2240 * 256)
    )
    parameters = 2 * 33_278 * 256 + 33_278 + 2 * (2 * 4 * 256 * 256 + 8 * 256)
    assert n['clip and AdamW'] == dict(flops=0, exps=0, bytes=32 * parameters)


def test_tied_weights_are_counted_once():
    n = bench.count_step('awd-lstm', 33_278)
    assert n['layers']['flops'] == 6 * 5600 * 4 * (1150 * (400 + 1150) + 1150 * (1150 + 1150) + 400 * (1150 + 400))


def test_the_scarcest_resource_decides():
    counts = {'a': dict(flops=6, exps=1, bytes=1), 'b': dict(flops=0, exps=0, bytes=8)}
    assert bench.floor_seconds(counts, dict(fp32=2, bf16=3, exps=1, bytes=4)) == dict(a=2, b=2)
    assert bench.floor_seconds(counts, dict(fp32=2, bf16=None, exps=1, bytes=4)) == dict(a=3, b=2)


def test_what_the_kernel_gains_is_a_table():
    row = dict(width=16, task='training', precision='fp32', seconds=dict(loop=[4.0, 6.0], kernel=[2.0, 2.0]))
    table = bench.kernel_table([row, row | dict(task='evaluation'), row | dict(width=32)])
    assert table.count('2.50 (2.25 – 2.75)') == 3
    assert len(table.splitlines()) == 4


def test_without_a_kernel_the_loop_is_measured_alone(monkeypatch):
    with bench.native.using('never'):
        assert bench.bench_kernel(16, 100, 10, 1) == []
        assert not any(name.startswith('native') for name in bench.losses())
        step = bench.bench_floor('chinchilla-small', 100, 2)
    assert list(step['seconds']) == list(step['parts']) == list(step['profile']) == ['loop']
    assert 0 < sum(fraction for _, fraction in step['profile']['loop']) <= 1 + 1e-9


def test_what_is_shipped_of_native_and_floors():
    "Every width both ways, every recipe of the list, and no step below its floor."
    kept = bench.load_stored()
    assert {r['width'] for r in kept['native']} == set(bench.WIDTHS)
    floors = kept['floors']
    assert [s['recipe'] for s in floors['steps']] == list(bench.STEP_RECIPES)
    for s in floors['steps']:
        assert s['counts'] == bench.count_step(s['recipe'], s['vocab_size'])
        least = sum(bench.floor_seconds(s['counts'], floors['ceilings']).values())
        assert all(least < t for seconds in s['seconds'].values() for t in seconds)
    assert 'floor / step, loop' in bench.floors_table(floors)


@pytest.mark.parametrize('exponent', [-1, 0, 0.5, 1, 2])
def test_a_known_exponent_is_found(exponent):
    "Four points on a power law, and four that a known noise lifts and lowers."
    x = [16, 64, 256, 1024]
    exact = bench.fit_exponent(x, [3 * n**exponent for n in x])
    assert exact['exponent'] == pytest.approx(exponent, abs=1e-9)
    assert exact['worst'] == pytest.approx(1)
    assert exact['points'] == 4
    noise = [1.1, 1 / 1.1, 1 / 1.1, 1.1]  # orthogonal to any line
    noisy = bench.fit_exponent(x, [3 * n**exponent * k for n, k in zip(x, noise)])
    assert noisy['exponent'] == pytest.approx(exponent, abs=1e-9)
    assert noisy['worst'] == pytest.approx(1.1)


def test_an_exponent_needs_two_sizes():
    assert bench.fit_exponent([1, 2, 4, 8], [None, 2, 0, 8]) == pytest.approx(dict(exponent=1, worst=1, points=2))
    with pytest.raises(LMCourseError, match='two sizes or more'):
        bench.fit_exponent([1, 2], [None, 5])
    with pytest.raises(LMCourseError, match='two sizes or more'):
        bench.fit_exponent([2, 2], [4, 5])


def test_growth_in_quick_mode():
    "Times of loss and step, memory of the loss in fresh processes; the table has a line for each."
    loss, step = bench.bench_growth(quick=True)
    assert (loss['what'], step['what']) == ('loss', 'step')
    for row in (loss, step):
        assert set(row['seconds']) == set(row['memory']) == {'full logits', 'ours'}
        for way, rounds in row['seconds'].items():
            assert len(rounds) == len(row['values']) == len(row['memory'][way])
            assert all(t > 0 for seconds in rounds for t in seconds)
    assert step['memory'] == {way: [None] * len(step['values']) for way in step['memory']}
    assert bench.growth_fits(step)['ours']['memory'] is None
    assert len(bench.growth_table([loss, step]).splitlines()) == 4
    full, ours = loss['memory'].values()
    if None not in full:
        logits = 4 * loss['base']['num_tokens'] * loss['values'][-1]
        assert full[-1] > logits
        assert ours[-1] < full[-1]


def test_what_grows_is_one_size():
    "Every listed size is in the base, and windows fit into the tokens."
    for plan in bench.GROWTH.values():
        assert set(plan['sizes']) == set(plan['base'])
        assert max(plan['sizes']['vocab_size']) == 2**18
    with pytest.raises(LMCourseError, match='cannot be cut into windows of 48'):
        bench.growth_step('AdamW fused', 64, 32, 64, 48)


def test_both_ways_of_a_growing_step_are_the_same_step():
    "The weights after one step of either differ by rounding, not more."
    weights = []
    build = bench.TransformerConfig.build
    try:
        bench.TransformerConfig.build = lambda *a: weights.append(build(*a)) or weights[-1]
        for name in bench.GROWTH['step']['ways'].values():
            bench.growth_step(name, 64, 32, 500, 32, warm=False)()
    finally:
        bench.TransformerConfig.build = build
    for a, b in zip(weights[0].parameters(), weights[1].parameters()):
        assert (a - b).abs().max() < 5e-4  # AdamW moves a weight by at most its rate, 1e-4


def test_contestants_of_the_usual_step_agree():
    "Quick mode compares before it times: loss and gradients within rounding."
    (row,) = bench.bench_usual(quick=True)['steps']
    assert row['agreement']['as everybody writes it'] == dict(loss=0, gradients=0)
    assert set(row['agreement']) == set(row['seconds']) >= {'as everybody writes it', 'ours'}
    assert 0 < row['agreement']['ours']['gradients'] < 4e-2
    assert row['compile_seconds'] == row['missing'] == {}
    assert row['counts'] == bench.count_step('ladder-lstm', 2000, 2)


def test_another_step_is_not_timed():
    exact = 100.0, [torch.ones(4), torch.zeros(2)]
    near = 100.1, [torch.ones(4) * 1.01, torch.zeros(2)]
    assert bench.disagreement(exact, near, 0.04)['gradients'] == pytest.approx(0.01, rel=1e-3)
    with pytest.raises(LMCourseError, match='this is another step'):
        bench.disagreement(exact, near, 1e-3)
    with pytest.raises(LMCourseError, match='this is another step'):
        bench.disagreement(exact, (math.nan, exact[1]), 0.04)


def test_what_cannot_be_compiled_is_named(monkeypatch):
    "Where the compiler fails, the others are timed and its reason is kept."

    def broken(f):
        def call(*a):
            raise RuntimeError('no compiler here')

        return call

    monkeypatch.setattr(torch, 'compile', broken)
    ways = 'as everybody writes it', 'autocast, compiled', 'ours'
    row = bench.bench_usual_step('ladder-lstm', 500, 2, 1, ways)
    assert row['missing'] == {'autocast, compiled': 'RuntimeError: no compiler here'}
    assert list(row['seconds']) == ['as everybody writes it', 'ours']
    table = bench.usual_table(dict(ceilings=dict(fp32=1e12, bf16=None, bytes=1e10, exps=1e11), steps=[row]))
    assert 'no compiler here' in table


def test_the_most_that_can_be_gained():
    "A usual step of eight seconds over a floor of two: no program is more than four times as fast."
    counts = {'a': dict(flops=2, exps=0, bytes=0)}
    seconds = {'as everybody writes it': [8.0, 8.0], 'ours': [4.0, 2.0]}
    row = dict(recipe='lstm-a', num_tokens=9, counts=counts, seconds=seconds, compile_seconds={}, missing={})
    table = bench.usual_table(dict(ceilings=dict(fp32=1, bf16=None, exps=1, bytes=1), steps=[row]))
    cells = dict(zip(*([c.strip() for c in table.splitlines()[k].split('|')] for k in (0, 2))))
    assert cells['ours'] == '3.0 (2.5 – 3.5)'
    assert cells['the most'] == '4.0'
    assert cells['aim'] == '6'


def test_the_compiler_begins_from_nothing(monkeypatch):
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', 'mine')
    with bench.empty_compiler_cache():
        folder = Path(os.environ['TORCHINDUCTOR_CACHE_DIR'])
        assert folder.is_dir()
        assert not list(folder.iterdir())
    assert os.environ['TORCHINDUCTOR_CACHE_DIR'] == 'mine'
    assert not folder.exists()


def test_what_is_shipped_of_growth_and_usual_steps():
    "Each size that grows, each recipe of the list, agreement noted, and no step below its floor."
    kept = bench.load_stored()
    assert [(r['what'], r['size']) for r in kept['growth']] == [
        (w, k) for w, p in bench.GROWTH.items() for k in p['sizes']
    ]
    assert all(r['values'] == bench.GROWTH[r['what']]['sizes'][r['size']] for r in kept['growth'])
    usual = kept['usual']
    assert {s['recipe'] for s in usual['steps']} == set(bench.USUAL)
    for s in usual['steps']:
        assert s['counts'] == bench.count_step(s['recipe'], s['vocab_size'], s['batch_size'])
        least = sum(bench.floor_seconds(s['counts'], usual['ceilings']).values())
        assert all(least < t for seconds in s['seconds'].values() for t in seconds)
        assert set(s['agreement']) == set(s['seconds'])


@pytest.mark.skipif(sys.platform != 'linux', reason='memory is read from /proc')
def test_a_measurement_of_copies_counts_each_with_a_vocabulary_of_its_own(tmp_path):
    rows = ['a b c a b d e\n', 'b c a d d e a\n'] * 30
    corpus = tokenize_corpus(
        Corpus('letters', {s: rows for s in ('train', 'validation', 'test')}), 'word', cache=tmp_path
    )
    n = corpus.train.num_tokens
    for way in ('ranges', 'unique'):
        once, twice = bench.measure_counting(corpus, (None, 2 * n), way, order=3)
        assert (once['tokens'], once['copies'], twice['tokens'], twice['copies']) == (n, 1, 2 * n, 2)
        assert twice['vocab_size'] == twice['ngrams'][0] == 2 * once['ngrams'][0] == 2 * corpus.vocab_size
        assert 2 * once['ngrams'][1] - 1 <= twice['ngrams'][1] <= 2 * once['ngrams'][1] + 1
        assert once['peak'] > 10**7 and once['seconds'] >= 0
    model = KneserNey(3).fit(corpus.train.ids, corpus.vocab_size, corpus.tokenizer.bos_id)
    assert once['perplexity'] == pytest.approx(np.exp(model.nats(corpus.validation.ids).mean()), rel=1e-12)
    with pytest.raises(CountingError, match='counting 840 tokens failed: .*order'):
        bench.measure_counting(corpus, (840,), order=0)


def test_the_shipped_measurement_has_both_ways_on_one_text_and_agrees():
    "The same tables, sizes and perplexity on every text that both ways counted, in less time and memory on the whole."
    kept = bench.load_counting()
    plain = {row['tokens']: row for row in kept['unique']}
    both = [(row, plain[row['tokens']]) for row in kept['ranges'] if row['tokens'] in plain]
    assert kept['num_tokens'] in plain
    for ours, theirs in both:
        assert ours['ngrams'] == theirs['ngrams']
        assert ours['perplexity'] == theirs['perplexity']
    assert max(row['tokens'] for row in kept['ranges']) >= 100_000_000
    assert kept['environment']['processor']
    sizes, seconds = zip(*((r['tokens'], r['seconds']) for r in kept['ranges']))
    assert 0.9 < bench.fit_exponent(sizes, seconds)['exponent'] < 1.3
