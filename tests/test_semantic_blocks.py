"""Semantic blocks: note 003's design to its last parameter, causal unless asked otherwise, its sixteen attentions
torch's own, its names without consequence; and the note's learning rate."""

import pytest
import torch
from torch import nn

from lmcourse.errors import LMCourseError
from lmcourse.models.base import ConfigError
from lmcourse.models.semantic_blocks import (
    BLOCK_NAMES,
    BlockAttention,
    CrossAttention,
    SemanticBlocksConfig,
    block_order,
    forward_flops_per_token,
    parameter_breakdown,
    permute_blocks,
    silenced_block,
)
from lmcourse.models.transformer import positions_affected
from lmcourse.training.checkpoint import named_weights
from lmcourse.training.optimizers import get_lr, make_optimizer
from lmcourse.training.recipes import OPTIMIZERS, Data, Optim, Recipe, Train, get_recipe, override, tiny
from lmcourse.training.trainer import Trainer, from_checkpoint, train

V = 40
MENDED = SemanticBlocksConfig(4, 2, 2, 4, 24, 2, 16)
CONFIGS = {
    'mended': MENDED,
    'scrambled': SemanticBlocksConfig(4, 2, 2, 4, 24, 2, 16, layout='scrambled'),
    'blocks of four by four': SemanticBlocksConfig(8, 4, 4, 2, 24, 1, 16, 0.0),
    'nine blocks': SemanticBlocksConfig(6, 2, 1, 6, 24, 1, 16),
    'one block': SemanticBlocksConfig(2, 2, 2, 2, 8, 1, 16),
    'no block attentions': SemanticBlocksConfig(4, 2, 2, 4, 24, 2, 16, block_attention=False),
    'no gating tables': SemanticBlocksConfig(4, 2, 2, 4, 24, 2, 16, gating_tables=False),
}
each = pytest.mark.parametrize('config', CONFIGS.values(), ids=CONFIGS)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('LMCOURSE_CACHE', str(tmp_path / 'cache'))


def made(config, seed=0):
    "A model whose weights are all far from where they start."
    torch.manual_seed(seed)
    model = config.build(V)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.eval()


@pytest.fixture
def x_BT():
    return torch.randint(V, (2, 10), generator=torch.Generator().manual_seed(1))


# parameters


def test_the_notes_model_has_16_690_000_parameters():
    with torch.device('meta'):
        model = SemanticBlocksConfig().build(50_000)
    assert sum(p.numel() for p in model.parameters()) == 16_690_000
    assert sum(p.numel() for p in model.layers[0].parameters()) == 852_640
    counted = parameter_breakdown(SemanticBlocksConfig(), 50_000)
    assert sum(counted.values()) == 16_690_000
    assert counted['gating tables'] == 9_600_000
    assert counted['never used'] == 3_072
    assert counted['block attentions'] == 12 * 1_280


@each
def test_every_part_is_counted(config):
    model = config.build(V)
    counted = parameter_breakdown(config, V)
    assert sum(p.numel() for p in model.parameters()) == sum(counted.values())
    size = lambda module: 0 if module is None else sum(p.numel() for p in module.parameters())
    assert sum(size(layer.gate.affinity) for layer in model.layers) == counted['gating tables']
    assert sum(p.numel() for p in model.parameters() if not p.requires_grad) == counted['never used']
    assert sum(size(layer.block_attention) for layer in model.layers) == counted['block attentions']


def test_only_the_interaction_gets_no_gradient(x_BT):
    model = MENDED.build(V)
    model.loss(model(x_BT)[0], x_BT).nats.backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == {f'layers.{i}.gate.interaction' for i in range(2)}


def test_the_operations_are_those_of_the_matrices():
    c = SemanticBlocksConfig()
    parts = forward_flops_per_token(c, 50_000, 128)
    count = parameter_breakdown(c, 50_000)
    assert parts['head'] == 2 * 50_000 * 64
    assert parts['scores and mixing'] == 2 * 12 * 2 * 2 * 128 * 64
    biases = 12 * (16 * 16 + 4 * 64 + 256 + 64 + 32 + 16)
    matrices = sum(count[k] for k in ('block attentions', 'cross attentions', 'feed-forward', 'gates')) - biases
    assert parts['linear layers'] == 2 * (matrices - 12 * 16)  # the bases of the gates are no matrix


# attention


