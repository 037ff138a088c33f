"The scales, not the weights: what benchmarks write, and what they refuse. No time is ever asserted."

import json
import pytest
from lmcourse.experiments import bench
from lmcourse.errors import LMCourseError


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
