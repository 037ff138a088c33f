"The native kernel: the same numbers as full logits in every mode, silence where it cannot run, and clean memory."

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

import lmcourse.measure.fused_loss as fused
from lmcourse import native
from lmcourse.errors import LMCourseError
from lmcourse.measure.cross_entropy import cross_entropy
from lmcourse.measure.fused_loss import fused_cross_entropy, fused_token_nats

LIMIT = {'fp32': 1e-5, 'bf16': 5e-3}
COMPILER = next((p for name in ('c++', 'g++', 'clang++') if (p := shutil.which(name))), None)
needs_compiler = pytest.mark.skipif(COMPILER is None or os.name != 'posix', reason='no C++ compiler')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "One cache folder for this file, so that the kernel is compiled once."
    return tmp_path_factory.mktemp('native')


@pytest.fixture(autouse=True)
def always(folder, monkeypatch):
    "Here the kernel is taken wherever it can compute, and small products are rounded where 16 bits are asked for."
    monkeypatch.setenv('LMCOURSE_CACHE', str(folder))
    monkeypatch.delenv('LMCOURSE_NATIVE', raising=False)
    chosen = fused._matmul_dtype
    monkeypatch.setattr(
        fused,
        '_matmul_dtype',
        lambda precision, h, w: torch.bfloat16 if precision == 'bf16' else chosen(precision, h, w),
    )
    with native.using('always'):
        yield


@pytest.fixture(params=['fp32', 'bf16'])
def precision(request):
    "A precision in which this machine's kernel computes."
    state = native.status()
    if not state.native or request.param == 'bf16' and not state.bf16:
        pytest.skip(f'no such kernel: {state.why}')
    return request.param


@pytest.fixture
def counted(monkeypatch):
    "The calls that reach the kernel."
    calls, inner = [], native._called
    monkeypatch.setattr(native, '_called', lambda *a: calls.append(a) or inner(*a))
    native.status()
    calls.clear()  # what was called to check it
    return calls


def inputs(N=150, D=24, V=300, spread=1.0, bias=True, seed=0):
    "Hidden states, head, bias and targets drawn from what they predict."
    g = torch.Generator().manual_seed(seed)
    h, w = torch.randn(N, D, generator=g), torch.randn(V, D, generator=g) * spread / D**0.5
    b = torch.randn(V, generator=g) if bias else None
    y = torch.multinomial(F.linear(h, w, b).softmax(1), 1, generator=g)[:, 0]
    return *(None if t is None else t.requires_grad_() for t in (h, w, b)), y


def off(a, b):
    "The relative distance of two tensors."
    return float((a.detach().double() - b.detach().double()).norm() / b.detach().double().norm().clamp(min=1e-30))


def agree(h, w, b, y, precision, limit=None):
    "Value, count and gradients are those of full logits in double precision."
    leaves = [t for t in (h, w, b) if t is not None and t.requires_grad]
    ours = fused_cross_entropy(h, w, b, y, precision=precision)
    full = cross_entropy(F.linear(*(None if t is None else t.double() for t in (h, w, b))), y)
    limit = limit or LIMIT[precision]
    assert ours.num_tokens == full.num_tokens
    assert off(ours.nats, full.nats) < limit
    for a, t in zip(torch.autograd.grad(ours.nats, leaves), torch.autograd.grad(full.nats, leaves)):
        assert a.shape == t.shape
        assert off(a, t) < limit


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('D', [16, 17, 33, 64, 100])
def test_agrees_with_full_logits_at_every_width(counted, precision, bias, D):
    agree(*inputs(D=D, bias=bias), precision)
    assert len(counted) == 1


@pytest.mark.parametrize('N, V', [(1, 64), (63, 65), (64, 63), (65, 1000), (200, 129), (5, 17)])
def test_sizes_that_fill_no_tile(precision, N, V):
    agree(*inputs(N, 48, V), precision, limit=LIMIT[precision] * (1 if N > 50 or precision == 'fp32' else 3))


