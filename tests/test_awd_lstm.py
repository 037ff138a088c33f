"""The regularisers of AWD-LSTM: each acts while training, is off in evaluation, and lets the gradient through to what
is learnt; the average, its trigger, and a resume in the middle of it."""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lmcourse.training.trainer as T
from lmcourse.data.batches import StatefulBatches
from lmcourse.device import has_bf16
from lmcourse.experiments.recipes import AWD_LSTM_ABLATIONS as ABLATIONS
from lmcourse.models.awd_lstm import (
    AWDLSTMConfig,
    EmbeddingDropout,
    LockedDropout,
    WeightDrop,
    activation_regularization,
    temporal_activation_regularization,
    variable_bptt,
)
from lmcourse.models.base import ConfigError
from lmcourse.models.recurrent import gru_cell, lstm_cell, unroll
from lmcourse.training.checkpoint import CheckpointError, load_named_weights, named_weights
from lmcourse.training.optimizers import NTASGD
from lmcourse.training.recipes import Optim, get_recipe, num_parameters, override, recipe_from_dict, tiny
from lmcourse.training.trainer import (
    Trainer,
    evaluate_run,
    from_checkpoint,
    train,
)

DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU here'))]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('LMCOURSE_CACHE', str(tmp_path / 'cache'))


class First(nn.Module):
    "A layer's hidden states without its state."

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        return self.part(x)[0]


class Tempting(nn.Module):
    "Weight drop with the mistake in it: a new parameter in each call."

    def __init__(self, layer, drop):
        super().__init__()
        self.layer, self.drop, self.raw = layer, drop, nn.Parameter(layer.weight_hh_l0.detach().clone())

    def forward(self, x, state=None):
        self.layer.weight_hh_l0 = nn.Parameter(F.dropout(self.raw, self.drop, self.training))
        return self.layer(x, state)


def reached(part, x):
    part.train()
    part.zero_grad()
    if list(part.parameters()):
        part(x).square().sum().backward()
    return {n for n, p in part.named_parameters() if p.grad is not None and p.grad.any()}


def layer(kind=nn.LSTM):
    torch.manual_seed(0)
    return kind(6, 10, batch_first=True)


def table():
    torch.manual_seed(0)
    return nn.Parameter(torch.randn(50, 6))


x_BTI, x_BT = torch.randn(4, 9, 6), torch.randint(50, (4, 9))


@pytest.mark.parametrize(
    'part, plain, x',
    [
        (LockedDropout(0.5), nn.Identity(), x_BTI),
        (EmbeddingDropout(table(), 0.5), nn.Embedding(50, 6, _weight=table().data), x_BT),
        (First(WeightDrop(layer(), 0.5)), First(layer()), x_BTI),
        (First(WeightDrop(layer(nn.GRU), 0.5)), First(layer(nn.GRU)), x_BTI),
    ],
    ids=['locked', 'word', 'lstm', 'gru'],
)
def test_acts_while_training_and_is_off_in_evaluation(part, plain, x):
    part.train()
    a, b = part(x), part(x)
    assert not torch.equal(a, b)
    part.eval()
    torch.testing.assert_close(part(x), plain(x))
    assert torch.equal(part(x), part(x))
    assert reached(part, x) == {n for n, _ in part.named_parameters()}


def test_the_check_of_the_gradient_catches_the_famous_mistake():
    assert 'part.raw' not in reached(First(Tempting(layer(), 0.5)), x_BTI)


def test_a_locked_mask_holds_over_time_and_not_over_the_batch():
    torch.manual_seed(0)
    mask = LockedDropout(0.3)(torch.ones(64, 20, 32))
    assert torch.equal(mask, mask[:, :1].expand_as(mask)) and not torch.equal(mask[0], mask[1])
    assert mask.unique().tolist() == pytest.approx([0, 1 / 0.7]) and abs(float((mask == 0).float().mean()) - 0.3) < 0.03


