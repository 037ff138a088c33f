"""Readers that remember or go on learning: each token is scored once and before it is learnt from, the model is what it
was afterwards, and the measurement says what was done."""

import json
import math
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from architectures import MODELS, V, Window
from torch import nn

import lmcourse.inference.adapt as D
from lmcourse.cli import main
from lmcourse.data.tokens import tokenize_corpus
from lmcourse.files import read_json, write_json
from lmcourse.inference.adapt import (
    AdaptError,
    DynamicEvaluation,
    NeuralCache,
    StreamingEvaluator,
    adapt_run,
    best,
    cache_attention,
    evaluate_run_adapted,
    evaluate_stream,
    gradient_rms,
    score_stream,
    tune,
    tune_cache,
)
from lmcourse.measure.perplexity import Measurement, compare
from lmcourse.models.recurrent import RecurrentConfig
from lmcourse.training.recipes import get_recipe, tiny
from lmcourse.training.trainer import evaluate, train

DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU here'))]
IDS = np.random.default_rng(0).integers(V, size=400)


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    os.environ['LMCOURSE_CACHE'] = str(tmp_path_factory.mktemp('cache'))
    yield tokenize_corpus('markov')
    del os.environ['LMCOURSE_CACHE']


@pytest.fixture(scope='module')
def made(tmp_path_factory, corpus):
    "A run of a small version."
    return train(tiny(get_recipe('tuned-small'), 'markov'), tmp_path_factory.mktemp('made') / 'run', show=False).path


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made, tmp_path / 'run')
    return tmp_path / 'run'


def built(name, device='cpu'):
    torch.manual_seed(0)
    return MODELS[name]().to(device)


def evaluators(model):
    rms = gradient_rms(model, IDS, 1, 7, eval_batch_size=4, batches=5)
    return {
        'cache': NeuralCache(model, 60, 0.5, 0.3, seq_len=23),
        'plain': DynamicEvaluation(model, 0.5, 0.01, seq_len=7),
        'RMS': DynamicEvaluation(model, 0.3, 0.01, rms, seq_len=7),
    }


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('name', MODELS)
def test_nobody_peeks_and_everything_is_put_back(name, device):
    "The future shuffled does not change the past; every token is scored once; and the model is, and stands, as before."
    model = built(name, device).train()
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    for kind, evaluator in evaluators(model).items():
        place, other = 205, IDS.copy()
        np.random.default_rng(1).shuffle(other[205:])
        (a, num_correct), (b, _) = score_stream(evaluator, IDS, 1), score_stream(evaluator, other, 1)
        assert len(a) == len(IDS) and np.isfinite(a).all() and 0 <= num_correct <= len(IDS)
        assert np.array_equal(a[:place], b[:place]) and not np.array_equal(a[place:], b[place:]), kind
        assert model.training and all(torch.equal(p, before[k]) for k, p in model.named_parameters())
        assert all(p.grad is None for p in model.parameters())


def test_a_reader_that_peeks_is_found():
    class Cheat(DynamicEvaluation):
        def score_batch(self, x, y):
            state = self.state
            super().score_batch(x, y)
            self.state = state
            return StreamingEvaluator.score_batch(self, x, y)

    model, other = built('lstm'), IDS.copy()
    np.random.default_rng(1).shuffle(other[205:])
    a, b = (score_stream(Cheat(model, 0.5, seq_len=7), ids, 1)[0] for ids in (IDS, other))
    assert not np.array_equal(a[:205], b[:205]) and a.mean() < score_stream(StreamingEvaluator(model), IDS, 1)[0].mean()


def test_put_back_where_reading_is_broken_off():
    model = built('lstm').train()
    before = [p.detach().clone() for p in model.parameters()]
    evaluator = DynamicEvaluation(model, 0.5, seq_len=7)
    with pytest.raises(IndexError):
        score_stream(evaluator, np.append(IDS[:40], 999), 1)
    assert model.training and all(torch.equal(p, q) for p, q in zip(model.parameters(), before))