def test_a_batched_product_is_sixteen_attentions():
    torch.manual_seed(0)
    ours = BlockAttention(16, 4, 2)
    theirs = [nn.MultiheadAttention(4, 2, batch_first=True) for _ in range(16)]
    with torch.no_grad():
        for p in ours.parameters():
            p.copy_(torch.randn_like(p))
        for g, one in enumerate(theirs):
            one.in_proj_weight.copy_(ours.in_proj_weight[g])
            one.in_proj_bias.copy_(ours.in_proj_bias[g])
            one.out_proj.weight.copy_(ours.out_proj_weight[g])
            one.out_proj.bias.copy_(ours.out_proj_bias[g])
    x_BTGC = torch.randn(3, 7, 16, 4)
    hidden_TT = torch.ones(7, 7, dtype=torch.bool).triu(1)
    for sees_future, mask in ((False, hidden_TT), (True, None)):
        want = [f(x, x, x, attn_mask=mask)[0] for f, x in zip(theirs, x_BTGC.unbind(2))]
        torch.testing.assert_close(ours(x_BTGC, None, sees_future)[0], torch.stack(want, 2), atol=1e-5, rtol=1e-4)


def test_a_block_attends_to_no_other_block():
    torch.manual_seed(0)
    f, x_BTGC = BlockAttention(4, 4, 2), torch.randn(1, 5, 4, 4)
    other_BTGC = x_BTGC.clone()
    other_BTGC[:, :, 2] += 1
    same = (f(x_BTGC)[0] == f(other_BTGC)[0]).all(-1).all(1)[0]
    assert same.tolist() == [True, True, False, True]