def test_a_forgotten_word_is_forgotten_everywhere():
    torch.manual_seed(0)
    v = EmbeddingDropout(table(), 0.4)(x_BT)
    for i in x_BT.unique():
        rows = v[x_BT == i].detach()
        assert torch.equal(rows, rows[:1].expand_as(rows))
    gone = [int(i) for i in x_BT.unique() if not v[x_BT == i].any()]
    assert 0 < len(gone) < len(x_BT.unique())


@pytest.mark.parametrize('kind, cell', [(nn.LSTM, lstm_cell), (nn.GRU, gru_cell)])
def test_dropped_weights_are_the_cells_own_and_the_kernel_is_called_once(monkeypatch, kind, cell):
    """Values and slopes of the library's kernel are those of the cell by hand with the same mask; and there is no loop
    over time."""
    part, calls = WeightDrop(layer(kind), 0.5), []
    real = getattr(torch._VF, kind.__name__.lower())
    monkeypatch.setattr(torch._VF, kind.__name__.lower(), lambda *a: calls.append(1) or real(*a))
    zero = torch.zeros(4, 10)
    zero = (zero, zero) if kind is nn.LSTM else zero
    torch.manual_seed(3)
    by_hand, _ = unroll(cell, x_BTI, zero, *part.weights().values())
    by_hand.square().sum().backward()
    want = [p.grad.clone() for p in part.parameters()]
    part.zero_grad()
    torch.manual_seed(3)
    out, _ = part(x_BTI)
    out.square().sum().backward()
    torch.testing.assert_close(out, by_hand, rtol=1e-4, atol=1e-5)
    for p, w in zip(part.parameters(), want):
        torch.testing.assert_close(p.grad, w, rtol=1e-3, atol=1e-5)
    assert calls == [1] and float((part.layer.weight_hh_l0.grad == 0).float().mean()) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    'bad', [nn.LSTM(4, 4, 2, batch_first=True), nn.LSTM(4, 4), nn.GRU(4, 4, batch_first=True, bidirectional=True)]
)
def test_layers_that_cannot_be_dropped(bad):
    with pytest.raises(ConfigError, match='one layer'):
        WeightDrop(bad, 0.5)


def test_penalties_by_hand():
    h = torch.tensor([[[1.0, 0], [1, 2], [0, 2]]])
    assert (
        float(activation_regularization(h)) == pytest.approx(10 / 6)
        and float(temporal_activation_regularization(h)) == pytest.approx(5 / 4)
        and float(temporal_activation_regularization(h[:, :1])) == 0
    )
    one = torch.ones(1, 1, 2, requires_grad=True)
    temporal_activation_regularization(one).backward()
    assert not one.grad.any()


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('how', ['fp32', 'bf16', 'compiled'])
def test_every_weight_learns_in_a_step_of_training(tmp_path, device, how):
    """Through the trainer, in single precision, under autocast, and compiled: after some steps each parameter, raw
    recurrent weights included, has moved."""
    if how == 'bf16' and not has_bf16(device):
        pytest.skip('no products in bfloat16 here')
    r = override(
        tiny(get_recipe('awd-lstm'), 'markov'),
        {
            'train.device': device,
            'train.precision': 'bf16' if how == 'bf16' else 'fp32',
            'data.seq_len': 12,
            'optim.weight_decay': 0,
        },
    )
    t = Trainer(r, tmp_path / 'run', show=False)
    t.model.train()
    if how == 'compiled':
        t.forward = torch.compile(t.model, backend='aot_eager')
    before = {n: p.detach().clone() for n, p in t.model.named_parameters()}
    for group, _ in zip(t.steps(), range(3)):
        nats, count, norm = t.train_step(group)
    assert {n for n, p in t.model.named_parameters() if torch.equal(p, before[n])} == set() and torch.isfinite(nats)
    assert sum('weight_hh' in n for n in before) == r.model.num_layers