def test_recall_by_hand():
    keys = torch.tensor([[[2.0, 0], [0, 2], [2, 1], [2, 0]]])
    assert cache_attention(keys[:, 3:], keys, 0.5, 10)[0, 0].tolist() == pytest.approx(
        [7.389 / 15.778, 1 / 15.778, 7.389 / 15.778, 0], abs=1e-4
    )
    assert (
        cache_attention(keys[:, 3:], keys, 0.5, 1)[0, 0].tolist() == [0, 0, 1, 0]
        and cache_attention(keys, keys, 0.5, 10)[0, 0].tolist() == [0] * 4
    )


def slowly(model, ids, window, theta, cache_weight):
    "The cache's formula, a token at a time."
    nats, past, state, x = [], [], None, 1
    for word in ids:
        h, state = model(torch.tensor([[x]]), state)
        p, h = model.lm_head(h)[0, 0].softmax(-1), h[0, 0]
        if past[-window:]:
            like = torch.stack([theta * h @ k for k, _ in past[-window:]]).softmax(0)
            p = (1 - cache_weight) * p
            for a, (_, w) in zip(like, past[-window:]):
                p[w] += cache_weight * a
        assert float(p.sum()) == pytest.approx(1, abs=1e-5)
        nats.append(float(-p[word].log()))
        past.append((h, int(word)))
        x = int(word)
    return nats


@pytest.mark.parametrize('window, length', [(1, 5), (30, 128), (30, 7), (500, 23)])
def test_a_cache_is_its_formula_however_it_is_read(window, length):
    model = built('lstm').eval()
    with torch.no_grad():
        want = slowly(model, IDS[:120], window, 0.4, 0.3)
    got, _ = score_stream(NeuralCache(model, window, 0.4, 0.3, length), IDS[:120], 1)
    assert got.tolist() == pytest.approx(want, rel=1e-4)


def test_memory_is_bounded():
    cache = NeuralCache(built('lstm'), 50, seq_len=23)
    held = []
    real = cache.update_cache
    cache.update_cache = lambda h, y: (
        out := real(h, y),
        held.append((*(kept.shape[1] for kept in cache.memory), out[0].shape[1])),
    )[0]
    score_stream(cache, IDS, 1)
    assert max(held) == (50, 50, 73) and held[-1][:2] == (50, 50) and cache.memory is None


def test_streams_have_memories_of_their_own():
    model, ids = built('lstm'), IDS[:400]
    together, _ = score_stream(NeuralCache(model, 50, 0.5, 0.3), ids, 1, eval_batch_size=4)
    alone = np.concatenate(
        [
            score_stream(NeuralCache(model, 50, 0.5, 0.3), ids[k : k + 100], 1 if not k else int(ids[k - 1]))[0]
            for k in range(0, 400, 100)
        ]
    )
    assert together.tolist() == pytest.approx(alone.tolist(), rel=1e-4)
    ragged, _ = score_stream(NeuralCache(model, 50, 0.5, 0.3), ids[:398], 1, eval_batch_size=4)
    assert len(ragged) == 398
    with pytest.raises(AdaptError, match='reads one stream, not 4'):
        score_stream(DynamicEvaluation(model), ids, 1, eval_batch_size=4)


@pytest.mark.parametrize(
    'idle',
    [
        lambda m: NeuralCache(m, cache_weight=0.0),
        lambda m: DynamicEvaluation(m, 0.0),
        lambda m: DynamicEvaluation(m, 0.0, 0.5),
    ],
)
def test_one_that_learns_nothing_is_the_model_as_it_is(idle):
    model = built('gru, tied')
    assert score_stream(idle(model), IDS, 1)[0].tolist() == pytest.approx(
        score_stream(StreamingEvaluator(model), IDS, 1)[0].tolist(), rel=1e-4
    )