def test_the_cross_attention_is_torchs_and_so_is_its_entropy():
    torch.manual_seed(0)
    ours, theirs = CrossAttention(16, 4), nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([f.weight for f in (ours.q_proj, ours.k_proj, ours.v_proj)]))
        theirs.out_proj.load_state_dict(ours.o_proj.state_dict())
    x_BTD = torch.randn(2, 6, 16)
    y_BTD, entropy_BT, _ = ours(x_BTD, None, True)
    want_BTD, weights_BTS = theirs(x_BTD, x_BTD, x_BTD)
    torch.testing.assert_close(y_BTD, want_BTD, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(entropy_BT, torch.special.entr(weights_BTS).sum(-1), atol=1e-5, rtol=1e-4)


def test_the_gradient_of_the_entropy_is_a_number():
    "A weight of exactly zero is where the logarithm has none."
    model = MENDED.build(V)
    x_BT = torch.zeros(1, 16, dtype=torch.long)
    model.loss(model(x_BT)[0], x_BT).nats.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


# causality and layout


@each
def test_no_position_sees_what_follows_it(config, x_BT):
    assert positions_affected(made(config), x_BT, 6) == [False] * 6 + [True] * 4


def test_the_original_sees_everything(x_BT):
    model = made(override(Recipe('x', MENDED), {'model.sees_future': True}).model)
    assert positions_affected(model, x_BT, 6) == [True] * 10


def test_no_recipe_of_the_course_sees_the_future():
    models = [get_recipe(name).model for name in ('mu-sota', 'mu-sota-long', 'mu-small', 'blocks-small')]
    assert not any(model.sees_future for model in models)


@each
@pytest.mark.parametrize('cuts', [[3, 7], [1] * 10])
def test_what_was_read_is_not_read_again(config, cuts, x_BT):
    model = made(config)
    whole, _ = model.logits(x_BT)
    state, some = None, []
    for part in x_BT.split(cuts, 1):
        out, state = model.logits(part, state)
        some.append(out)
    torch.testing.assert_close(torch.cat(some, 1), whole, atol=1e-5, rtol=1e-4)


def test_a_context_that_is_full_is_refused(x_BT):
    model = made(MENDED)
    _, state = model(x_BT)
    with pytest.raises(LMCourseError, match='17 tokens do not fit into a context of 16'):
        model(x_BT[:, :7], state)


def test_sixteen_of_sixty_four_places_coincide():
    assert int((block_order(8, 2) == torch.arange(64)).sum()) == 16
    assert block_order(8, 2)[:8].tolist() == [0, 1, 8, 9, 2, 3, 10, 11]
    assert block_order(6, 3).sort().values.tolist() == list(range(36))
    assert len(BLOCK_NAMES) == 16


def test_one_layer_differs_between_the_layouts_by_where_it_writes(x_BT):
    "With every gate shut, both pass the embedding on; open, the scrambled one writes to other places."
    mended = made(SemanticBlocksConfig(4, 2, 2, 4, 24, 1, 16, 0.0))
    scrambled = made(SemanticBlocksConfig(4, 2, 2, 4, 24, 1, 16, 0.0, layout='scrambled'))
    scrambled.load_state_dict(mended.state_dict())
    scrambled.norm, mended.norm = nn.Identity(), nn.Identity()
    assert not torch.allclose(mended(x_BT)[0], scrambled(x_BT)[0])
    for model in (mended, scrambled):
        model.layers[0].gate.base.data.fill_(1.0)
        model.layers[0].gate.net[3].bias.data.fill_(99.0)  # s is 1: only what was written is left
    order = block_order(4, 2)
    torch.testing.assert_close(mended(x_BT)[0][..., order], scrambled(x_BT)[0])
    for model in (mended, scrambled):
        model.layers[0].gate.base.data.zero_()
    assert torch.allclose(mended(x_BT)[0], scrambled(x_BT)[0])


# names


def test_a_model_with_its_blocks_exchanged_is_the_same_function(x_BT):
    model, order = made(SemanticBlocksConfig(6, 2, 2, 6, 24, 2, 16)), [4, 2, 8, 0, 1, 7, 3, 6, 5]
    moved = permute_blocks(model, order)
    torch.testing.assert_close(moved.logits(x_BT)[0], model.logits(x_BT)[0], atol=1e-5, rtol=1e-4)
    assert not torch.equal(moved.embedding.weight, model.embedding.weight)


def test_a_silenced_block_is_what_the_embedding_made_it(x_BT):
    model, order = made(MENDED), [2, 0, 3, 1]
    model.norm = nn.Identity()
    places = block_order(4, 2).view(4, 4)
    before = model(x_BT)[0]
    with silenced_block(model, 2):
        silent = model(x_BT)[0]
    start = model.embedding(x_BT) + model.positions[:10]
    torch.testing.assert_close(silent[..., places[2]], start[..., places[2]])
    assert not torch.allclose(silent[..., places[1]], before[..., places[1]])
    with silenced_block(permute_blocks(model, order), order.index(2)) as moved:
        torch.testing.assert_close(moved.lm_head(moved(x_BT)[0]), model.lm_head(silent), atol=1e-5, rtol=1e-4)
    assert torch.equal(model(x_BT)[0], before)


@pytest.mark.parametrize('name', ['no block attentions', 'no gating tables'])
def test_blocks_can_be_exchanged_where_a_part_is_missing(name, x_BT):
    model = made(CONFIGS[name])
    moved = permute_blocks(model, [3, 1, 0, 2])
    torch.testing.assert_close(moved.logits(x_BT)[0], model.logits(x_BT)[0], atol=1e-5, rtol=1e-4)


def test_blocks_of_the_scrambled_layout_cannot_be_exchanged():
    with pytest.raises(LMCourseError, match='take the layout matrix'):
        permute_blocks(made(CONFIGS['scrambled']), [1, 0, 2, 3])


@pytest.mark.parametrize(
    'changes, sentence',
    [
        (dict(matrix_size=6, block_size=4), '6 is no multiple of model.block_size'),
        (dict(block_heads=3), '4 is no multiple of model.block_heads'),
        (dict(num_heads=7), '64 is no multiple of model.num_heads'),
        (dict(layout='rows'), "model.layout is 'matrix' or 'scrambled'"),
        (dict(dropout=1.0), 'model.dropout lies in'),
    ],
)
def test_a_shape_that_cannot_be_is_refused(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        SemanticBlocksConfig(**changes)


# training


def small(**changes):
    data = Data(corpus='markov', batching='windows', seq_len=16, batch_size=8)
    optim = Optim(lr=3e-3, lr_schedule='one_cycle', warmup_steps=4)
    return override(Recipe('small', MENDED, data, optim, Train(max_steps=16, log_every=4, eval_every=8)), changes)


def test_a_run_goes_on_bit_for_bit(tmp_path):
    changes = {'optim.lr_schedule': 'constant', 'optim.warmup_steps': 0}
    whole = train(small(**changes), tmp_path / 'whole', show=False)
    train(small(**changes | {'train.max_steps': 8}), tmp_path / 'parts', show=False)
    parts = from_checkpoint(tmp_path / 'parts', show=False, max_steps=16).fit()
    assert parts.summary['validation'] == whole.summary['validation']


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_every_optimizer_leaves_the_dead_matrices_alone(optimizer, x_BT):
    model = made(MENDED)
    before = {name: p.clone() for name, p in named_weights(model).items()}
    opt = make_optimizer(model, Optim(optimizer, lr=0.01, weight_decay=0.1))
    for _ in range(2):
        model.loss(model(x_BT)[0], x_BT).nats.backward()
        opt.step()
        opt.zero_grad()
    unmoved = {name for name, p in named_weights(model).items() if torch.equal(p, before[name])}
    assert unmoved == {f'layers.{i}.gate.interaction' for i in range(2)}


def test_it_trains_beside_others(tmp_path):
    "Torch's wrapper for several processes waits for every gradient that it was promised, and gets them all."
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/meet', rank=0, world_size=1)
    try:
        model = MENDED.build(V)
        forward = nn.parallel.DistributedDataParallel(model)
        for _ in range(3):
            x_BT = torch.randint(V, (2, 8))
            model.loss(forward(x_BT)[0], x_BT).nats.backward()
    finally:
        torch.distributed.destroy_process_group()
    assert model.embedding.weight.grad.abs().sum() > 0


def test_the_tiny_twin_of_overlapping_windows_overlaps_by_half():
    r = tiny(get_recipe('mu-sota'), 'markov')
    assert (r.data.seq_len, r.data.stride, r.data.tokenizer) == (35, 17, 'bpe-note:512')
    assert tiny(get_recipe('lstm-a')).data.stride is None


# the learning rate


@pytest.mark.parametrize('total, warmup', [(100, 30), (100, 1), (50, 0), (7, 7), (2, 1)])
def test_one_cycle_is_torchs(total, warmup):
    optim = Optim(lr=3e-4, lr_schedule='one_cycle', warmup_steps=warmup)
    theirs = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    if warmup == 1:  # torch divides by zero there
        assert get_lr(0, total, optim) == 3e-4
        return
    cycle = torch.optim.lr_scheduler.OneCycleLR(theirs, 3e-4, total, pct_start=warmup / total)
    for step in range(total):
        assert get_lr(step, total, optim) == pytest.approx(theirs.param_groups[0]['lr'], rel=1e-9)
        theirs.step()
        if step < total - 1:
            cycle.step()


def test_the_notes_rate_ends_at_86_percent_of_its_peak():
    optim, steps = get_recipe('mu-sota').optim, 10 * 1394
    assert (optim.lr, optim.warmup_steps, optim.schedule_stretch) == (3e-4, 500, 4)
    assert get_lr(steps - 1, steps, optim) / optim.lr == pytest.approx(0.861, abs=1e-3)
    assert get_lr(steps - 1, steps, override(get_recipe('mu-sota'), {'optim.schedule_stretch': 1}).optim) < 1e-8


def test_a_stretched_cosine_is_the_beginning_of_a_longer_one():
    stretched = Optim(lr=1.0, lr_schedule='cosine', warmup_steps=5, schedule_stretch=4)
    longer = Optim(lr=1.0, lr_schedule='cosine', warmup_steps=5)
    assert [get_lr(s, 50, stretched) for s in range(50)] == [get_lr(s, 200, longer) for s in range(50)]


@pytest.mark.parametrize(
    'changes, sentence',
    [
        ({'optim.lr_schedule': 'onecycle'}, "optim.lr_schedule is 'constant', 'cosine' or 'one_cycle'"),
        ({'optim.schedule_stretch': 0.5}, 'optim.schedule_stretch is at least 1'),
        ({'optim.lr_schedule': 'one_cycle', 'optim.min_lr_ratio': 0.1}, 'optim.min_lr_ratio is for the cosine'),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        override(Recipe('x', MENDED), changes)


def test_a_rate_follows_its_schedule_in_training(tmp_path):
    run = train(small(**{'train.log_every': 1, 'optim.schedule_stretch': 4}), tmp_path / 'run', show=False)
    rates = [m['lr'] for m in run.metrics() if 'lr' in m]
    assert rates == [get_lr(s, 16, small(**{'optim.schedule_stretch': 4}).optim) for s in range(16)]
    assert Trainer(small(), tmp_path / 'other', show=False).total_steps == 16
