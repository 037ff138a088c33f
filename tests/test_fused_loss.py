"The fused loss at its edges: every shape, precision and subset of gradients, against full logits."

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import lmcourse.measure.fused_loss as module
from lmcourse import device
from lmcourse.device import bf16_is_faster, has_bf16
from lmcourse.errors import LMCourseError
from lmcourse.measure.cross_entropy import LossSum, cross_entropy
from lmcourse.measure.fused_loss import chunk_size, fused_cross_entropy, fused_token_nats

LIMIT = {'fp32': 1e-5, 'bf16': 5e-3}


@pytest.fixture(autouse=True)
def rounded_when_asked(monkeypatch):
    "Here small products are rounded too where 16 bits are asked for, so that small tests reach that path."
    chosen = module._matmul_dtype
    monkeypatch.setattr(
        module,
        '_matmul_dtype',
        lambda precision, h, w: (
            chosen(precision, h, w) if precision != 'bf16' or torch.float64 in (h.dtype, w.dtype) else torch.bfloat16
        ),
    )


def inputs(N=50, D=24, V=300, spread=1.0, bias=True, dtype=torch.float32, seed=0):
    "Hidden states, head, bias and targets drawn from what they predict."
    g = torch.Generator().manual_seed(seed)
    h, w = torch.randn(N, D, generator=g), torch.randn(V, D, generator=g) * spread / D**0.5
    b = torch.randn(V, generator=g) if bias else None
    y = torch.multinomial(F.linear(h, w, b).softmax(1), 1, generator=g)[:, 0]
    return *(None if t is None else t.to(dtype).requires_grad_() for t in (h, w, b)), y


def grads_of(nats, tensors):
    return torch.autograd.grad(nats, [t for t in tensors if t is not None and t.requires_grad])


def off(a, b):
    return float((a.detach().double() - b.detach().double()).norm() / b.detach().double().norm().clamp(min=1e-30))


def agree(tally, h, w, b, y, limit=1e-5, ignore_index=-100):
    "Value, count and all gradients are those of full logits in double precision."
    assert isinstance(tally, LossSum) and isinstance(tally.num_tokens, int) and tally.nats.shape == ()
    full = cross_entropy(F.linear(*(None if t is None else t.double() for t in (h, w, b))), y, ignore_index)
    assert tally.num_tokens == full.num_tokens and off(tally.nats, full.nats) < limit
    ours, theirs = (grads_of(t.nats, (h, w, b)) for t in (tally, full))
    for a, t in zip(ours, theirs):
        assert a.shape == t.shape and a.dtype == t.dtype and off(a, t) < limit


@pytest.mark.parametrize('chunk', [None, 1, 7, 50, 1000])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('precision', ['fp32', 'bf16', None])
def test_agrees_with_full_logits(precision, bias, chunk):
    args = inputs(bias=bias)
    agree(fused_cross_entropy(*args, chunk=chunk, precision=precision), *args, limit=LIMIT[precision or 'fp32'])


@pytest.mark.parametrize(
    'N, D, V', [(1, 1, 1), (1, 8, 2), (3, 1, 5), (2, 5, 1), (17, 3, 1023), (17, 3, 1025), (300, 16, 2500)]
)
def test_odd_sizes(N, D, V):
    args = inputs(N, D, V)
    for precision in LIMIT:
        tally = fused_cross_entropy(*args, chunk=5, precision=precision)
        if V == 1:
            assert tally.nats.item() == 0 and all(float(g.abs().sum()) == 0 for g in grads_of(tally.nats, args[:3]))
        else:
            agree(tally, *args, limit=LIMIT[precision] * (1 if N > 2 and D > 1 or precision == 'fp32' else 4))


@pytest.mark.parametrize('spread', [0.1, 1, 2, 3.5])
@pytest.mark.parametrize('shift', [0, 20.0, -50.0])
def test_rounding_stays_in_bounds_wherever_the_logits_lie(spread, shift):
    h, w, b, y = inputs(200, 64, 4000, spread)
    b = (b.detach() + shift).requires_grad_()
    agree(fused_cross_entropy(h, w, b, y, chunk=64, precision='bf16'), h, w, b, y, LIMIT['bf16'])


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('N, D, V', [(512, 64, 2048), (64, 32, 32768), (256, 256, 1024)])
def test_bound_of_16_bits_with_targets_that_nobody_predicts(monkeypatch, N, D, V, seed):
    monkeypatch.undo()
    h, w, b, _ = inputs(N, D, V, spread=4.0, seed=seed)
    y = torch.randint(V, (N,), generator=torch.Generator().manual_seed(seed))
    assert module._matmul_dtype('bf16', h, w) is torch.bfloat16
    agree(fused_cross_entropy(h, w, b, y, precision='bf16'), h, w, b, y, LIMIT['bf16'])