def test_the_trainer_would_not_let_the_mistake_pass(tmp_path):
    "The same test on a model with the mistake in it finds the weights that never learn."
    t = Trainer(
        override(tiny(get_recipe('awd-lstm'), 'markov'), {'optim.weight_decay': 0}), tmp_path / 'run', show=False
    )
    t.model.layers = nn.ModuleList(Tempting(l.layer, 0.5) for l in t.model.layers)
    t.optimizer = T.make_optimizer(t.model, t.recipe.optim)
    t.model.train()
    before = {n: p.detach().clone() for n, p in t.model.named_parameters() if 'raw' in n}
    for group, _ in zip(t.steps(), range(3)):
        t.train_step(group)
    assert all(torch.equal(p, before[n]) for n, p in t.model.named_parameters() if 'raw' in n)


def test_sizes():
    assert num_parameters(get_recipe('awd-lstm')) == num_parameters(get_recipe('awd-lstm-fast')) == 33_556_078
    assert (
        num_parameters(get_recipe('awd-lstm-small')) <= 10_000_000
        and num_parameters(get_recipe('lstm-base')) == 18_124_286
    )
    r = get_recipe('awd-lstm')
    assert (r.reported_perplexity, get_recipe('lstm-base').reported_perplexity) == (80.27, 128.3) and get_recipe(
        'awd-lstm-fast'
    ).train.epochs * 10 == r.train.epochs == 750
    m = AWDLSTMConfig(embedding_dim=8, hidden_size=12).build(30)
    assert m.lm_head.weight is m.embedding.weight


@pytest.mark.parametrize('locked', [True, False])
def test_the_parts_grow_with_the_run(locked, tmp_path):
    full = dict(embedding_dropout=0.1, input_dropout=0.4, hidden_dropout=0.2, output_dropout=0.3, weight_dropout=0.5)
    m = (
        AWDLSTMConfig(embedding_dim=8, hidden_size=12, locked_dropout=locked, ramp_fraction=0.4, **full)
        .build(30)
        .train()
    )
    m(x_BT % 30)
    whole = float(m.regularization().detach())
    strengths = lambda: dict(
        embedding_dropout=m.embedding.p,
        input_dropout=m.input_dropout.p,
        hidden_dropout=m.hidden_dropout.p,
        output_dropout=m.output_dropout.dropout.p,
        weight_dropout=m.layers[0].p,
    )
    assert strengths() == full and whole > 0  # outside of a run: as they are written
    for done, share in ((0, 0.25), (0.099, 0.25), (0.101, 0.5), (0.201, 0.75), (0.301, 1.0), (0.4, 1.0), (0.999, 1.0)):
        m.on_progress(done)
        assert strengths() == pytest.approx({k: share * v for k, v in full.items()}) and {l.p for l in m.layers} == {
            m.layers[0].p
        }
    quiet = (
        AWDLSTMConfig(
            embedding_dim=8,
            hidden_size=12,
            locked_dropout=locked,
            ramp_fraction=0.4,
            embedding_dropout=0,
            input_dropout=0,
            hidden_dropout=0,
            output_dropout=0,
            weight_dropout=0,
        )
        .build(30)
        .train()
    )
    prices = []
    for done in (0, 0.99):
        quiet.on_progress(done)
        quiet(x_BT % 30)
        prices.append(float(quiet.regularization().detach()))
    assert prices[0] > 0 and prices[1] == pytest.approx(4 * prices[0])
    r = override(
        tiny(get_recipe('awd-lstm-small'), 'markov'),
        {'train.max_steps': 12, 'train.log_every': 1, 'train.eval_every': 4},
    )
    whole = T.train(r, tmp_path / 'whole', show=False)
    t = T.Trainer(r, tmp_path / 'parts', show=False)
    seen = []
    real = t.model.on_progress
    t.model.on_progress = lambda done: (seen.append(done), real(done))[1]
    before = T.Trainer.stop_reason
    try:
        T.Trainer.stop_reason = lambda t, asked: 'interrupted' if t.state.step == 4 else before(t, asked)
        t.fit()
    finally:
        T.Trainer.stop_reason = before
    parts = T.from_checkpoint(tmp_path / 'parts', show=False).fit()
    assert (
        seen == [0, 1 / 12, 2 / 12, 3 / 12]
        and parts.summary['test'] == whole.summary['test']
        and get_recipe('awd-lstm-small').model.ramp_fraction > 0
    )
    with pytest.raises(ConfigError, match='model.ramp_fraction'):
        AWDLSTMConfig(ramp_fraction=1)