def test_a_frozen_reader_is_the_evaluation(corpus):
    torch.manual_seed(0)
    model = RecurrentConfig('lstm', 8, 12, 1).build(corpus.vocab_size)
    m = evaluate_stream(StreamingEvaluator(model), corpus.validation, 1, interval=True)
    n = evaluate(model, corpus.validation, 1, eval_batch_size=1, interval=True)
    assert (
        m.nats == pytest.approx(n.nats, rel=1e-6)
        and m.accuracy == n.accuracy
        and m.ci95 == pytest.approx(n.ci95, rel=1e-5)
        and list(m.to_dict()) == list(n.to_dict())
    )


def test_dynamic_evaluation_by_hand():
    """Two words and a bias for each: the gradient is p - y, and a pull goes back from where the weights are before the
    step."""

    class Two(nn.Module):
        stateful, context_length = True, None

        def __init__(self):
            super().__init__()
            self.lm_head = nn.Linear(1, 2)
            nn.init.zeros_(self.lm_head.weight)
            nn.init.zeros_(self.lm_head.bias)
            self.lm_head.weight.requires_grad_(False)

        def forward(self, x, state=None):
            return torch.zeros(*x.shape, 1), state

    sigma = lambda a: 1 / (1 + math.exp(-a))

    def by_hand(lr, decay, n=4):
        a, nats = 0.0, []  # biases are (-a, a)
        for _ in range(n):
            nats.append(-math.log(sigma(2 * a)))
            a = a + decay * (0 - a) + lr * (1 - sigma(2 * a))
        return nats

    for lr, decay in ((1.0, 0.0), (1.0, 0.5), (0.2, 0.1)):
        assert score_stream(DynamicEvaluation(Two(), lr, decay, seq_len=1), np.ones(4, int), 0)[
            0
        ].tolist() == pytest.approx(by_hand(lr, decay), rel=1e-5)


def test_scaled_steps_by_hand():
    model = built('lstm').eval()
    weights = list(model.parameters())
    rms = [torch.rand_like(p) for p in weights]
    mean = sum(float(r.sum()) for r in rms) / sum(r.numel() for r in rms)
    evaluator = DynamicEvaluation(model, 0.3, 0.4, rms, seq_len=7, eps=0.1)
    with evaluator:
        old = [p.detach().clone() for p in weights]
        for p in weights:
            p.data += 0.1
        moved, grads = [p.detach().clone() for p in weights], [torch.randn_like(p) for p in weights]
        evaluator.update(grads)
        for p, o, m, g, r in zip(weights, old, moved, grads, rms):
            torch.testing.assert_close(
                p.detach(),
                m + (0.4 * r / mean).clamp(max=1) * (o - m) - 0.3 * g / (r / mean + 0.1),
                rtol=1e-4,
                atol=1e-6,
            )
    assert all(torch.equal(p, o) for p, o in zip(weights, old))


def test_root_mean_squares_are_those_of_the_gradients():
    model = built('lstm').eval()
    total = None
    x = np.concatenate([[1], IDS])[: len(IDS)].reshape(1, -1)
    state = None
    for k in range(3):
        s = slice(10 * k, 10 * k + 10)
        h, state = model(torch.tensor(x[:, s]), state)
        state = tuple(t.detach() for t in state)
        g = torch.autograd.grad(F.cross_entropy(model.lm_head(h)[0], torch.tensor(IDS[s])), list(model.parameters()))
        total = [t.square() for t in g] if total is None else [a + t.square() for a, t in zip(total, g)]
    for a, b in zip(gradient_rms(model, IDS, 1, 10, eval_batch_size=1, batches=3), total):
        torch.testing.assert_close(a, (b / 3).sqrt(), rtol=1e-4, atol=1e-8)
    with pytest.raises(AdaptError, match='too short'):
        gradient_rms(model, IDS[:30], 1, 20, eval_batch_size=16)