def test_very_small_ones():
    for N, D, V in ((1, 1, 2), (3, 1, 5), (2, 5, 1)):
        h, w, b, y = inputs(N, D, V)
        found = native.fused_loss(h, w, b, y)
        if found is None:
            pytest.skip(native.status().why)
        exact = F.cross_entropy(F.linear(h.double(), w.double(), b.double()), y, reduction='none')
        assert torch.allclose(found[0].double(), exact, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('spread', [0.1, 2, 4])
@pytest.mark.parametrize('shift', [0, 20.0, -50.0])
def test_rounding_stays_in_bounds_wherever_the_logits_lie(precision, spread, shift):
    h, w, b, y = inputs(200, 64, 2000, spread)
    agree(h, w, (b.detach() + shift).requires_grad_(), y, precision)


def test_targets_that_nobody_predicts(precision):
    h, w, b, _ = inputs(200, 64, 2000, 4.0)
    agree(h, w, b, torch.randint(2000, (200,), generator=torch.Generator().manual_seed(1)), precision)


def test_a_model_that_is_almost_certain():
    "Losses of a millionth of a nat keep their digits, and so do their gradients."
    h, w = torch.eye(40).mul(20).requires_grad_(), torch.eye(40).requires_grad_()
    if not native.status().native:
        pytest.skip(native.status().why)
    agree(h, w, None, torch.arange(40), 'fp32')


@pytest.mark.parametrize('needs_grad', [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)])
def test_every_subset_of_gradients(precision, needs_grad):
    "A frozen head, a frozen bias, or nothing to compute but the loss."
    h, w, b, y = inputs()
    for t, need in zip((h, w, b), needs_grad):
        t.requires_grad_(bool(need))
    if any(needs_grad):
        agree(h, w, b, y, precision)
    else:
        full = cross_entropy(F.linear(h, w, b), y).nats
        assert off(fused_cross_entropy(h, w, b, y, precision=precision).nats, full) < LIMIT[precision]


@pytest.mark.parametrize('ignore_index', [-100, 3])
def test_targets_that_are_not_scored(precision, ignore_index):
    h, w, b, y = inputs(V=2000, D=64)
    y = y.clone()
    y[::3] = ignore_index
    ours = fused_cross_entropy(h, w, b, y, ignore_index, precision=precision)
    full = cross_entropy(F.linear(h, w, b), y, ignore_index)
    assert ours.num_tokens == full.num_tokens
    for a, t in zip(torch.autograd.grad(ours.nats, (h, w, b)), torch.autograd.grad(full.nats, (h, w, b))):
        assert off(a, t) < LIMIT[precision]


def test_tied_weights(precision):
    emb, ids, y = torch.randn(80, 16, requires_grad=True), torch.arange(30), torch.arange(1, 31)
    h = emb[ids].tanh()
    ours = fused_cross_entropy(h, emb, None, y, precision=precision).nats
    full = cross_entropy(h @ emb.T, y).nats
    a, t = (torch.autograd.grad(n, emb, retain_graph=True)[0] for n in (ours, full))
    assert off(a, t) < LIMIT[precision]


def test_strides_and_half_precision_tensors(precision):
    "A head that is a view, and hidden states in 16 bits, whose gradients come back in 16 bits."
    h, w, b, y = inputs()
    wide = w.detach().T.contiguous().requires_grad_()
    agree(h, wide.T, b, y, precision)
    low = h.detach().bfloat16().requires_grad_()
    nats = fused_cross_entropy(low, w, b, y, precision=precision).nats
    [g] = torch.autograd.grad(nats, [low])
    [t] = torch.autograd.grad(cross_entropy(F.linear(low.float(), w, b), y).nats, [low])
    assert g.dtype is torch.bfloat16
    assert off(g, t) < 1e-2


def test_twice_back_is_twice_the_gradient(precision):
    h, w, b, y = inputs()
    nats = fused_cross_entropy(h, w, b, y, precision=precision).nats
    (3 * nats).backward(retain_graph=True)
    first = [t.grad.clone() for t in (h, w, b)]
    (3 * nats).backward()
    for t, g in zip((h, w, b), first):
        torch.testing.assert_close(t.grad, 2 * g)


def test_gradients_stand_the_comparison_with_differences(counted):
    "In double precision, which the kernel does not have, the loop computes: torch's gradcheck passes."
    h, w, b, y = (t.detach().double().requires_grad_() if t.is_floating_point() else t for t in inputs(6, 3, 7))
    assert torch.autograd.gradcheck(lambda *t: fused_cross_entropy(*t, y).nats, (h, w, b))
    assert not counted