def test_a_copy_and_a_checkpoint():
    m = AWDLSTMConfig(embedding_dim=8, hidden_size=12).build(30).train()
    m(x_BT % 30)
    twin = copy.deepcopy(m).eval()
    m.eval()
    assert (
        torch.equal(twin.logits(x_BT % 30)[0], m.logits(x_BT % 30)[0]) and twin.lm_head.weight is twin.embedding.weight
    )
    other = AWDLSTMConfig(embedding_dim=8, hidden_size=12).build(30).eval()
    load_named_weights(other, named_weights(m))
    assert torch.equal(other.logits(x_BT % 30)[0], m.logits(x_BT % 30)[0])
    with pytest.raises(CheckpointError, match='does not fit'):
        load_named_weights(AWDLSTMConfig(embedding_dim=8, hidden_size=13).build(30), named_weights(m))


def step_of(tmp_path, name, **changes):
    "Nats that a first step reports, the trainer after it, and its gradient."
    kept = []
    t = Trainer(
        override(tiny(get_recipe('awd-lstm'), 'markov'), {'optim.max_grad_norm': 0} | changes),
        tmp_path / name,
        show=False,
    )
    t.model.train()
    t.optimizer.register_step_pre_hook(lambda *a: kept.append([p.grad.clone() for p in t.model.parameters()]))
    nats, count, _ = t.train_step(next(t.steps()))
    return float(nats) / count, t, kept[0]


def test_a_penalty_moves_the_model_and_is_no_surprise(tmp_path):
    (a, _, ga), (b, _, gb) = (
        step_of(tmp_path, 'a', **{'model.alpha': 0, 'model.beta': 0}),
        step_of(tmp_path, 'b', **{'model.alpha': 50, 'model.beta': 50}),
    )
    assert a == b and not all(torch.equal(p, q) for p, q in zip(ga, gb))


def test_a_penalty_is_a_mean_over_the_group(tmp_path, monkeypatch):
    "Four rows and twelve, one after the other, give the gradient of all sixteen."
    quiet = {
        f'model.{k}': 0
        for k in ('embedding_dropout', 'input_dropout', 'hidden_dropout', 'output_dropout', 'weight_dropout')
    } | {
        'model.alpha': 3,
        'data.seq_len_schedule': 'equal',
        'optim.max_grad_norm': 0,
    }
    monkeypatch.setattr(T, 'detach_state', lambda state: None)
    slopes = []
    for name, rows in (('whole', [slice(16)]), ('parts', [slice(4), slice(4, 16)])):
        t = Trainer(override(tiny(get_recipe('awd-lstm'), 'markov'), quiet), tmp_path / name, show=False)
        t.model.train()
        made = []
        t.optimizer.register_step_pre_hook(lambda *a: made.append([p.grad.clone() for p in t.model.parameters()]))
        x, y = t.batches.get_batch(0)
        t.train_step([(x[r], y[r]) for r in rows])
        slopes.append(made[0])
    for a, b in zip(*slopes):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_a_step_is_as_long_as_its_batch(tmp_path):
    t = Trainer(override(tiny(get_recipe('awd-lstm'), 'markov'), {'optim.lr': 7}), tmp_path / 'run', show=False)
    t.model.train()
    seen = set()
    for group, _ in zip(t.steps(), range(12)):
        t.train_step(group)
        seen.add(group[0][1].shape[1])
        assert t.optimizer.param_groups[0]['lr'] == pytest.approx(7 * group[0][1].shape[1] / 35)
    assert len(seen) > 3


