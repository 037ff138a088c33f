"Losses and perplexities at their edges: zeros, infinities, overflow; and two models on one text."
import math
import numpy as np, pytest, torch
from lmcourse.exercise import Exercise
from lmcourse.loss import LMCourseError, cross_entropy, cross_entropy_by_hand, logsumexp
from lmcourse.perplexity import bits_per_byte, bits_per_token, bootstrap_interval, paired_bootstrap_ci, perplexity


def test_a_certain_token_costs_nothing():
    logits, target = torch.tensor([[0., -math.inf]]), torch.tensor([0])
    assert float(cross_entropy_by_hand(logits, target).nats) == float(cross_entropy(logits, target).nats) == 0


def test_the_sum_of_nothing():
    assert float(logsumexp(torch.full((3,), -math.inf))) == -math.inf
    assert float(logsumexp(torch.tensor([-math.inf, 2.]))) == 2


def test_a_perplexity_beyond_all_floats_is_infinite_and_raises_nothing():
    assert perplexity(800., 1) == math.inf
    assert bootstrap_interval([800.] * 5000) == (math.inf, math.inf)


@pytest.mark.parametrize('f', [bits_per_byte, bits_per_token])
def test_nothing_is_divided_by_nothing(f):
    with pytest.raises(LMCourseError, match='at least one'): f(1., 0)


def test_pairing_removes_what_makes_both_stumble():
    rng = np.random.default_rng(0)
    hard_N = 5 + 2 * np.repeat(rng.normal(size=100), 200)
    a_N, b_N = hard_N + rng.normal(size=20_000) + .02, hard_N + rng.normal(size=20_000)
    difference, low, high = paired_bootstrap_ci(a_N, b_N, 200)
    assert low < .02 < high
    assert high - low < .1
    alone = bootstrap_interval(a_N, 200)
    assert math.log(alone[1] / alone[0]) > 5 * (high - low), 'each alone is known far less well than their difference'


def test_an_interval_wants_ten_blocks():
    with pytest.raises(LMCourseError, match='ten blocks'): paired_bootstrap_ci([1.] * 900, [1.] * 900, 100)


@pytest.mark.parametrize('answer', [math.inf, 3.5, 'inf', [1, 2], True, None])
@pytest.mark.parametrize('guess', ['inf', 10**400, math.inf, math.nan, -10**400, [10**400], {}, 'x', 3.5])
def test_the_checker_answers_whatever_is_guessed(answer, guess):
    said = Exercise(answer, right='yes').says(guess)
    assert said.startswith(('Right', 'Not yet'))