def test_extreme_logits_come_from_the_loop(precision):
    "A thousand nats, an exponential that underflows, and gradients in which such tokens have their part."
    h, w, b, y = inputs(100, 32, 500)
    with torch.no_grad():
        h[3], h[70] = 60, -60
        w[0], w[1] = 1, -1
    y[3], y[70] = 1, 0
    found = native.fused_loss(h, w, b, y, precision == 'bf16')
    assert found[0].isnan().nonzero()[:, 0].tolist() == [3, 70]
    agree(h, w, b, y, precision)
    nats, _ = fused_token_nats(h, w, b, y, precision=precision)
    assert off(nats, F.cross_entropy(F.linear(h, w, b), y, reduction='none')) < LIMIT[precision]


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_what_is_no_number_stays_with_its_token(precision, bad):
    h, w, b, y = inputs()
    with torch.no_grad():
        h[7, 2] = bad
    found = native.fused_loss(h, w, b, y, precision == 'bf16')
    assert found[0].isnan().nonzero()[:, 0].tolist() == [7]
    assert all(g.isfinite().all() for g in found[1])
    assert torch.isnan(fused_cross_entropy(h, w, b, y, precision=precision).nats)


@pytest.mark.parametrize('threads', [1, 2, 3, 7])
def test_any_number_of_threads_bit_for_bit_the_same_again(precision, threads):
    h, w, b, y = inputs(130, 32, 777)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first, again = (native.fused_loss(h, w, b, y, precision == 'bf16', argmax=True) for _ in range(2))
        agree(h, w, b, y, precision)
    finally:
        torch.set_num_threads(before)
    for a, t in zip((first[0], *first[1], first[2]), (again[0], *again[1], again[2])):
        assert torch.equal(a, t)


def test_several_callers_at_once(precision):
    args = inputs(100, 32, 500)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: native.fused_loss(*args, precision == 'bf16'), range(8)))
    for nats, grads, _ in found[1:]:
        assert torch.equal(nats, found[0][0])
        assert torch.equal(grads[1], found[0][1][1])


def test_scores(counted, precision):
    "Nats of each token, zero where not scored, and correct predictions; of equal logits the first type is guessed."
    h, w, b, y = inputs(60, 64, 500, spread=3.0)
    y[::4] = -100
    nats, right = fused_token_nats(h.view(3, 20, 64), w, b, y.view(3, 20), precision=precision)
    full = F.linear(h, w, b)
    assert counted
    assert off(nats, F.cross_entropy(full, y, reduction='none').view(3, 20)) < LIMIT[precision]
    assert abs(right - int((full.argmax(1) == y).sum())) <= (0 if precision == 'fp32' else 2)
    assert fused_token_nats(torch.randn(10, 4), torch.zeros(10, 4), None, torch.arange(10))[1] == 1


def test_nothing_that_was_handed_in_changes(precision):
    args = inputs()
    before = [t.detach().clone() for t in args]
    fused_cross_entropy(*args, precision=precision).nats.backward()
    fused_token_nats(*args, precision=precision)
    assert all(torch.equal(t, b) for t, b in zip(args, before))


def test_memory_does_not_grow(precision):
    "Two hundred steps take no more memory than twenty."
    if not sys.platform.startswith('linux'):
        pytest.skip('the memory is read from /proc')
    resident = lambda: int(open('/proc/self/statm').read().split()[1]) * os.sysconf('SC_PAGE_SIZE')
    h, w, b, y = inputs(128, 16, 4000)

    def steps(n):
        for _ in range(n):
            native.fused_loss(h, w, b, y, precision == 'bf16')
        return resident()

    assert steps(200) - steps(20) < 20e6  # one step works with more than a million bytes


def test_small_batches_stay_with_the_loop(counted):
    "Without being asked, nothing that is small is compiled, measured or computed by the kernel."
    args = inputs()
    with native.using('auto'):
        fused_cross_entropy(*args).nats.backward()
        fused_token_nats(*args)
    assert not counted


