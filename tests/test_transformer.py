"""The Transformer: its attention is torch's, nothing looks ahead, what was read is not read again, its parameters are
the notes', and Muon survives a stop."""

import copy

import pytest
import torch
import torch.nn.functional as F

import lmcourse.training.trainer as T
from lmcourse.errors import LMCourseError
from lmcourse.models.base import ConfigError
from lmcourse.models.transformer import (
    CausalSelfAttention,
    TransformerConfig,
    apply_rotary_emb,
    attention,
    parameter_breakdown,
    positions_affected,
    rope_cache,
)
from lmcourse.training.optimizers import Muon, newton_schulz
from lmcourse.training.recipes import get_recipe, num_parameters, override, recipe_names, tiny
from lmcourse.training.trainer import Trainer, from_checkpoint, train

DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU here'))]
NOTES = TransformerConfig(16, 4, 32, 2, 24, dropout=0.0)
MODERN = TransformerConfig(
    16,
    4,
    32,
    2,
    24,
    0.0,
    positions='rotary',
    norm='rms',
    activation='relu2',
    qk_norm=True,
    bias=False,
    init='zero_residual',
)
GATED = TransformerConfig(16, 2, 33, 2, 24, 0.0, positions='rotary', activation='swiglu', lm_head_bias=False)
KINDS = pytest.mark.parametrize('config', [NOTES, MODERN, GATED], ids=['notes', 'modern', 'gated'])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('LMCOURSE_CACHE', str(tmp_path / 'cache'))


def made(config, vocab_size=40, seed=0):
    "A model whose blocks do something, whatever they start with."
    torch.manual_seed(seed)
    model = config.build(vocab_size)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.eval()