def test_lengths_follow_from_seed_pass_and_step_and_lose_no_token():
    lanes = StatefulBatches(torch.arange(5000) % 50, 4, 35, 0, variable_bptt(35), seed=3)
    for epoch in (0, 1):
        lanes.set_epoch(epoch)
        assert sum(int((y != -100).sum()) for _, y in lanes) == 5000
    again = StatefulBatches(torch.arange(5000) % 50, 4, 35, 0, variable_bptt(35), seed=3)
    again.set_epoch(1)
    assert again.boundaries() == lanes.boundaries()
    other = StatefulBatches(torch.arange(5000) % 50, 4, 35, 0, variable_bptt(35), seed=4)
    other.set_epoch(1)
    lanes.set_epoch(1)
    assert other.boundaries() != lanes.boundaries()
    drawn = [variable_bptt(70)(0, 0, k) for k in range(4000)]
    assert sum(drawn) / 4000 == pytest.approx(68.25, abs=0.6) and min(drawn) >= 5


@pytest.mark.parametrize(
    'change, told',
    [
        ({'data.seq_len_schedule': 'vary'}, "'equal' or 'varied', got 'vary'"),
        ({'data.batching': 'windows'}, 'data.seq_len_schedule is for stateful batches'),
        ({'data.random_offset': True}, 'data.seq_len_schedule is for stateful batches'),
        ({'optim.optimizer': 'asgd'}, "'nt-asgd'.*, got 'asgd'"),
        ({'model.embedding_dropout': 1}, 'model.embedding_dropout lies in'),
        ({'model.alpha': -1}, 'model.alpha is at least 0'),
    ],
)
def test_requests_that_cannot_be_met(change, told):
    with pytest.raises(ConfigError, match=told):
        override(get_recipe('awd-lstm'), change)


@pytest.mark.parametrize(
    'looks, n, begins',
    [
        ([5, 4, 3, 2, 1, 1, 1], 2, None),
        ([5, 4, 3, 3.5, 4.5], 2, 4),
        ([5, 4, 6, 3, 2], 2, None),
        ([5, 4, 3, 2, 1, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5], 5, 10),
        ([1, 2, 3], 2, None),
        ([1, 2, 3, 4], 2, 3),
        ([1, 2], 0, 1),
    ],
)
def test_the_trigger(looks, n, begins):
    o = NTASGD(nn.Linear(2, 1), Optim(lr=1.0), nonmono=n)
    at = None
    for k, v in enumerate(looks):
        o.on_validation(v)
        if o.averaging and at is None:
            at = k
    assert at == begins


def test_the_average_is_torchs_and_begins_when_it_begins():
    torch.manual_seed(0)
    layer, b = nn.Linear(5, 1, bias=False), nn.Parameter(torch.ones(1, 5))
    a = layer.weight
    nn.init.ones_(a)
    mine = NTASGD(layer, Optim(lr=0.1, weight_decay=0.01), nonmono=1)
    theirs = torch.optim.SGD([b], lr=0.1, weight_decay=0.01)
    for k in range(30):
        if k == 10:
            theirs = torch.optim.ASGD(
                [b], lr=0.1, weight_decay=0.01, t0=0, lambd=0.0
            )  # whose average begins with its second step
        if k == 11:
            [mine.on_validation(v) for v in (1.0, 2.0, 3.0)]
        with mine.averaged_weights():
            shown = a.detach().clone()
        if k <= 11:
            assert torch.equal(shown, a)
        slope = torch.randn(1, 5)
        for p, o in ((a, mine), (b, theirs)):
            p.grad = slope.clone()
            o.step()
    with mine.averaged_weights():
        torch.testing.assert_close(a.detach(), theirs.state[b]['ax'])
    torch.testing.assert_close(a, b)
    with pytest.raises(KeyError):
        with mine.averaged_weights():
            raise KeyError
    torch.testing.assert_close(a, b)