def test_the_choice_by_size_width_and_registers(monkeypatch):
    """Without a clock, so that a run that is resumed goes the way of the run that was stopped."""
    monkeypatch.setattr(native, 'status', lambda: native.Status(True, True, 512, ''))
    h, w = torch.empty(1, 16).expand(4096, 16), torch.empty(1, 16).expand(50257, 16)
    broad = torch.empty(1, 64).expand(4096, 64), torch.empty(1, 64).expand(50257, 64)
    wide = torch.empty(1, 128).expand(4096, 128), torch.empty(1, 128).expand(50257, 128)
    chosen = lambda h, w, dtype=torch.float32, chunk=None, training=True: fused._in_kernel(
        h, w, None, dtype, chunk, training
    )
    with native.using('auto'):
        assert chosen(h, w)
        assert chosen(h, w, torch.bfloat16)
        assert chosen(*broad, training=False)
        assert not chosen(*broad)
        assert not chosen(*wide, training=False)
        assert not chosen(h[:100], w)
        assert not chosen(h, w, torch.float64)
        assert not chosen(h, w, chunk=64)
        assert not chosen(h.to('meta'), w.to('meta'))
    with native.using('never'):
        assert not chosen(h, w)
    with native.using('always'):
        assert chosen(*wide)


@pytest.mark.parametrize(
    'state, fp32, bf16',
    [((True, False, 512), True, False), ((True, True, 256), False, False), ((False, False, 0), False, False)],
)
def test_the_choice_by_what_the_processor_has(monkeypatch, state, fp32, bf16):
    monkeypatch.setattr(native, 'status', lambda: native.Status(*state, ''))
    h, w = torch.empty(1, 16).expand(4096, 16), torch.empty(1, 16).expand(50257, 16)
    with native.using('auto'):
        assert fused._in_kernel(h, w, None, torch.float32, None, True) is fp32
        assert fused._in_kernel(h, w, None, torch.bfloat16, None, True) is bf16


def test_switched_off(monkeypatch):
    "By the environment, which is asked at every call."
    held = native._forced.pop()
    try:
        for value, mode in (('0', 'never'), ('always', 'always'), ('1', 'auto'), ('', 'auto')):
            monkeypatch.setenv('LMCOURSE_NATIVE', value)
            assert native.mode() == mode
        monkeypatch.setenv('LMCOURSE_NATIVE', '0')
        assert native.status() == native.Status(False, False, 0, 'LMCOURSE_NATIVE=0 switches it off')
        assert native.fused_loss(*inputs()) is None
    finally:
        native._forced.append(held)


def test_no_compiler_no_harm(monkeypatch, tmp_path):
    monkeypatch.setattr(native.shutil, 'which', lambda name: None)
    monkeypatch.setenv('LMCOURSE_CACHE', str(tmp_path))
    assert native.status() == native.Status(False, False, 0, 'no C++ compiler was found')
    h, w, b, y = inputs()
    assert off(fused_cross_entropy(h, w, b, y).nats, cross_entropy(F.linear(h, w, b), y).nats) < 1e-5


@needs_compiler
def test_a_source_that_does_not_compile(monkeypatch, tmp_path):
    (tmp_path / 'broken.cpp').write_text('int fused_loss( {')
    monkeypatch.setattr(native, 'SOURCE', tmp_path / 'broken.cpp')
    monkeypatch.setenv('LMCOURSE_CACHE', str(tmp_path))
    assert 'failed' in native.status().why and not native.status().native
    assert not list((tmp_path / 'native').iterdir()), 'nothing is left behind'


@needs_compiler
def test_a_library_that_is_another(monkeypatch, tmp_path):
    "A source without the function, and one whose function does nothing, are noticed before they are used."
    for source, why in (
        ('extern "C" int other() { return 0; }', 'cannot be loaded'),
        (
            '#include <cstdint>\nextern "C" int kernel_kind() { return 64; }\nextern "C" int fused_loss(int, int,'
            ' int64_t, int64_t, int64_t, void*, void*, void*, void*, void*, void*, void*, void*, void*) { return 0; }',
            'does not agree',
        ),
    ):
        (tmp_path / 'other.cpp').write_text(source)
        monkeypatch.setattr(native, 'SOURCE', tmp_path / 'other.cpp')
        monkeypatch.setenv('LMCOURSE_CACHE', str(tmp_path / why))
        assert why in native.status().why


@needs_compiler
def test_a_folder_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / 'file').write_text('not a folder')
    monkeypatch.setenv('LMCOURSE_CACHE', str(tmp_path / 'file'))
    assert 'cache folder cannot be written' in native.status().why


