"""Device bugs, caught without a device: every public function that takes tensors is called with weights on torch's meta
device and targets on the processor, and what mixes the two is refused, as a GPU would refuse it. Where there is a
GPU, the same calls are made on it and compared with the processor's."""

import dataclasses
import importlib
import inspect
import pkgutil

import pytest
import torch
from architectures import CONFIGS, V
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
)

import lmcourse
from lmcourse.device import to_device
from lmcourse.inference import adapt, generate
from lmcourse.measure import cross_entropy as loss
from lmcourse.measure import fused_loss
from lmcourse.measure import sampled_softmax as sampled
from lmcourse.models import awd_lstm, recurrent, transformer
from lmcourse.models import tied_rnn as tuned
from lmcourse.training import optimizers
from lmcourse.training.recipes import OPTIMIZERS, Optim

B, T, D, H = 3, 5, 8, 2
SHAPES_DEPEND_ON_VALUES = (UnsupportedFakeTensorException, DataDependentOutputException, DynamicOutputShapeException)


TEXT_N = (torch.arange(200) % V).numpy()


def weights(*shape, device):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(device)


def ids(*shape):
    return torch.arange(torch.Size(shape).numel()).view(shape) % V  # targets stay on the processor


def no_dropout(config):
    "Two devices draw different masks, so what they give is compared without."
    names = [f.name for f in dataclasses.fields(config) if f.name.endswith('dropout') and f.type in (float, 'float')]
    return dataclasses.replace(config, **dict.fromkeys(names, 0.0))


def model(config, device):
    torch.manual_seed(0)
    if device == 'meta':
        with torch.device('meta'):
            return config.build(V)
    return no_dropout(config).build(V).to(device)


def stepped(optimizer_name, config, device):
    "Three steps, the state through a file's form, and one more: what a resume does."
    net = model(config, device)

    def make():
        return optimizers.make_optimizer(net, Optim(optimizer=optimizer_name, lr=0.01))

    def step(o):
        h_BTD, _ = net(ids(B, T).to(device))
        fused_loss.fused_cross_entropy(
            h_BTD, net.lm_head.weight, net.lm_head.bias, ids(B, T), precision='fp32'
        ).nats.backward()
        o.step()
        o.zero_grad()

    first = make()
    step(first)
    step(first)
    if optimizer_name == 'nt-asgd':
        first.nonmono = 0
        for p in (3.0, 4.0):
            first.on_validation(p)
        step(first)
    again = make()
    state = first.state_dict()
    stored = lambda v: torch.ones(v.shape) if v.device.type == 'meta' else v.detach().cpu().clone()
    state['state'] = {i: {k: stored(v) for k, v in s.items()} for i, s in state['state'].items()}
    again.load_state_dict(state)
    step(again)
    if optimizer_name == 'nt-asgd' and device != 'meta':
        again.on_validation(5.0)
    for p in net.parameters():
        if 'step' in again.state[p]:
            assert again.state[p]['step'].device.type == 'cpu', 'a counter on the device would be waited for'
    return net.lm_head.weight


CELLS = dict(lstm=4, gru=3, elman=1)


def cell(kind, device):
    w = [weights(CELLS[kind] * D, n, device=device) for n in (D, D)] + [weights(CELLS[kind] * D, device=device)] * 2
    x, h = weights(B, D, device=device), weights(B, D, device=device)
    return getattr(recurrent, f'{kind}_cell')(x, (h, h) if kind == 'lstm' else h, *w)


SMALL = CONFIGS | {
    'lstm, tied, sampled': tuned.TiedRNNConfig('lstm', D, D, 1, num_frequent=4, num_sampled=4),
    'gru, tied, sampled': tuned.TiedRNNConfig('gru', D, D, 1, num_frequent=4, num_sampled=4),
    'awd-lstm, sampled': awd_lstm.AWDLSTMConfig(
        embedding_dim=D, hidden_size=D, num_layers=2, num_frequent=4, num_sampled=4
    ),
}


def forward_and_loss(name, device):
    net = model(SMALL[name], device).train()
    h_BTD, _ = net(ids(B, T).to(device))
    net.loss(h_BTD, ids(B, T), 'fp32').nats.backward()
    return net.lm_head.weight.grad


def read(kind, device):
    net = model(SMALL['lstm'], device).eval()
    reader = kind(net, seq_len=T) if kind is not adapt.NeuralCache else kind(net, window=7, seq_len=T)
    with reader:
        return reader.score_batch(ids(1, T), ids(1, T))[0]


