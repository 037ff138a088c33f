"""What a loss, a perplexity and a reply to an exercise are at their edges, and whether a lesson takes as long as it
promises."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import stage

from lmcourse import device
from lmcourse.device import resolve_precision
from lmcourse.errors import LMCourseError
from lmcourse.interactive.exercises import Exercise
from lmcourse.measure.cross_entropy import (
    cross_entropy,
    cross_entropy_by_hand,
    cross_entropy_grad,
    kl_divergence,
    logsumexp,
)
from lmcourse.measure.fused_loss import fused_cross_entropy
from lmcourse.measure.perplexity import (
    Measurement,
    bits_per_byte,
    bits_per_token,
    block_bootstrap_ci,
    compare,
    incompatibilities,
    paired_bootstrap_ci,
    word_perplexity,
)

ROOT = Path(__file__).parent.parent
INF = math.inf
OPEN_EXERCISE = Exercise(INF, 'yes', {lambda guess: guess > 1: 'large', 0: 'zero'})


def measurement(**change):
    facts = dict(
        num_tokens=100,
        num_words=80,
        num_bytes=500,
        vocab_size=50,
        num_unk=0,
        tokenizer='word',
        eos='<eos>',
        corpus='c',
        split='test',
        fingerprint='f',
        context_length=None,
        stride=None,
        state_carried=True,
        eval_batch_size=1,
    )
    return Measurement.from_nats(change.pop('nats', 300.0), **facts | change)


# ---- exercises


@pytest.mark.parametrize(
    'guess',
    ['inf', '7', 10**400, 10**5000, [1], np.ones(3), object(), 1j, 'many'],
    ids=lambda guess: type(guess).__name__,
)
def test_an_exercise_replies_to_any_guess(guess):
    assert OPEN_EXERCISE.says(guess).startswith('Not yet')
    assert Exercise(3.0, 'yes').says(guess).startswith('Not yet')


def test_an_exercise_says_that_a_quoted_number_is_text():
    assert 'quotation marks' in OPEN_EXERCISE.says('inf')
    assert OPEN_EXERCISE.says(INF) == 'Right: yes'
    assert OPEN_EXERCISE.says(10**400) == 'Not yet: large'


def test_an_exercise_replies_to_a_function_that_returns_a_number_too_long_to_print():
    assert Exercise(lambda x: x, 'yes', cases=[(2,)]).says(lambda x: 10**5000).startswith('Not yet')


def test_an_exercise_takes_the_truth_values_of_numpy_and_torch():
    "A comparison of numpy's numbers gives numpy's True, which is as right as Python's."
    above = Exercise(lambda x: x > 1, 'yes', cases=[(2,), (0,)])
    assert above.says(lambda x: np.float64(x) > 1) == 'Right: yes'
    assert above.says(lambda x: torch.tensor(x) > 1) == 'Right: yes'
    assert above.says(lambda x: np.float64(x)).startswith('Not yet')


def test_an_exercise_takes_a_word_with_other_capitals():
    "A word is right with other capitals and blanks around it, and so is a mistake that a hint was written for."
    step = Exercise('backward', 'yes', hints={'forward': 'the other way'}, otherwise='look again')
    assert step.says(' Backward ') == 'Right: yes'
    assert step.says('FORWARD') == 'Not yet: the other way'
    assert step.says('back ward') == 'Not yet: look again'


# ---- loss


@pytest.mark.parametrize('smoothing', [0.0, 0.1, 1.0])
def test_a_logit_of_minus_infinity_costs_what_torch_says(smoothing):
    logits, targets = torch.tensor([[0.0, -INF]]), torch.tensor([0])
    hand, torchs = (f(logits, targets, label_smoothing=smoothing).nats for f in (cross_entropy_by_hand, cross_entropy))
    assert hand.item() == torchs.item()


@pytest.mark.parametrize('logits', [[-INF, -INF], [INF, 0.0], [0.0, -INF], [1000.0, 2000.0]])
def test_logsumexp_is_torchs_at_infinity(logits):
    x = torch.tensor(logits)
    assert logsumexp(x).item() == torch.logsumexp(x, -1).item()


@pytest.mark.parametrize('f', [cross_entropy_by_hand, cross_entropy])
def test_a_loss_takes_targets_from_the_cpu(f):
    "Weights on a device, targets where they were read; nothing asks the device for a value."
    tally = f(torch.empty(2, 3, 9, device='meta'), torch.tensor([[5, -100, 0], [8, 1, -100]]))
    assert tally.nats.device.type == 'meta'
    assert tally.num_tokens == 4


def test_the_gradient_and_the_divergence_take_one_argument_from_the_cpu():
    assert cross_entropy_grad(torch.empty(2, 9, device='meta'), torch.tensor([5, -100])).device.type == 'meta'
    assert kl_divergence(torch.ones(4) / 4, torch.empty(4, device='meta')).device.type == 'meta'


@pytest.mark.parametrize('chunk', [None, 2])
@pytest.mark.parametrize('precision', [None, 'fp32', 'bf16'])
def test_the_fused_loss_takes_targets_from_the_cpu(chunk, precision):
    h, w, b = (torch.empty(*shape, device='meta', requires_grad=True) for shape in ((2, 3, 4), (9, 4), (9,)))
    tally = fused_cross_entropy(h, w, b, torch.tensor([[5, -100, 0], [8, 1, -100]]), chunk=chunk, precision=precision)
    assert tally.num_tokens == 4
    assert [g.shape for g in torch.autograd.grad(tally.nats, (h, w, b))] == [h.shape, w.shape, b.shape]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
@pytest.mark.parametrize('chunk', [None, 512])
def test_the_fused_loss_does_not_wait_for_a_gpu(precision, chunk):
    g = torch.Generator().manual_seed(0)
    h, w, b = (
        torch.randn(*shape, generator=g).cuda().requires_grad_() for shape in ((2048, 128), (9000, 128), (9000,))
    )
    y = torch.randint(9000, (2048,), generator=g)
    y[::5] = -100
    fused_cross_entropy(h, w, b, y, chunk=chunk, precision=precision).nats.backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        fused_cross_entropy(h, w, b, y, chunk=chunk, precision=precision).nats.backward()
    finally:
        torch.cuda.set_sync_debug_mode('default')


# ---- precision


def test_a_device_is_timed_once_however_it_is_written(monkeypatch):
    asked = []
    monkeypatch.setattr(device, 'has_bf16', lambda device='cpu': True)
    monkeypatch.setattr(device, '_seconds', lambda dtype: asked.append(dtype) or 1.0)
    device._clocked.cache_clear()
    try:
        assert {device.bf16_is_faster(d) for d in ('cpu', torch.device('cpu'), 'cpu:0', torch.device('cpu', 0))} == {
            False
        }
    finally:
        device._clocked.cache_clear()
    assert len(asked) == 2


@pytest.mark.parametrize('pays', [True, False])
def test_precision_is_resolved(monkeypatch, pays):
    monkeypatch.setattr(device, 'bf16_is_faster', lambda device: pays)
    monkeypatch.setattr(device, 'has_bf16', lambda device: True)
    assert resolve_precision('auto', 'cpu') == ('bf16' if pays else 'fp32')
    assert resolve_precision('auto', 'cpu', multiplies=1000) == 'fp32'
    assert resolve_precision('fp32', 'cpu') == 'fp32'
    assert resolve_precision('bf16', 'cpu', multiplies=1000) == 'bf16'
    with pytest.raises(LMCourseError, match="not 'fp8'"):
        resolve_precision('fp8', 'cpu')


def test_a_device_without_16_bits_refuses_them(monkeypatch):
    monkeypatch.setattr(device, 'has_bf16', lambda device: False)
    with pytest.raises(LMCourseError, match='no products in bfloat16'):
        resolve_precision('bf16', 'cpu')


# ---- perplexity


def test_an_interval_beyond_the_largest_number_is_infinite():
    assert block_bootstrap_ci([800.0] * 5000) == (INF, INF)
    assert block_bootstrap_ci([1.0] * 4999 + [INF]) is None


@pytest.mark.parametrize(
    'quotient, what', [(bits_per_byte, 'one byte'), (bits_per_token, 'one token'), (word_perplexity, 'one word')]
)
def test_a_quotient_over_nothing_is_refused_in_words(quotient, what):
    with pytest.raises(LMCourseError, match=what):
        quotient(1.0, 0)


@pytest.mark.parametrize('change', [dict(num_bytes=None), dict(num_unk=3), dict(num_bytes=0)])
def test_bits_per_byte_are_none_where_bytes_mean_nothing(change):
    m = measurement(**change)
    assert m.num_bytes is None
    assert m.bits_per_byte is None
    assert incompatibilities(m, measurement(), 'bits_per_byte')
    assert Measurement.from_dict(m.to_dict()) == m


def test_an_old_measurement_with_unknown_tokens_loses_its_bits_per_byte():
    old = measurement().to_dict() | dict(num_unk=3)
    assert Measurement.from_dict(old).bits_per_byte is None


def test_perplexities_beyond_the_largest_number_compare_by_their_nats():
    a, b = measurement(nats=80_000.0), measurement(nats=80_100.0)
    assert a.perplexity == b.perplexity == INF
    assert compare(a, b).ratio == pytest.approx(math.exp(-1))


@pytest.mark.parametrize(
    'wrong',
    [
        dict(num_tokens='many'),
        dict(num_tokens=0),
        dict(perplexity=None),
        dict(ci95=3),
        dict(ci95=[1.0, 2.0, 3.0]),
        dict(num_bytes='500'),
        dict(corpus=None),
        dict(state_carried='yes'),
    ],
)
def test_a_damaged_measurement_is_refused_in_words(wrong):
    with pytest.raises(LMCourseError, match='no measurement'):
        Measurement.from_dict(measurement().to_dict() | wrong)


@pytest.mark.parametrize('wrong', [None, [], 'text', 3])
def test_what_is_no_table_is_no_measurement(wrong):
    with pytest.raises(LMCourseError, match='no measurement'):
        Measurement.from_dict(wrong)


def test_a_paired_interval_covers_the_true_difference():
    "Of 100 pairs of streams that share hard passages, the interval holds the true difference about 95 times."
    held = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        hard_N = np.repeat(rng.uniform(1, 9, 100), 100)
        low, high = paired_bootstrap_ci(
            hard_N + rng.normal(0.05, 1, 10_000), hard_N + rng.normal(0, 1, 10_000), block_size=100, seed=seed
        )
        held += low < 0.05 < high
    assert 85 <= held <= 100


def test_a_paired_interval_is_narrower_than_the_two_apart():
    rng = np.random.default_rng(0)
    hard_N = np.repeat(rng.uniform(1, 9, 100), 100)
    a_N, b_N = hard_N + rng.normal(0.1, 0.5, 10_000), hard_N
    low, high = paired_bootstrap_ci(a_N, b_N)
    assert 0 < low < 0.1 < high
    assert high - low < 0.2 * np.subtract(*np.log(block_bootstrap_ci(a_N))[::-1])
    assert np.allclose(paired_bootstrap_ci(b_N, a_N), (-high, -low), atol=0.01)


def test_a_paired_interval_wants_the_same_tokens():
    with pytest.raises(LMCourseError, match='same tokens'):
        paired_bootstrap_ci(np.ones(6000), np.ones(5999))
    with pytest.raises(LMCourseError, match='at least one token'):
        paired_bootstrap_ci(np.ones(6000), np.ones(6000), block_size=0)
    assert paired_bootstrap_ci(np.ones(600), np.ones(600)) is None


# ---- what a lesson promises

MINUTES = {
    'five minutes': 5,
    'ten minutes': 10,
    'fifteen minutes': 15,
    'a quarter of an hour': 15,
    'twenty minutes': 20,
    'twenty-five minutes': 25,
    'half an hour': 30,
    'thirty minutes': 30,
    'thirty-five minutes': 35,
    'forty minutes': 40,
    'three quarters of an hour': 45,
    'fifty minutes': 50,
    'an hour': 60,
}
LESSONS = [p.stem for p in sorted((ROOT / 'nbs').glob('[0-9]*.ipynb'))]


@pytest.mark.parametrize('name', LESSONS)
def test_a_lesson_promises_the_minutes_that_it_takes(name):
    "No fewer than the page for teachers computes from its words, cells and exercises."
    lesson = stage.Lesson(ROOT / 'nbs' / f'{name}.ipynb')
    promise = re.match(r'# .+\n\n> In (.+?) (?:you will|every)', lesson.nb.cells[0].source)[1]
    assert MINUTES[promise] >= lesson.minutes