def test_tuning_agrees_with_reading():
    model = built('lstm')
    rows = tune_cache(model, IDS, 1, (20, 60), (0.2, 1.0), (0.1, 0.4))
    assert len(rows) == 8
    for r in rows:
        assert r['perplexity'] == pytest.approx(
            math.exp(score_stream(NeuralCache(model, r['window'], r['theta'], r['cache_weight']), IDS, 1)[0].mean()),
            rel=1e-4,
        )
    assert best(rows) == {k: min(rows, key=lambda r: r['perplexity'])[k] for k in ('window', 'theta', 'cache_weight')}
    assert best(
        [
            dict(lr=1, perplexity=math.nan),
            dict(lr=2, perplexity=9.0),
            dict(lr=3, perplexity=None),
            dict(lr=4, perplexity=math.inf),
        ]
    ) == {'lr': 2}


@pytest.mark.parametrize('kind', D.KINDS)
def test_tuning_never_sees_test(kind, corpus):
    "Settings come from the beginning of validation alone."

    class Blind:
        train, tokenizer = corpus.train, corpus.tokenizer
        validation = replace(corpus.validation, ids=corpus.validation.ids[:600])

        @property
        def test(self):
            pytest.fail('tuning looked at test')

    torch.manual_seed(0)
    model = RecurrentConfig('lstm', 8, 12, 1).build(corpus.vocab_size)
    found = tune(model, Blind(), kind, tokens=300)
    assert found['num_tokens'] == 300 and found['settings'] == best(found['grid']) and found['kind'] == kind
    with pytest.raises(AdaptError, match="got 'pointer'"):
        tune(model, Blind(), 'pointer')


@pytest.mark.parametrize(
    'bad',
    [
        lambda m: NeuralCache(m, 0),
        lambda m: NeuralCache(m, cache_weight=1.0),
        lambda m: DynamicEvaluation(m, -1),
        lambda m: DynamicEvaluation(m, decay=1.5),
    ],
)
def test_settings_that_cannot_be(bad):
    with pytest.raises(AdaptError):
        bad(built('lstm'))


def test_a_measurement_says_so_and_a_comparison_tells_it(corpus):
    torch.manual_seed(0)
    model = RecurrentConfig('lstm', 8, 12, 1).build(corpus.vocab_size)
    few = replace(corpus.validation, ids=corpus.validation.ids[:900])
    plain, cached, dynamic = (
        evaluate_stream(r, few, 1) for r in (StreamingEvaluator(model), NeuralCache(model), DynamicEvaluation(model))
    )
    assert (
        'adaptation' not in plain.to_dict()
        and list(cached.to_dict())[-1] == 'adaptation'
        and 'cache of 2,000' in repr(cached)
        and 'adaptation' not in repr(plain)
    )
    for m in (plain, cached, dynamic):
        assert Measurement.from_dict(json.loads(json.dumps(m.to_dict()))) == m
    for a, b in ((plain, cached), (cached, dynamic), (dynamic, plain)):
        assert any(n.startswith('adaptation: ') for n in compare(a, b).notes)
    assert compare(cached, cached).notes == () and (
        dynamic.eval_batch_size,
        dynamic.state_carried,
        dynamic.context_length,
    ) == (1, True, None)
    window = evaluate_stream(NeuralCache(Window()), replace(few, ids=few.ids % V), 1)
    assert (window.state_carried, window.context_length, window.stride) == (False, 16, 16)


def test_settings_are_chosen_once_and_kept(run, monkeypatch):
    m = evaluate_run_adapted(run, 'cache', device='cpu', tokens=2000)
    kept = read_json(run / 'adaptation.json')
    assert list(kept) == ['cache'] and kept['cache']['num_tokens'] == 2000
    kept['cache']['settings'] = dict(window=7, theta=0.5, cache_weight=0.25)
    write_json(run / 'adaptation.json', kept)
    monkeypatch.setattr(D, 'tune', lambda *a, **k: pytest.fail('tuned a second time'))
    again = evaluate_run_adapted(run, 'cache', device='cpu')
    assert (
        again.adaptation == 'neural cache of 7 tokens, theta 0.5, weight 0.25' != m.adaptation
        and again.num_tokens == m.num_tokens
    )