def test_large_enough_for_the_choice_of_precision():
    args = inputs(260, 64, 5000)
    agree(fused_cross_entropy(*args), *args, limit=LIMIT['bf16' if bf16_is_faster() else 'fp32'])


@pytest.mark.parametrize('seed', range(20))
def test_hidden_states_of_any_shape_and_strides(monkeypatch, seed):
    monkeypatch.undo()  # precision as users get it
    h, w, b, y = inputs(48, 8, 30, seed=seed)
    for shape in ((4, 12), (2, 3, 8), (1, 48)):
        g = grads_of(fused_cross_entropy(h.view(*shape, 8), w, b, y.view(shape), chunk=10).nats, (h, w, b))
        for a, t in zip(g, grads_of(cross_entropy(F.linear(h, w, b), y).nats, (h, w, b))):
            assert off(a, t) < 1e-5
    g = torch.Generator().manual_seed(seed)
    turned, wide = (
        torch.randn(12, 4, 8, generator=g, requires_grad=True),
        torch.randn(8, 30, generator=g, requires_grad=True),
    )
    for precision in LIMIT:
        args = turned.transpose(0, 1), wide.T, b
        ours = fused_cross_entropy(*args, y.view(4, 12), chunk=5, precision=precision).nats
        full = cross_entropy(F.linear(*args), y.view(4, 12)).nats
        for a, t in zip(grads_of(ours, (turned, wide, b)), grads_of(full, (turned, wide, b))):
            assert off(a, t) < LIMIT[precision]
    assert fused_cross_entropy(h[0], w, b, y[0], chunk=1).num_tokens == 1


@pytest.mark.parametrize('ignore_index', [-100, 3, -1])
def test_targets_that_are_not_scored(ignore_index):
    h, w, b, y = inputs()
    y = y.clone()
    y[::3] = ignore_index
    for chunk in (None, 4):
        agree(fused_cross_entropy(h, w, b, y, ignore_index, chunk), h, w, b, y, ignore_index=ignore_index)
    assert float(grads_of(fused_cross_entropy(h, w, b, y, ignore_index, 4).nats, (h,))[0][::3].abs().sum()) == 0


@pytest.mark.parametrize('chunk', [None, 4])
@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_nothing_scored(chunk, precision):
    h, w, b, y = inputs()
    tally = fused_cross_entropy(h, w, b, torch.full_like(y, -100), chunk=chunk, precision=precision)
    assert (tally.nats.item(), tally.num_tokens) == (0, 0)
    for g, t in zip(grads_of(tally.nats, (h, w, b)), (h, w, b)):
        assert g.shape == t.shape and float(g.abs().sum()) == 0
    with pytest.raises(LMCourseError, match='no tokens were scored'):
        tally.mean
    nats, right = fused_token_nats(h, w, b, torch.full_like(y, -100))
    assert float(nats.abs().sum()) == right == 0
    assert fused_cross_entropy(h[:0], w, b, y[:0], chunk=chunk, precision=precision).num_tokens == 0


@pytest.mark.parametrize('needs_grad', [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)])
@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_every_subset_of_gradients(needs_grad, precision):
    h, w, b, y = inputs()
    for t, need in zip((h, w, b), needs_grad):
        t.requires_grad_(bool(need))
    tally = fused_cross_entropy(h, w, b, y, chunk=20, precision=precision)
    if any(needs_grad):
        agree(tally, h, w, b, y, limit=LIMIT[precision])
    else:
        assert (
            not tally.nats.requires_grad
            and off(tally.nats, cross_entropy(F.linear(h, w, b), y).nats) < LIMIT[precision]
        )