CALLS = {
    'cross_entropy.softmax': lambda d: loss.softmax(weights(B, V, device=d)),
    'cross_entropy.logsumexp': lambda d: loss.logsumexp(weights(B, V, device=d)),
    'cross_entropy.log_softmax': lambda d: loss.log_softmax(weights(B, V, device=d)),
    'cross_entropy.cross_entropy_by_hand': lambda d: loss.cross_entropy_by_hand(weights(B, V, device=d), ids(B)).nats,
    'cross_entropy.cross_entropy': lambda d: loss.cross_entropy(weights(B, V, device=d), ids(B)).nats,
    'cross_entropy.cross_entropy_grad': lambda d: loss.cross_entropy_grad(weights(B, V, device=d), ids(B)),
    'device.to_device': lambda d: to_device(ids(B), torch.device(d)),
    'cross_entropy.entropy': lambda d: loss.entropy(weights(B, V, device=d).softmax(-1)),
    'cross_entropy.kl_divergence': lambda d: loss.kl_divergence(
        weights(B, V, device=d).softmax(-1), weights(B, V, device=d).softmax(-1)
    ),
    'fused_loss.fused_cross_entropy': (
        lambda d: (
            fused_loss.fused_cross_entropy(
                weights(B, T, D, device=d),
                weights(V, D, device=d),
                weights(V, device=d),
                ids(B, T),
                chunk=4,
                precision='fp32',
            ).nats
        )
    ),
    'fused_loss.fused_token_nats': lambda d: fused_loss.fused_token_nats(
        weights(B, T, D, device=d), weights(V, D, device=d), weights(V, device=d), ids(B, T)
    )[0],
    'sampled_softmax.sample_candidates': lambda d: sampled.sample_candidates(ids(B, T), V, 4, 4)[1],
    'sampled_softmax.sampled_cross_entropy': (
        lambda d: (
            sampled.sampled_cross_entropy(
                weights(B, T, D, device=d), weights(V, D, device=d), weights(V, device=d), ids(B, T), 4, 4, 'fp32'
            ).nats
        )
    ),
    'recurrent.elman_cell': lambda d: cell('elman', d),
    'recurrent.gru_cell': lambda d: cell('gru', d),
    'recurrent.lstm_cell': lambda d: cell('lstm', d)[0],
    'recurrent.lstm_gates': lambda d: recurrent.lstm_gates(
        weights(B, D, device=d),
        weights(B, D, device=d),
        weights(4 * D, D, device=d),
        weights(4 * D, D, device=d),
        weights(4 * D, device=d),
        weights(4 * D, device=d),
    )[0],
    'recurrent.unroll': lambda d: recurrent.unroll(
        recurrent.elman_cell,
        weights(B, T, D, device=d),
        weights(B, D, device=d),
        weights(D, D, device=d),
        weights(D, D, device=d),
        weights(D, device=d),
        weights(D, device=d),
    )[0],
    'transformer.attention': lambda d: transformer.attention(*[weights(B, H, T, 4, device=d)] * 3)[0],
    'transformer.apply_rotary_emb': lambda d: transformer.apply_rotary_emb(
        weights(B, H, T, 4, device=d), transformer.rope_cache(T, 4).to(d)
    ),
    'optimizers.newton_schulz': lambda d: optimizers.newton_schulz(weights(6, 4, device=d)),
    'transformer.positions_affected': lambda d: transformer.positions_affected(
        model(SMALL['decoder'], d), ids(1, T), 2
    ),
    'awd_lstm.temporal_activation_regularization': lambda d: awd_lstm.temporal_activation_regularization(
        weights(B, T, D, device=d)
    ),
    'awd_lstm.activation_regularization': lambda d: awd_lstm.activation_regularization(weights(B, T, D, device=d)),
    'adapt.cache_attention': lambda d: adapt.cache_attention(
        weights(B, T, D, device=d), weights(B, 9, D, device=d), 0.3, 6
    ),
    'adapt.gradient_rms': lambda d: adapt.gradient_rms(
        model(SMALL['lstm'], d), TEXT_N, 0, seq_len=5, eval_batch_size=4, batches=2
    )[0],
    'generate.sample_from_logits': lambda d: generate.sample_from_logits(
        weights(B, V, device=d), torch.rand(B, generator=torch.Generator().manual_seed(1))
    ),
    'generate.greedy': lambda d: generate.greedy(weights(B, V, device=d)),
    'generate.temperature': lambda d: generate.temperature(weights(B, V, device=d), 0.0),
    'generate.top_k': lambda d: generate.top_k(weights(B, V, device=d), 3),
    'generate.top_p': lambda d: generate.top_p(weights(B, V, device=d), 0.5),
    'generate.min_p': lambda d: generate.min_p(weights(B, V, device=d), 0.5),
    'generate.repetition_penalty': lambda d: generate.repetition_penalty(weights(V, device=d), [1, 2, 2], 1.5),
    'generate.token_nats': lambda d: torch.tensor(generate.token_nats(model(SMALL['lstm'], d), [1, 2, 3], 0)),
    'generate.SamplingConfig': lambda d: generate.SamplingConfig(
        temperature=0.0, top_k=3, top_p=0.9, min_p=0.1, penalty=1.2
    )(weights(1, V, device=d), [[1, 2]]),
    'generate.generate_ids': lambda d: torch.tensor(
        [
            one[0]
            for _, one in zip(range(4), generate.generate_ids(model(SMALL['decoder'], d), [[1, 2]], 0))
            for one in [one[0]]
        ]
    ),
    **{f'a training step of {n}': lambda d, n=n: forward_and_loss(n, d) for n in SMALL},
    **{f'{n} after a resume': lambda d, n=n: stepped(n, SMALL['decoder'], d) for n in OPTIMIZERS},
    **{
        f'adapt.{k.__name__}': lambda d, k=k: read(k, d)
        for k in (adapt.StreamingEvaluator, adapt.NeuralCache, adapt.DynamicEvaluation)
    },
}
READ_VALUES = {
    'transformer.positions_affected',
    'fused_loss.fused_token_nats',
    'generate.sample_from_logits',
    'generate.generate_ids',
    'generate.token_nats',
    'adapt.StreamingEvaluator',
    'adapt.NeuralCache',
    'adapt.DynamicEvaluation',
}
# what these give is numbers, for which a device is waited for by right; a device that is not there has none