def averaging(**changes):
    return override(
        tiny(get_recipe('awd-lstm'), 'markov'),
        {'train.max_steps': 36, 'train.eval_every': 3, 'train.log_every': 1, 'optim.lr': 8, 'data.seq_len': 12}
        | changes,
    )


@pytest.mark.parametrize('at', [7, 24, 30])
def test_a_resumed_run_has_the_curve_of_one_that_was_not_stopped(tmp_path, monkeypatch, at):
    "Stopped before the average has begun, or in the middle of it, between two looks or at one."
    monkeypatch.setattr(NTASGD.__init__, '__defaults__', (2,))
    whole = train(averaging(), tmp_path / 'whole', show=False)
    t = Trainer(averaging(), tmp_path / 'parts', show=False)
    why = T.Trainer.stop_reason
    monkeypatch.setattr(
        T.Trainer, 'stop_reason', lambda t, asked: 'interrupted' if t.state.step == at else why(t, asked)
    )
    assert t.fit().summary['stopped'] == 'interrupted'
    begun = t.optimizer.averaging
    monkeypatch.setattr(T.Trainer, 'stop_reason', why)
    parts = (again := from_checkpoint(tmp_path / 'parts', show=False)).fit()
    kept = lambda run: [(r['step'], r.get('train_nats'), r.get('perplexity'), r.get('lr')) for r in run.metrics()]
    assert kept(parts) == kept(whole) and parts.summary['test'] == whole.summary['test']
    assert begun == (at > 20) and again.optimizer.averaging


def test_what_is_kept_as_best_is_the_average(tmp_path, monkeypatch):
    monkeypatch.setattr(NTASGD.__init__, '__defaults__', (0,))
    t = Trainer(averaging(), tmp_path / 'run', show=False)
    run = t.fit()
    best, (last, _) = run.load('best')[0], run.load('last')
    assert t.optimizer.averaging and run.summary['best_epoch'] * t.steps_per_epoch > 6
    assert not torch.equal(best['lm_head.bias'], last['lm_head.bias'])
    assert (
        evaluate_run(run.path, 'validation', 'cpu').perplexity
        == run.summary['validation']['perplexity']
        == pytest.approx(math.exp(t.state.best_nats))
    )


def test_plain_runs_have_no_average(tmp_path):
    t = Trainer(tiny(get_recipe('lstm-base'), 'markov'), tmp_path / 'run', show=False)
    assert not hasattr(t.optimizer, 'averaging') and t.fit().summary['finished']


def test_every_part_can_be_taken_away():
    base = get_recipe('awd-tiny')
    changed = {s: override(base, c) for s, c in ABLATIONS.items()}
    assert (
        changed.pop('as it is') == base
        and all(r != base for r in changed.values())
        and len(set(map(str, changed.values()))) == len(changed)
    )
    nothing = changed['no regularisation'].model
    assert not any(
        (
            nothing.embedding_dropout,
            nothing.input_dropout,
            nothing.hidden_dropout,
            nothing.output_dropout,
            nothing.weight_dropout,
            nothing.alpha,
            nothing.beta,
            nothing.tie_weights,
        )
    )
    assert recipe_from_dict(json.loads(json.dumps(base.to_dict()))) == base


def test_ordinary_dropout_and_a_head_of_its_own():
    loose = AWDLSTMConfig(embedding_dim=8, hidden_size=12, tie_weights=False, locked_dropout=False).build(30)
    assert (
        loose.lm_head.weight is not loose.embedding.weight
        and torch.equal(loose.lm_head.weight, loose.embedding.weight)
        and isinstance(loose.input_dropout, nn.Dropout)
    )