def test_a_frozen_head_costs_no_product(monkeypatch):
    import lmcourse.measure.fused_loss as module

    def refuse(*args):
        raise AssertionError('a gradient that nobody needs was computed')

    monkeypatch.setattr(module, '_accumulate_grad_', refuse)
    h, w, b, y = inputs()
    fused_cross_entropy(h, w.detach(), b.detach(), y, chunk=20).nats.backward()
    with torch.no_grad():
        assert not fused_cross_entropy(h, w, b, y, chunk=20).nats.requires_grad
    with pytest.raises(AssertionError):
        fused_cross_entropy(h, w, b, y, chunk=20)


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_tied_weights(precision):
    emb, ids, y = torch.randn(80, 16, requires_grad=True), torch.arange(30), torch.arange(1, 31)
    h = emb[ids].tanh()
    ours, full = (
        fused_cross_entropy(h, emb, None, y, chunk=7, precision=precision).nats,
        cross_entropy(h @ emb.T, y).nats,
    )
    a, t = (torch.autograd.grad(n, emb, retain_graph=True)[0] for n in (ours, full))
    assert off(a, t) < LIMIT[precision]


def test_into_grad_and_again():
    "`.grad` accumulates over two losses; a second walk back over one loss doubles it; scaling scales."
    h, w, b, y = inputs()
    tally = fused_cross_entropy(h, w, b, y, chunk=20)
    (3 * tally.nats).backward(retain_graph=True)
    first = [t.grad.clone() for t in (h, w, b)]
    (3 * tally.nats).backward()
    for t, g in zip((h, w, b), first):
        torch.testing.assert_close(t.grad, 2 * g)
    with pytest.raises(RuntimeError, match='second time'):
        tally.nats.backward()
    for t in (h, w, b):
        t.grad = None
    (fused_cross_entropy(h, w, b, y, chunk=20) + fused_cross_entropy(h, w, b, y, chunk=20)).mean.backward()
    for t, g in zip((h, w, b), first):
        torch.testing.assert_close(t.grad, g / 3 / 50)


def test_gradients_are_not_kept_twice():
    "The gradient of the head goes into `.grad` itself, without a copy."
    h, w, b, y = inputs()
    tally = fused_cross_entropy(h, w, b, y, chunk=20)
    kept = tally.nats.grad_fn.grads[1].data_ptr()
    tally.nats.backward()
    assert w.grad.data_ptr() == kept


def test_gradcheck_in_double_precision():
    h, w, b, y = inputs(6, 3, 7, dtype=torch.float64)
    y = y.clone()
    y[2] = -100
    assert torch.autograd.gradcheck(lambda *t: fused_cross_entropy(*t, y, chunk=2).nats, (h, w, b))
    assert torch.autograd.gradcheck(lambda h, w: fused_cross_entropy(h, w, None, y, chunk=4).mean, (h, w))
    tally = fused_cross_entropy(h, w, b, y, chunk=2)
    assert tally.nats.dtype == torch.float64
    full = cross_entropy(F.linear(h, w, b), y).nats
    for a, t in zip(grads_of(tally.nats, (h, w, b)), grads_of(full, (h, w, b))):
        assert off(a, t) < 1e-12


def test_second_derivatives_are_refused():
    h, w, b, y = inputs()
    nats = fused_cross_entropy(h, w, b, y, chunk=20).nats
    with pytest.raises(LMCourseError, match='no second derivatives'):
        torch.autograd.grad(nats, h, create_graph=True)


def test_logits_that_overflow():
    "Probabilities too small for a number still have nats, and the largest logits do not overflow."
    h, w = (
        torch.tensor([[300.0], [-300.0], [1e-3]], requires_grad=True),
        torch.tensor([[1.0], [-1.0], [0.0]], requires_grad=True),
    )
    y = torch.tensor([1, 1, 2])
    for precision in LIMIT:
        tally = fused_cross_entropy(h, w, None, y, chunk=2, precision=precision)
        assert off(tally.nats, cross_entropy(h @ w.T, y).nats) < LIMIT[precision]
        for a, t in zip(grads_of(tally.nats, (h, w)), grads_of(cross_entropy(h @ w.T, y).nats, (h, w))):
            assert off(a, t) < LIMIT[precision]
    bad = fused_cross_entropy(torch.full((2, 1), torch.nan), w.detach(), None, y[:2], chunk=1)
    assert torch.isnan(bad.nats)


