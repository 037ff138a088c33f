"Every architecture keeps the contract of `models.base`: the training loop and the rest of the course ask nothing else."

import ast
import dataclasses
import importlib

import pytest
import torch
import torch.nn.functional as F
from architectures import CONFIGS, FORMULAS, V
from conftest import ROOT

from lmcourse.inference.generate import SamplingConfig, generate_ids
from lmcourse.models.base import LanguageModel, ModelConfig
from lmcourse.models.tied_rnn import TiedRNNLM
from lmcourse.models.transformer import positions_affected


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


def test_nothing_is_kept_in_the_model(model, x_BT):
    "A state goes on in the same way twice, whatever was read in between: a call changes neither model nor state."
    _, state = model.logits(x_BT[:, :4])
    once, _ = model.logits(x_BT[:, 4:], state)
    model.logits(x_BT.flip(1))
    again, _ = model.logits(x_BT[:, 4:], state)
    assert torch.equal(once, again)


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


@pytest.mark.parametrize('name', FORMULAS)
def test_the_closed_form_counts_the_parameters(name):
    config = CONFIGS[name]
    counted = sum(p.numel() for p in config.build(V).parameters())
    assert FORMULAS[name](config, V) == counted


def test_every_architecture_of_the_package_is_entered():
    "Every configuration that a module of `lmcourse.models` exports stands in tests/architectures.py."
    entered = {type(config) for config in CONFIGS.values()}
    exported = set()
    for path in sorted((ROOT / 'lmcourse' / 'models').glob('[a-z]*.py')):
        module = importlib.import_module(f'lmcourse.models.{path.stem}')
        exported |= {kind for name in module.__all__ if is_architecture(kind := getattr(module, name))}
    assert exported == entered, 'enter each of them in tests/architectures.py'


def is_architecture(kind):
    return isinstance(kind, type) and issubclass(kind, ModelConfig) and kind is not ModelConfig


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
