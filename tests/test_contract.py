"Every architecture keeps the contract of `models.base`: the training loop and the rest of the course ask nothing else."

import ast
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from architectures import V
from conftest import ROOT

from lmcourse.inference.generate import SamplingConfig, generate_ids
from lmcourse.models import recurrent, semantic_blocks, transformer
from lmcourse.models.awd_lstm import AWDLSTMConfig
from lmcourse.models.base import LanguageModel, ModelConfig
from lmcourse.models.recurrent import RecurrentConfig
from lmcourse.models.semantic_blocks import SemanticBlocksConfig
from lmcourse.models.tied_rnn import TiedRNNConfig, TiedRNNLM
from lmcourse.models.transformer import TransformerConfig, positions_affected

CONFIGS = {
    'elman': RecurrentConfig('elman', 8, 12, 1),
    'lstm': RecurrentConfig('lstm', 8, 12, 2, io_dropout=0.5),
    'gru': RecurrentConfig('gru', 8, 8, 1, tie_weights=True),
    'lstm, tied': TiedRNNConfig('lstm', 8, 12),
    'gru, tied': TiedRNNConfig('gru', 8, 12),
    'awd-lstm': AWDLSTMConfig(embedding_dim=8, hidden_size=12),
    'decoder': TransformerConfig(16, 2, 32, 2, 16, 0.3),
    'decoder, rotary': TransformerConfig(16, 2, 32, 2, 16, positions='rotary', norm='rms', activation='swiglu'),
    'semantic blocks': SemanticBlocksConfig(4, 2, 2, 4, 32, 2, 16, 0.3),
    'semantic blocks, scrambled': SemanticBlocksConfig(6, 2, 2, 6, 32, 1, 16, layout='scrambled'),
}


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


@pytest.fixture
def model(config):
    torch.manual_seed(0)
    return config.build(V).eval()


@pytest.fixture
def x_BT():
    return torch.randint(V, (3, 10), generator=torch.Generator().manual_seed(1))


def test_a_model_and_its_configuration_inherit_the_contract(config, model):
    assert isinstance(model, LanguageModel)
    assert isinstance(config, ModelConfig)
    assert dataclasses.is_dataclass(config)
    assert config.label


def test_hidden_states_logits_and_state(model, x_BT):
    hidden_BTD, state = model(x_BT)
    logits_BTV, again = model.logits(x_BT)
    assert hidden_BTD.shape == (3, 10, model.lm_head.in_features)
    assert torch.equal(logits_BTV, model.lm_head(hidden_BTD))
    assert type(state) is type(again)


def test_the_loss_is_the_cross_entropy(model, x_BT):
    if isinstance(model, TiedRNNLM):
        model.config = dataclasses.replace(model.config, num_sampled=0)  # the exact sum, not an estimate of it
    hidden_BTD, _ = model(x_BT)
    loss = model.loss(hidden_BTD, x_BT, 'fp32')
    exact = F.cross_entropy(model.lm_head(hidden_BTD).flatten(0, 1), x_BT.flatten(), reduction='sum')
    assert loss.num_tokens == 30
    assert float(loss.nats) == pytest.approx(float(exact), rel=1e-5)


def test_no_position_sees_what_follows_it(model, x_BT):
    for position in (0, 4, 9):
        assert not any(positions_affected(model, x_BT, position)[:position])


def test_a_text_in_two_parts_is_the_text_in_one(model, x_BT):
    whole, _ = model.logits(x_BT)
    first, state = model.logits(x_BT[:, :4])
    second, _ = model.logits(x_BT[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, atol=1e-5, rtol=1e-4)


def test_text_is_written_alike_with_and_without_the_state(model):
    bos_id, prompt = 0, [1, 2, 3]
    written, ids = [], [bos_id, *prompt]
    for (step,) in generate_ids(model, [prompt], bos_id, SamplingConfig(temperature=0.0)):
        if step is not None:
            written.append(step[0])
        if len(written) == 6:
            break
    for _ in range(6):
        ids.append(int(model.logits(torch.tensor([ids]))[0][0, -1].argmax()))
    assert written == ids[4:]


def test_regularisation_is_nothing_or_a_number_with_a_gradient(model, x_BT):
    model.train()
    model.on_progress(0.5)
    model(x_BT)
    penalty = model.regularization()
    assert penalty is None or penalty.requires_grad and float(penalty.detach()) >= 0


def test_the_small_twin_is_small(config):
    twin = config.tiny()
    assert type(twin) is type(config)
    assert sum(p.numel() for p in twin.build(V).parameters()) < 100_000


def test_a_model_is_made_without_numbers(config):
    with torch.device('meta'):
        assert {p.device.type for p in config.build(V).parameters()} == {'meta'}


COUNTED = {RecurrentConfig: recurrent, TransformerConfig: transformer, SemanticBlocksConfig: semantic_blocks}


@pytest.mark.parametrize('name', [name for name, config in CONFIGS.items() if type(config) in COUNTED])
def test_the_closed_form_counts_the_parameters(name):
    config = CONFIGS[name]
    module = COUNTED[type(config)]
    counted = sum(p.numel() for p in config.build(V).parameters())
    assert sum(module.parameter_breakdown(config, V).values()) == counted


def test_nobody_asks_a_model_or_an_optimizer_what_it_has():
    "No `getattr` or `hasattr` with a written name on anything that is called model or optimizer."
    asked = []
    for path in (ROOT / 'lmcourse').rglob('*.py'):
        for call in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(call, ast.Call) and getattr(call.func, 'id', '') in ('getattr', 'hasattr'):
                of = ast.unparse(call.args[0]).rpartition('.')[2]
                if of in ('model', 'optimizer', 'net') and isinstance(call.args[1], ast.Constant):
                    asked.append(f'{path.name}: {ast.unparse(call)}')
    assert not asked