@needs_compiler
def test_a_file_that_others_may_write_is_replaced(monkeypatch, tmp_path):
    (tmp_path / 'tiny.cpp').write_text('extern "C" int kernel_kind() { return 64; }')
    monkeypatch.setattr(native, 'SOURCE', tmp_path / 'tiny.cpp')
    path = native._compiled(tmp_path / 'cache')
    good = path.read_bytes()
    path.write_bytes(b'something else')
    path.chmod(0o777)
    assert native._compiled(tmp_path / 'cache').read_bytes() == good
    assert path.stat().st_mode & 0o777 == 0o700


@needs_compiler
def test_two_processes_compile_at_once(monkeypatch, tmp_path):
    "Both get a whole library, and one file is left."
    (tmp_path / 'tiny.cpp').write_text('extern "C" int kernel_kind() { return 64; }')
    monkeypatch.setattr(native, 'SOURCE', tmp_path / 'tiny.cpp')
    children = []
    for _ in range(2):
        child = os.fork()
        if not child:
            try:
                os._exit(native.ctypes.CDLL(str(native._compiled(tmp_path / 'cache'))).kernel_kind())
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children] == [64, 64]
    assert [p.suffix for p in (tmp_path / 'cache').iterdir()] == ['.so']


DRIVER = """
#include "SOURCE"
#include <cstdio>
#include <vector>
int main() {
    for (int half = 0; half < 1 + (kernel_kind() & 1); half++)
        for (int threads = 1; threads < 4; threads++)
            for (long D : {1, 16, 33, 50})
                for (long V : {1, 64, 200})
                    for (int need = 0; need < 16; need += 3) {
                        const long N = 67;
                        std::vector<float> h(N * D), w(V * D), b(V), nats(N), dh(N * D), dw(V * D), db(V);
                        std::vector<int64_t> y(N), best(N);
                        for (size_t i = 0; i < h.size(); i++) h[i] = (i * 7 % 13) / 6.f - 1;
                        for (size_t i = 0; i < w.size(); i++) w[i] = (i * 5 % 11) / 5.f - 1;
                        for (long i = 0; i < N; i++) y[i] = i * 3 % V;
                        h[5] = INFINITY;
                        if (fused_loss(half, threads, N, D, V, h.data(), w.data(), need & 1 ? b.data() : nullptr,
                                       y.data(), nats.data(), need & 8 ? best.data() : nullptr,
                                       need & 2 ? dh.data() : nullptr, need & 4 ? dw.data() : nullptr,
                                       need & 1 ? db.data() : nullptr)) return 1;
                    }
    std::puts("done");
}
"""


@needs_compiler
@pytest.mark.parametrize('kind', ['address,undefined', 'thread'])
def test_the_sanitizers_find_nothing(tmp_path, kind):
    "No access outside its memory, nothing undefined, nothing kept, and no two threads at the same number."
    (tmp_path / 'driver.cpp').write_text(DRIVER.replace('SOURCE', str(native.SOURCE)))
    flags = ['-std=c++17', '-O1', '-march=native', '-pthread', f'-fsanitize={kind}', '-fno-sanitize-recover=all']
    command = [COMPILER, *flags, str(tmp_path / 'driver.cpp'), '-o', str(tmp_path / 'driver')]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip('this compiler has no such sanitizer')
    done = subprocess.run([tmp_path / 'driver'], capture_output=True, text=True, timeout=200)
    if 'LeakSanitizer has encountered a fatal error' in done.stderr or 'unexpected memory mapping' in done.stderr:
        pytest.skip('the sanitizer cannot run in this container')
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == 'done\n'


@needs_compiler
@pytest.mark.parametrize('machine', ['-march=haswell', '-march=x86-64'])
def test_other_processors_of_this_family(monkeypatch, machine, tmp_path):
    "What is compiled for narrower registers computes the same."
    if native.platform.machine() != 'x86_64':
        pytest.skip('another family')
    monkeypatch.setattr(native, '_MACHINE', (machine, machine))
    kernel = native._loaded(native._compiled(tmp_path))
    assert kernel.bits == {'-march=haswell': 256, '-march=x86-64': 128}[machine]
    if machine == '-march=haswell' and 'avx2' not in str(native._features()):
        pytest.skip('this processor has no AVX2')
    assert native._agrees(kernel)


def test_a_choice_that_does_not_exist():
    with pytest.raises(LMCourseError, match="'never', 'always' or 'auto'"):
        with native.using('perhaps'):
            pass
