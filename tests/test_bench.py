"The scales, not the weights: what benchmarks write, and what they refuse. No time is ever asserted."

import json

import pytest

from lmcourse.errors import LMCourseError
from lmcourse.experiments import bench


def test_rounds_take_turns():
    calls, now = [], iter(range(1000))
    seconds = bench.time_interleaved({n: lambda n=n: calls.append(n) for n in 'abc'}, 4, clock=lambda: next(now))
    assert ''.join(calls) == 'abc' + 'abc' + 'bca' + 'cab' + 'abc'
    assert seconds == {n: [1] * 4 for n in 'abc'}


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