def test_a_record_goes_on_where_it_was_stopped(run, tmp_path, monkeypatch):
    told, out = [], tmp_path / 'adapted.json'
    real = D.build_evaluator
    monkeypatch.setattr(
        D,
        'build_evaluator',
        lambda m, d, kind, s: real(m, d, kind, s) if kind == 'cache' else (_ for _ in ()).throw(KeyboardInterrupt),
    )
    with pytest.raises(KeyboardInterrupt):
        adapt_run(run, out, ('cache', 'sgd'), 600, device='cpu', log_fn=told.append)
    assert [r['kind'] for r in read_json(out)] == [None, 'cache']
    monkeypatch.setattr(D, 'build_evaluator', real)
    rows = adapt_run(run, out, ('cache', 'sgd'), 600, device='cpu')
    assert (
        [r['kind'] for r in rows] == [None, 'cache', 'sgd']
        and rows == read_json(out)
        and rows[2]['test']['num_tokens'] == rows[0]['test']['num_tokens']
    )
    assert [('adaptation' in r['test']) for r in rows] == [False, True, True] and rows[1]['settings'] == best(
        rows[1]['grid']
    )


def test_from_the_command_line(run, capsys):
    assert main(['eval', str(run), '--json', '--device', 'cpu']) == 0
    plain = json.loads(capsys.readouterr().out)
    assert main(['eval', str(run), '--cache', '--json', '--device', 'cpu']) == 0
    out, err = capsys.readouterr()
    cached = json.loads(out)
    assert (
        list(cached) == [*plain, 'adaptation']
        and err == ''
        and cached['eval_batch_size'] == 1
        and {k: cached[k] for k in ('num_tokens', 'split', 'fingerprint')}
        == {k: plain[k] for k in ('num_tokens', 'split', 'fingerprint')}
    )
    assert main(['eval', str(run), '--cache', '--device', 'cpu']) == 0
    line = capsys.readouterr().out
    assert 'adapting: neural cache of' in line and line.startswith(f'test: perplexity {cached["perplexity"]:.2f}')
    write_json(
        run / 'adaptation.json',
        {'rms': dict(kind='rms', settings=dict(lr=0.1, decay=0.01, seq_len=20), num_tokens=0, grid=[])},
    )
    assert main(['eval', str(run), '--dynamic', '--split', 'validation', '--json', '--device', 'cpu']) == 0
    dynamic = json.loads(capsys.readouterr().out)
    assert (
        dynamic['adaptation'] == 'dynamic evaluation in segments of 20, RMS-scaled learning rate 0.1, decay 0.01'
        and dynamic['split'] == 'validation'
    )
    assert main(['eval', str(run), '--cache', '--dynamic']) == 2
    out, err = capsys.readouterr()
    assert out == '' and 'choose one' in err and len(err.splitlines()) == 1


def test_a_token_that_was_all_but_ruled_out_is_a_finite_surprise():
    "Beyond about 103 nats a probability in single precision is zero; its logarithm need not be."
    torch.manual_seed(0)
    model = RecurrentConfig(hidden_size=8, embedding_dim=8, num_layers=1).build(20)
    with torch.no_grad():
        model.lm_head.bias[3] = -400.0
    ids = np.array([1, 2, 3, 4] * 20)
    for evaluator in (
        D.StreamingEvaluator(model),
        D.NeuralCache(model, 10, seq_len=4),
        D.DynamicEvaluation(model, 0.0, seq_len=4),
    ):
        nats_N, _ = D.score_stream(evaluator, ids, 0)
        assert np.isfinite(nats_N).all()
    assert max(D.score_stream(D.StreamingEvaluator(model), ids, 0)[0]) > 300
    assert all(math.isfinite(r['perplexity']) for r in D.tune_cache(model, ids, 0, (10,), (0.3,), (0.1,)))