@pytest.mark.parametrize(
    'change, sentence',
    [
        (dict(y=torch.tensor([0, 300, 5])), 'target 300 is no type: the head has 300'),
        (dict(y=torch.tensor([0, -1, 5])), 'target -1 is no type'),
        (dict(y=torch.tensor([0, 1])), 'one target for each hidden state'),
        (dict(y=torch.zeros(3, 1, dtype=torch.long)), 'one target for each hidden state'),
        (dict(w=torch.randn(300, 5)), 'hidden states are 24 wide and the rows of the head 5'),
        (dict(b=torch.randn(7)), r'the bias has shape \(7,\), and the head 300 types'),
        (dict(chunk=0), 'a chunk has at least one token, got 0'),
        (dict(precision='fp16'), "not 'fp16'"),
    ],
)
def test_what_cannot_be_is_refused(change, sentence):
    h, w, b, y = inputs(3)
    settings = {k: change.pop(k) for k in ('chunk', 'precision') if k in change}
    args = (change.get('h', h), change.get('w', w), change.get('b', b), change.get('y', y))
    for f in (fused_cross_entropy, fused_token_nats):
        with pytest.raises(LMCourseError, match=sentence):
            f(*args, **settings)
    with pytest.raises(LMCourseError, match='double-precision'):
        fused_cross_entropy(h.double(), w.double(), None, y, precision='bf16')


@pytest.mark.parametrize('kind', [torch.float16, torch.bfloat16])
def test_half_precision_tensors(kind):
    "Gradients come back in the types of the tensors; the sums inside are in single precision."
    h, w, b, y = inputs(dtype=kind)
    full = grads_of(cross_entropy(F.linear(h.float(), w.float(), b.float()), y).nats, (h, w, b))
    for chunk in (None, 20):
        tally = fused_cross_entropy(h, w, b, y, chunk=chunk, precision='fp32')
        assert tally.nats.dtype == torch.float32
        for a, t in zip(grads_of(tally.nats, (h, w, b)), full):
            assert a.dtype == kind and off(a, t) < 5e-3
    mixed = fused_cross_entropy(h, w.float(), b.float(), y, chunk=20, precision='fp32').nats
    assert [g.dtype for g in grads_of(mixed, (h, w, b))][0] == kind


def test_under_autocast_it_decides_itself():
    args = inputs()
    with torch.autocast('cpu', torch.bfloat16):
        tallies = [fused_cross_entropy(*args, chunk=chunk, precision='fp32') for chunk in (None, 20)]
        nats, _ = fused_token_nats(*args)
    for tally in tallies:
        agree(tally, *args)
    assert off(nats.sum(), cross_entropy(F.linear(*args[:3]), args[3]).nats) < 1e-5


def test_nothing_that_was_handed_in_changes():
    args = inputs()
    before = [t.detach().clone() for t in args]
    for precision in LIMIT:
        fused_cross_entropy(*args, chunk=20, precision=precision).nats.backward()
        fused_token_nats(*args, chunk=20, precision=precision)
    for t, b in zip(args, before):
        assert torch.equal(t, b)


@pytest.mark.parametrize('precision', ['fp32', 'bf16', None])
def test_scores(precision):
    h, w, b, y = inputs(60, 24, 500, spread=3.0)
    y = y.clone()
    y[::4] = -100
    full = F.linear(h, w, b)
    nats, right = fused_token_nats(h.view(3, 20, 24), w, b, y.view(3, 20), chunk=13, precision=precision)
    expected = F.cross_entropy(full, y, reduction='none').view(3, 20)
    assert nats.shape == (3, 20) and not nats.requires_grad and isinstance(right, int)
    assert off(nats, expected) < LIMIT[precision or 'fp32'] and torch.equal(nats == 0, y.view(3, 20) == -100)
    assert abs(right - int((full.argmax(1) == y).sum())) <= (0 if precision != 'bf16' else 2)


def test_equal_scores_are_no_hits():
    "A head of zeros guesses one type, and is right only where that came."
    y = torch.arange(10)
    nats, right = fused_token_nats(torch.randn(10, 4), torch.zeros(10, 4), None, y)
    assert right == 1
    torch.testing.assert_close(nats, torch.full((10,), 10.0).log())


def test_same_sum_from_both():
    args = inputs(200, 16, 900)
    assert off(fused_token_nats(*args)[0].sum(), fused_cross_entropy(*args, precision='fp32').nats) < 1e-6