@pytest.mark.parametrize('name', sorted(CALLS.keys() - READ_VALUES))
def test_no_operation_mixes_devices(name):
    "Weights on a device that is not there, targets on the processor."
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            CALLS[name]('meta')
    except SHAPES_DEPEND_ON_VALUES:
        CALLS[name]('meta')  # of the targets, which are real then


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU here')
@pytest.mark.parametrize('name', CALLS)
def test_a_gpu_gives_what_the_processor_gives(name):
    want, got = (torch.as_tensor(CALLS[name](d)).detach().cpu().double() for d in ('cpu', 'cuda'))
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('name', CALLS)
def test_each_call_works_on_the_processor(name):
    assert torch.as_tensor(CALLS[name]('cpu')).numel() > 0


def test_the_suite_would_notice():
    "What sampled softmax once did: a GPU's bias plus the processor's weights."
    with pytest.raises(Exception), FakeTensorMode(allow_non_fake_inputs=True):
        torch.empty(4, device='meta') + torch.ones(4)


NOT_CALLED = {
    'files.save_safetensors': 'writes numbers to a file; tests/test_resume.py reads them back',
    'native.fused_loss': "the processor's own kernel: fused_loss.fused_cross_entropy calls it for the processor alone",
    'bench.usual_loss': 'a contestant of the benchmarks, which are run on the processor; tests/test_bench.py compares it',
    'distributed.sum_over_processes': 'wants processes and main memory; tests/test_distributed.py has both',
}


def public_tensor_functions():
    "Of every module of the package: what is exported, and has a parameter that is said to be a tensor."
    found = set()
    for info in pkgutil.walk_packages(lmcourse.__path__, 'lmcourse.'):
        if '._' in info.name or info.ispkg:
            continue
        module = importlib.import_module(info.name)
        for name in module.__all__:
            f = getattr(module, name)
            if inspect.isfunction(f) and any('Tensor' in str(p) for p in inspect.signature(f).parameters.values()):
                found.add(f'{info.name.rpartition(".")[2]}.{name}')
    return found


def test_every_public_tensor_function_is_in_the_table():
    missing = sorted(public_tensor_functions() - CALLS.keys() - NOT_CALLED.keys())
    assert not missing, 'call each of them in CALLS of tests/test_devices.py'


def test_what_is_not_called_is_there_and_has_a_reason():
    assert NOT_CALLED.keys() <= public_tensor_functions()
    assert not NOT_CALLED.keys() & CALLS.keys()
    assert all(NOT_CALLED.values())