@pytest.mark.parametrize('T, S', [(5, 5), (1, 9), (4, 9), (1, 1)])
def test_attention_of_the_last_places_is_torchs_and_ours(T, S):
    torch.manual_seed(T)
    q, k, v = torch.randn(2, 3, T, 8), torch.randn(2, 3, S, 8), torch.randn(2, 3, S, 8)
    mask = torch.ones(S, S, dtype=torch.bool).tril()[S - T :]
    ours, share = attention(q, k, v, mask)
    torch.testing.assert_close(ours, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    torch.testing.assert_close(ours, CausalSelfAttention(NOTES).attend(q, k, v))
    torch.testing.assert_close(share.sum(-1), torch.ones(2, 3, T))
    assert not share[..., ~mask].any()


@KINDS
@pytest.mark.parametrize('seed', range(3))
def test_in_any_pieces_the_guesses_are_the_same(config, seed):
    model, x_BT = made(config, seed=seed), torch.randint(40, (3, 24))
    whole, state = model.logits(x_BT)
    cuts = torch.randperm(23)[:4].add(1).sort().values.tolist()
    old, found = None, []
    for part in x_BT.tensor_split(cuts, 1):
        out, old = model.logits(part, old)
        found.append(out)
    torch.testing.assert_close(torch.cat(found, 1), whole, atol=2e-5, rtol=1e-4)
    for a, b in zip(old, state):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


@KINDS
def test_no_guess_feels_what_comes_after_it(config):
    model, x_BT = made(config), torch.randint(40, (2, 24))
    for place in (0, 11, 23):
        assert positions_affected(model, x_BT, place) == [False] * place + [True] * (24 - place)


def test_the_check_finds_a_leak_of_one_place():
    model = made(NOTES)
    for b in model.blocks:
        b.attention.attend = lambda q, k, v: F.scaled_dot_product_attention(
            q, k, v, attn_mask=torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(1)
        )
    assert positions_affected(model, torch.randint(40, (2, 24)), 11)[10]


@pytest.mark.parametrize('name', recipe_names())
def test_no_architecture_of_the_course_looks_ahead(name):
    torch.manual_seed(0)
    model, x_BT = tiny(get_recipe(name)).model.build(40), torch.randint(40, (2, 20))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    assert positions_affected(model, x_BT, 9)[:9] == [False] * 9


def test_the_parameters_of_the_notes():
    assert [num_parameters(get_recipe(f'chinchilla-{n}')) for n in (1, 2, 3, 4, 5)] == [
        869_153,
        869_153,
        7_342_033,
        16_206_673,
        19_365_713,
    ]
    assert num_parameters(get_recipe('chinchilla-1-tuned')) <= 869_153
    dense = TransformerConfig(208, 8, 832, 12, 192, lm_head_bias=False)
    assert (
        sum(parameter_breakdown(dense, 50_000).values()) == 16_702_816
        and sum(parameter_breakdown(dense, 50_257).values()) == 16_756_272
    )


@KINDS
def test_parts_add_up(config):
    assert sum(parameter_breakdown(config, 77).values()) == sum(p.numel() for p in config.build(77).parameters())


def test_a_turn_keeps_lengths_and_knows_only_distances():
    torch.manual_seed(0)
    turn, q, k = rope_cache(300, 16), torch.randn(16), torch.randn(16)
    score = lambda a, b: apply_rotary_emb(q, turn[:, a]) @ apply_rotary_emb(k, turn[:, b])
    for d in (0, 1, 17):
        torch.testing.assert_close(score(d, 0), score(250 + d, 250), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(apply_rotary_emb(q, turn[:, 299]).norm(), q.norm())
    assert not torch.isclose(score(0, 0), score(3, 0))


@pytest.mark.parametrize(
    'fields, says',
    [
        (dict(num_heads=3), '128 is no multiple of 3'),
        (dict(positions='none'), "'learned' or 'rotary'"),
        (dict(norm='batch'), "'layer' or 'rms'"),
        (dict(activation='tanh'), "'gelu', 'relu2' or"),
        (dict(init='loud'), "'gpt2', 'zero_residual',"),
        (dict(d_model=12, num_heads=4, positions='rotary'), 'odd width'),
        (dict(dropout=1.0), '[0, 1)'),
        (dict(context_length=0), 'at least 1'),
    ],
)
def test_a_wrong_configuration_is_refused_in_a_sentence(fields, says):
    with pytest.raises(ConfigError) as e:
        TransformerConfig(**fields)
    assert says in str(e.value)


def test_a_text_longer_than_the_context_is_refused():
    model = made(MODERN)
    with pytest.raises(LMCourseError, match='25 tokens do not fit into a context of 24'):
        model(torch.zeros(1, 25, dtype=torch.long))
    _, state = model(torch.zeros(1, 24, dtype=torch.long))
    with pytest.raises(LMCourseError, match='do not fit'):
        model(torch.zeros(1, 1, dtype=torch.long), state)


@pytest.mark.parametrize('device', DEVICES)
@KINDS
def test_half_precision_and_a_copy(config, device):
    model, x_BT = made(config).to(device), torch.randint(40, (3, 24), device=device)
    h, _ = model(x_BT)
    with torch.autocast(device, torch.bfloat16):
        low, state = model(x_BT[:, :20])
        more, _ = model(x_BT[:, 20:], state)
    assert (torch.cat([low, more], 1).float() - h).norm() < 0.05 * h.norm()
    assert torch.equal(copy.deepcopy(model)(x_BT)[0], h)


@pytest.mark.parametrize('shape', [(8, 8), (24, 8), (8, 24)])
def test_orthogonal_takes_the_stretch_out_and_keeps_the_directions(shape):
    torch.manual_seed(0)
    m = torch.randn(shape)
    U, S, Vh = torch.linalg.svd(m, full_matrices=False)
    u, s, vh = torch.linalg.svd(newton_schulz(m, 10), full_matrices=False)
    assert 0.6 < s.min() and s.max() < 1.3
    assert torch.linalg.matrix_norm(newton_schulz(m) - U @ Vh) < 0.45 * torch.linalg.matrix_norm(U @ Vh)


@pytest.mark.parametrize('decay', [0.0, 0.1])
def test_muon_steps_as_torchs_two_optimizers_do(decay):
    model = made(NOTES)
    twin = copy.deepcopy(model)
    inner = [(n, p) for n, p in twin.named_parameters() if n.startswith('blocks') and p.ndim == 2]
    ids = {id(p) for _, p in inner}
    flat = [p for p in twin.parameters() if p.ndim == 1]
    groups = [
        dict(params=[p for p in twin.parameters() if id(p) not in ids and p.ndim == 2], weight_decay=decay),
        dict(params=flat, weight_decay=0.0),
    ]
    theirs = (
        torch.optim.Muon(
            [p for _, p in inner], lr=0.02, weight_decay=decay, momentum=0.95, adjust_lr_fn='match_rms_adamw'
        ),
        torch.optim.AdamW(groups, lr=0.02, betas=(0.9, 0.99)),
    )
    ours = Muon(
        model,
        get_recipe('chinchilla-1').optim.__class__(optimizer='muon', lr=0.02, weight_decay=decay, betas=(0.9, 0.99)),
    )
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(3):
        for p, q in zip(model.parameters(), twin.parameters()):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        ours.step()
        [o.step() for o in theirs]
    for (name, p), q, old in zip(model.named_parameters(), twin.parameters(), before):
        step = (q - old).norm()  # torch makes the products of Muon in bfloat16
        assert (p - q).norm() < (0.03 if any(n == name for n, _ in inner) else 1e-4) * step, name


def test_a_run_with_muon_goes_on_as_if_it_had_not_stopped(tmp_path, monkeypatch):
    r = override(
        tiny(get_recipe('chinchilla-1-tuned'), 'markov'),
        {'train.max_steps': 24, 'train.log_every': 1, 'train.eval_every': 12},
    )
    whole, why = train(r, tmp_path / 'whole', show=False), T.Trainer.stop_reason
    monkeypatch.setattr(
        T.Trainer, 'stop_reason', lambda t, asked: 'interrupted' if t.state.step == 17 else why(t, asked)
    )
    assert Trainer(r, tmp_path / 'parts', show=False).fit().summary['stopped'] == 'interrupted'
    monkeypatch.setattr(T.Trainer, 'stop_reason', why)
    parts = from_checkpoint(tmp_path / 'parts', show=False).fit()
    kept = lambda run: [(m['step'], m.get('train_nats'), m.get('perplexity'), m.get('lr')) for m in run.metrics()]
    assert kept(parts) == kept(whole) and parts.summary['test'] == whole.summary['test']


@pytest.mark.parametrize('name', ['chinchilla-1', 'chinchilla-5', 'chinchilla-1-tuned', 'transformer-small'])
def test_the_small_twins_learn(name, tmp_path):
    s = train(tiny(get_recipe(name), 'markov'), tmp_path / 'run', show=False).summary
    v = s['validation']
    assert (
        s['steps'] == 50
        and v['context_length'] == 35
        and not v['state_carried']
        and v['perplexity'] < 0.75 * v['vocab_size']
    )


def test_muon_says_which_models_it_is_for(tmp_path):
    with pytest.raises(ConfigError, match='RecurrentLM names none .*set optim.optimizer to adamw'):
        train(override(tiny(get_recipe('lstm-a'), 'markov'), {'optim.optimizer': 'muon'}), tmp_path / 'run', show=False)


def test_in_lanes_a_model_that_carries_nothing_begins_anew_in_every_batch(tmp_path):
    r = override(tiny(get_recipe('chinchilla-1'), 'markov'), {'data.batching': 'stateful', 'train.max_steps': 4})
    s = train(r, tmp_path / 'run', show=False).summary
    assert s['steps'] == 4 and not s['validation']['state_carried'] and s['validation']['context_length'] == 35