def test_the_processor_is_asked_and_never_assumed(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: True)
    for name in ('_is_avx512_bf16_supported', '_is_amx_tile_supported'):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    for can, answer in (
        ({}, False),
        ({'avx512_f': True}, False),
        ({'avx512_bf16': True}, True),
        ({'amx_bf16': True}, True),
    ):
        monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: can, raising=False)
        assert has_bf16() is answer
    monkeypatch.delattr(torch.cpu, 'get_capabilities')
    assert not has_bf16()
    monkeypatch.setattr(torch.cpu, '_is_amx_tile_supported', lambda: True)
    assert has_bf16() and not has_bf16('meta')
    monkeypatch.delattr(torch.cpu, '_is_amx_tile_supported')
    monkeypatch.delattr(torch.cpu, '_is_avx512_bf16_supported')
    assert not has_bf16()
    monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: False)
    assert not has_bf16()


@pytest.mark.parametrize(
    'has, seconds, pays',
    [
        (True, {torch.float32: 3.0, torch.bfloat16: 2.0}, True),
        (True, {torch.float32: 2.1, torch.bfloat16: 2.0}, False),
        (True, {torch.float32: 1.0, torch.bfloat16: 2.0}, False),
        (False, {}, False),
    ],
)
def test_the_clock_decides_whether_16_bits_pay(monkeypatch, has, seconds, pays):
    """A processor that lists the instruction may be slow at it, and a close race is no reason; one without it is not
    even timed."""
    device._clocked.cache_clear()
    monkeypatch.setattr(device, 'has_bf16', lambda device='cpu': has)
    monkeypatch.setattr(device, '_seconds', seconds.__getitem__)
    assert bf16_is_faster() is pays and bf16_is_faster('meta') is has
    device._clocked.cache_clear()


def test_where_16_bits_do_not_pay_the_choice_is_single_precision(monkeypatch):
    monkeypatch.setattr(module, 'bf16_is_faster', lambda device='cpu': False)
    args = inputs(260, 64, 5000)
    agree(fused_cross_entropy(*args), *args, limit=LIMIT['fp32'])


def test_chunks():
    for tokens in (0, 1, 2240, 100_000):
        for vocab_size in (1, 27, 50257, 10**7):
            c = chunk_size(tokens, vocab_size)
            assert 1 <= c <= max(tokens, 1) and (c <= 64 or c * vocab_size * 4 <= 30 * 2**20)
    assert chunk_size(2240, 33278, 2, 'cuda') > chunk_size(2240, 33278, 2)


def test_memory_is_bounded():
    "In a process of its own: full logits and their kin would take 480 MB here."
    pytest.importorskip('resource')
    code = (
        'import torch, sys; from lmcourse.measure.fused_loss import *\ndef hwm(): return max((int(l.split()[1]) for l in'
        ' open("/proc/self/status") if l.startswith("VmHWM")), default=0)\nh, w, b, y = torch.randn(2000, 16,'
        ' requires_grad=True), torch.randn(20_000, 16, requires_grad=True), None,'
        ' torch.arange(2000)\nfused_cross_entropy(h[:2].detach(), w.detach(), b, y[:2], chunk=2); was ='
        ' hwm()\nfused_cross_entropy(h, w, b, y, precision="fp32").nats.backward(); print((hwm() - was) // 1024)'
    )
    if not sys.platform.startswith('linux'):
        pytest.skip('the mark is read from /proc')
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert r.returncode == 0, r.stderr
    assert int(r.stdout) < 100


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
@pytest.mark.parametrize('precision', ['fp32', 'bf16', None])
def test_on_a_gpu(precision):
    h, w, b, y = inputs(300, 32, 3000)
    there = [t.detach().cuda().requires_grad_() for t in (h, w, b)]
    tally = fused_cross_entropy(*there, y.cuda(), chunk=128, precision=precision)
    full = cross_entropy(F.linear(h, w, b), y).nats
    assert off(tally.nats.cpu(), full) < LIMIT[precision or 'bf16']
    for a, t in zip(grads_of(tally.nats, there), grads_of(full, (h, w, b))):
        assert off(a.cpu(), t) < LIMIT[precision or 'bf16']
    nats, right = fused_token_nats(*there, y.cuda(), precision='fp32')
    assert off(nats.sum().cpu(), full) < 1e-5 and right == fused_token_nats(h, w, b, y)[1]
