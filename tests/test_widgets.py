"""The widgets: their arithmetic against the lessons', their traits, and each of them under mouse and keyboard on a page
without a kernel."""

import functools
import json
import math
import random
import re
import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import PICTURES, ROOT

from lmcourse.inference.predictors import NeuralPredictor, load_pretrained
from lmcourse.interactive.playground import SENTENCES, LiveRun, Rungs, Surprise, shade
from lmcourse.interactive.widgets import Averaging, Confidence, Doors, Tokenizers, WidgetError
from lmcourse.measure import cross_entropy as L
from lmcourse.measure import perplexity as P

STATIC = ROOT / 'lmcourse' / 'static'
HOST = 'http://widgets.test/'  # answered from memory: a page without a kernel
TEXT = 'The café was closed.\n'
PIECES = {
    'words': [*TEXT.split(), '⏎'],
    'pairs': [TEXT[i : i + 2] for i in range(0, len(TEXT), 2)],
    'characters': list(TEXT),
    'bytes': [f'{b:02x}' for b in TEXT.encode()],
}
MAKERS = {
    'doors': Doors,
    'confidence': Confidence,
    'averaging': Averaging,
    'tokenizers': lambda: Tokenizers(TEXT, PIECES, nats=42.0),
}


@functools.cache
def walked():
    "A live run that has gone a little way; its curve is all that a page can see."
    w = LiveRun(width=16, lr=1e-2)
    w.advance(120)
    return w.curve


def live():
    w = LiveRun(width=16, lr=1e-2)
    w.curve = walked()
    return w


TRAINED = {'surprise': Surprise, 'rungs': Rungs, 'live': live}  # those that have a model behind them
ALL = MAKERS | TRAINED


def page_of(widget, theme='light', furo=False, kernel=False):
    """A page with one widget on it, as anywidget would show it, and a stand-in for its model, whose keys are sorted as
    those of a stored notebook are; with `kernel`, what is saved goes to Python and what changes there comes back."""
    synced = {
        k: v
        for k in widget.keys
        if not k.startswith('_') and isinstance(v := getattr(widget, k), (int, float, str, list, dict))
    }
    body = f'<body data-theme="{theme}">' if furo else '<body>'
    dark = (
        'body[data-theme=dark] { --color-foreground-primary: #cfd0d0; --color-foreground-secondary: #9ca0a5;'
        ' --color-background-border: #303335; --color-background-secondary: #1a1c1e; --color-background-primary:'
        ' #131416; background: #131416 }'
    )
    return f'''<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>widget</title>
<style>:root {{ color-scheme: light dark; --jp-ui-font-color1: #111; }} {dark if furo else ':root { --jp-ui-font-color1: initial }'} body {{ margin: 12px }}</style><style>{widget._css}</style>{body}<div id="here"></div>
<script type="module">
  import widget from './widget.js';
  const state = {json.dumps(synced, sort_keys=True)}, heard = {{}}, kernel = {json.dumps(kernel)};
  let changed = {{}};
  window.model = {{ state, saves: 0, get: k => state[k],
    save_changes() {{ this.saves++; const sent = changed; changed = {{}}; if (kernel) python(sent).then(back => {{ for (const k in back) this.set(k, back[k]); changed = {{}}; }}); }},
    set(k, v) {{ changed[k] = v; if (JSON.stringify(state[k]) !== JSON.stringify(v)) {{ state[k] = v; (heard[`change:${{k}}`] ?? []).forEach(f => f()); }} }},
    on(e, f) {{ (heard[e] ??= []).push(f); }}, off(e, f) {{ heard[e] = (heard[e] ?? []).filter(g => g !== f); }}, heard }};
  window.cleanup = await widget.render({{ model, el: document.getElementById('here') }});
</script>'''


@pytest.fixture
def show(page):
    "show(widget) puts it on the page; whatever the page asks of another host, or says on its console, is a failure."
    page.faults = []
    page.on('console', lambda m: m.type in ('error', 'warning') and page.faults.append(m.text))
    page.on('pageerror', lambda e: page.faults.append(str(e)))
    behind = {}

    def python(sent):
        w = behind['widget']
        before = {k: getattr(w, k) for k in w.keys}
        w.set_state(sent)
        return {k: getattr(w, k) for k in before if k not in sent and getattr(w, k) is not before[k]}

    page.expose_function('python', python)

    def put(widget, width=1000, scheme='light', **how):
        behind['widget'] = widget
        files = {
            '': ('text/html', page_of(widget, **how)),
            'widget.js': ('text/javascript', widget._esm),
            'favicon.ico': ('image/x-icon', ''),
        }

        def answer(route):
            url = route.request.url
            if url.startswith(HOST) and url[len(HOST) :] in files:
                kind, text = files[url[len(HOST) :]]
                route.fulfill(content_type=f'{kind}; charset=utf-8', body=text)
            else:
                page.faults.append(f'asked for {url}')
                route.abort()

        page.unroute_all()
        page.route('**/*', answer)
        page.set_viewport_size(dict(width=width, height=1100))
        page.emulate_media(color_scheme=scheme)
        page.goto(HOST)
        page.wait_for_function('window.cleanup !== undefined')
        return page

    yield put
    assert not page.faults, page.faults


def numbers(page):
    "All numbers on the page, by name, with all their digits."
    found = page.eval_on_selector_all('output[data-name]', 'nodes => nodes.map(n => [n.dataset.name, n.dataset.value])')
    return {name: float(value.replace('Infinity', 'inf')) for name, value in found}


def agree(page, widget):
    "The page and Python have the same state, and made the same numbers of it, each for itself."
    for k in widget.controls:
        setattr_quietly(widget, k, page.evaluate('k => model.get(k)', k))
    return same(numbers(page), widget.readouts())


def same(there, here):
    "The page's numbers are Python's, to nine digits."
    assert there.keys() == here.keys() and here
    for k, v in here.items():
        assert math.isclose(there[k], v, rel_tol=1e-9, abs_tol=1e-9), (k, there[k], v)
    return there


def setattr_quietly(widget, k, value):
    if getattr(widget, k) != value:
        setattr(widget, k, value)


def settle(page):
    page.evaluate('() => new Promise(r => setTimeout(r, 0))')


# arithmetic


def js(calls, tmp_path):
    "Results of core.js for [function, arguments] pairs, by node."
    (tmp_path / 'core.mjs').write_text((STATIC / 'core.js').read_text(encoding='utf-8'), encoding='utf-8')
    (tmp_path / 'calls.json').write_text(json.dumps(calls))
    (tmp_path / 'run.mjs').write_text(
        "import * as core from './core.mjs'; import { readFileSync } from 'fs';\nconst calls ="
        " JSON.parse(readFileSync(new URL('./calls.json', import.meta.url)));\nconst plain = x => typeof x === 'number'"
        " && !Number.isFinite(x) ? String(x) : x;\nconsole.log(JSON.stringify(calls.map(([f, args]) =>"
        " core[f](...args)), (_, x) => plain(x)));"
    )
    r = subprocess.run([shutil.which('node'), tmp_path / 'run.mjs'], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    return json.loads(r.stdout)


def distribution(rng, n, zeros=False):
    w = [rng.expovariate(1) * (0 if zeros and rng.random() < 0.3 else 1) for _ in range(n)]
    return distribution(rng, n) if not sum(w) else [x / sum(w) for x in w]


@pytest.mark.skipif(
    shutil.which('node') is None,
    reason='no node on the PATH; the browser tests compare the same arithmetic on the page',
)
def test_arithmetic_is_that_of_the_lessons(tmp_path):
    "Every function of core.js against lmcourse.measure.cross_entropy, lmcourse.measure.perplexity or torch, in a thousand random states."
    rng, calls, wanted = random.Random(0), [], []

    def want(name, args, value):
        calls.append([name, args])
        wanted.append(value if isinstance(value, (list, dict)) else float(value))

    d = lambda x: torch.tensor(x, dtype=torch.float64)
    for i in range(1000):
        n = rng.randint(2, 9)
        q, p = distribution(rng, n, zeros=i % 2), distribution(rng, n, zeros=i % 5 == 0)
        logits = [rng.gauss(0, 10 ** rng.uniform(-1, 2.5)) for _ in range(n)]
        T = rng.uniform(0.1, 3)
        k = rng.randrange(n)
        share = rng.choice([0.0, 1.0, rng.random()])
        want('softmax', [logits], L.softmax(d(logits)).tolist())
        want('entropy', [q], L.entropy(d(q)))
        want('klDivergence', [q, p], L.kl_divergence(d(q), d(p)))
        want('crossEntropy', [q, p], L.entropy(d(q)) + L.kl_divergence(d(q), d(p)))
        if min(p) > 0:
            want(
                'crossEntropy',
                [[float(j == k) for j in range(n)], p],
                L.cross_entropy(d(p).log()[None], torch.tensor([k])).mean,
            )
        want('temper', [p, T], F.softmax(d(p).log() / T, -1).tolist())
        others = [x for j, x in enumerate(p) if j != k]
        want(
            'withShare',
            [p, k, share],
            [
                share if j == k else x / sum(others) * (1 - share) if sum(others) else (1 - share) / (n - 1)
                for j, x in enumerate(p)
            ],
        )
        tokens, losses = [rng.randint(1, 64) for _ in range(n)], [rng.uniform(0, 9) for _ in range(n)]
        nats, count = sum(a * b for a, b in zip(tokens, losses)), sum(tokens)
        want('perplexity', [nats, count], P.perplexity(nats, count))
        want('bitsPerToken', [nats, count], P.bits_per_token(nats, count))
        want('bitsPerByte', [nats, count], P.bits_per_byte(nats, count))
        tally = sum(L.LossSum(a * b, a) for a, b in zip(tokens, losses))
        total = [sum(losses[: j + 1]) for j in range(n)]
        want('running', [losses], [P.perplexity(x, j + 1) for j, x in enumerate(total)])
        want('shade', [logits[0] ** 2], shade(logits[0] ** 2))
        want(
            'averages',
            [tokens, losses],
            dict(
                perplexity=math.exp(tally.mean),
                mean_loss=math.exp(sum(losses) / n),
                mean_perplexity=sum(map(math.exp, losses)) / n,
            ),
        )
    assert {c[0] for c in calls} == set(
        re.findall(r'^export (?:const|function) (\w+)', (STATIC / 'core.js').read_text(encoding='utf-8'), re.M)
    ), 'a function of core.js is not tested'

    def close(a, b):
        return math.isclose(
            float(a.replace('Infinity', 'inf')) if isinstance(a, str) else a, b, rel_tol=1e-9, abs_tol=1e-9
        )

    for call, got, value in zip(calls, js(calls, tmp_path), wanted):
        pairs = (
            [(got[k], value[k]) for k in value]
            if isinstance(value, dict)
            else list(zip(got, value, strict=True))
            if isinstance(value, list)
            else [(got, value)]
        )
        assert all(close(a, b) for a, b in pairs), (call, got, value)


def random_state(name, rng):
    "Somewhere that a hand could have brought the widget."
    if name == 'doors':
        return dict(
            loss=rng.uniform(0, 5), unit=rng.choice(['nats', 'bits', 'bytes']), bytes_per_token=rng.uniform(0.5, 9)
        )
    if name == 'confidence':
        zeros = rng.random() < 0.2
        return dict(
            predicted=distribution(rng, 5, zeros),
            true_probs=distribution(rng, 5),
            target=rng.choice(Confidence().words),
            temperature=rng.uniform(0.1, 3),
        )
    if name == 'averaging':
        return dict(tokens=[rng.randint(1, 64) for _ in range(3)], losses=[rng.uniform(0, 6) for _ in range(3)])
    if name == 'surprise':
        return dict(
            text=rng.choice(SENTENCES),
            model=rng.choice(RUNG),
            compare_to=rng.choice([*RUNG, '']),
            token_index=rng.randrange(30),
        )
    if name == 'rungs':
        return dict(rung=rng.choice(RUNG), text=rng.choice([SENTENCES[0], SENTENCES[2]]), seed=rng.randrange(3))
    if name == 'live':
        points = lambda n: [[560 * k, rng.uniform(0, 9)] for k in range(1, n + 1)]
        return dict(
            lr=round(10 ** rng.uniform(-5, 1), 6),
            width=4 * rng.randint(1, 32),
            corpus=rng.choice(['markov', 'stdlib']),
            curve=dict(
                corpus='markov',
                width=8,
                step=rng.randrange(9999),
                train=points(rng.randrange(40)),
                validation=points(rng.randint(1, 9)),
                lr_changes=[[0, 0.1], [560, 0.2]][: rng.randint(1, 2)],
            ),
        )
    return dict(nats=rng.uniform(0, 66), tokenizer=rng.choice(list(PIECES)))


RUNG = ['uniform', 'unigram', 'bigram', 'lstm', 'transformer']


@pytest.mark.parametrize('name', ALL)
def test_page_and_python_make_the_same_numbers(name, show):
    rng, widget = random.Random(1), ALL[name]()
    page, states = show(widget), [random_state(name, rng) for _ in range(200)]
    agree(page, widget)
    found = page.evaluate(
        '''async states => { const all = [];
        for (const s of states) { for (const k in s) model.set(k, s[k]); await new Promise(r => setTimeout(r, 0));
                                  all.push([...document.querySelectorAll('output[data-name]')].map(n => [n.dataset.name, n.dataset.value])); }
        return all; }''',
        states,
    )
    for state, pairs in zip(states, found, strict=True):
        for k, v in state.items():
            setattr(widget, k, v)
        same({k: float(v.replace('Infinity', 'inf')) for k, v in pairs}, widget.readouts())


# under the hand


def drag(page, slider, to):
    "Take a slider's thumb with the mouse and drag it to a share of its way."
    box, at = slider.bounding_box(), float(slider.evaluate('n => (n.value - n.min) / (n.max - n.min)'))
    x = lambda f: box['x'] + 8 + f * (box['width'] - 16)
    page.mouse.move(x(at), box['y'] + box['height'] / 2)
    page.mouse.down()
    page.mouse.move(x((at + to) / 2), box['y'] + box['height'] / 2)
    page.mouse.move(x(to), box['y'] + box['height'] / 2)
    page.mouse.up()


SLIDERS = {
    'doors': ('loss', 'perplexity', 0.8),
    'confidence': ('predicted-0', 'perplexity', 0.9),
    'averaging': ('loss-2', 'mean_perplexity', 0.3),
    'tokenizers': ('nats', 'perplexity-words', 0.2),
}


@pytest.mark.parametrize('name', MAKERS)
def test_mouse_keyboard_undo_reset(name, show):
    "The main slider moves its number by mouse and by keys, the sentence follows, and every move can be taken back."
    widget, (slider, shown, to) = MAKERS[name](), SLIDERS[name]
    page = show(widget)
    hand, undo, reset, told = (
        page.locator(s) for s in (f'input[data-name="{slider}"]', '[data-name=undo]', '[data-name=reset]', '.lmw-told')
    )
    first, words = numbers(page), told.inner_text()
    assert undo.is_disabled()
    drag(page, hand, to)
    moved = agree(page, widget)
    assert moved[shown] != first[shown] and told.inner_text() != words
    assert abs(float(hand.evaluate('n => (n.value - n.min) / (n.max - n.min)')) - to) < 0.02, (
        'the slider is where the mouse left it'
    )
    assert page.evaluate('model.saves') > 0, 'the new state was sent to Python'
    hand.focus()
    page.keyboard.press('ArrowLeft')
    page.keyboard.press('ArrowLeft')
    keyed = agree(page, widget)
    assert keyed[shown] < moved[shown]
    assert hand.get_attribute('aria-valuetext')
    undo.click()
    settle(page)
    one = agree(page, widget)
    assert one[shown] != keyed[shown] and one[shown] != moved[shown], 'one key press is one move'
    undo.click()
    settle(page)
    assert agree(page, widget)[shown] == moved[shown]
    undo.click()
    settle(page)
    assert agree(page, widget) == first and undo.is_disabled() and told.inner_text() == words
    drag(page, hand, to)
    reset.click()
    settle(page)
    assert agree(page, widget) == first
    undo.click()
    settle(page)
    assert agree(page, widget)[shown] == pytest.approx(moved[shown]), 'a reset can be undone too'


def test_doors_marks_units_and_field(show):
    widget = Doors()
    page = show(widget)
    for loss, k in [('0', 1), ('0.69', 2), ('1.1', 3), ('2.3', 10), ('4.6', 100)]:
        mark = page.locator(f'[data-loss="{loss}"]')
        assert mark.locator('span').inner_text() == str(k)
        mark.click()
        settle(page)
        assert agree(page, widget)['nats'] == float(loss)
        assert page.locator('svg [class=lmw-door]').get_attribute('d').count('z') == int(math.exp(float(loss)) + 1e-9)
    page.get_by_label('bits per byte').check()
    settle(page)
    assert (
        page.evaluate('model.get("unit")') == 'bytes'
        and page.locator('[data-loss="4.6"] small').inner_text() == f'{P.bits_per_byte(4.6, 4.5):.2f}'
    )
    doors = agree(page, widget)['perplexity']
    page.locator('[data-name=bytes_per_token]').fill('2')
    settle(page)
    after = agree(page, widget)
    assert after['perplexity'] == doors and after['bits_per_byte'] == pytest.approx(P.bits_per_byte(4.6, 2))
    page.locator('[data-name=bytes_per_token]').fill('-3')
    settle(page)
    assert agree(page, widget) == after, 'what makes no sense is not taken over'
    page.locator('[data-name=bytes_per_token]').blur()
    assert page.locator('[data-name=bytes_per_token]').input_value() == '2'


def test_confidence_bars_temperature_and_ruling_out(show):
    widget = Confidence()
    page = show(widget)
    page.locator('[data-name=target-2]').check()
    settle(page)
    assert agree(page, widget)['surprise'] == pytest.approx(-math.log(0.3)) and widget.target == 'counts'
    page.locator('[data-name="predicted-0"]').focus()
    page.keyboard.press('End')
    settle(page)
    assert '-0' not in page.locator('.lmw').inner_text()
    assert (
        agree(page, widget)['perplexity'] == math.inf
        and 'probability zero' in page.locator('.lmw-told').inner_text()
        and page.locator('[data-name=perplexity]').inner_text() == '∞'
    )
    page.keyboard.press('Home')
    settle(page)
    assert widget_state(page, 'predicted') == [0, 0.25, 0.25, 0.25, 0.25], 'words that had nothing share the rest'
    page.locator('[data-name=reset]').click()
    settle(page)
    page.locator('[data-name=temperature]').focus()
    page.keyboard.press('ArrowRight')
    settle(page)
    assert widget_state(page, 'temperature') == 1.05
    agree(page, widget)
    page.locator('[data-name="predicted-4"]').focus()
    page.keyboard.press('ArrowRight')
    settle(page)
    agree(page, widget)
    shown = [float(x) for x in page.eval_on_selector_all('.lmw-bar input', 'ns => ns.map(n => n.dataset.value)')]
    before = Confidence(temperature=1.05).shown.tolist()
    assert sum(shown) == pytest.approx(1, abs=1e-12) and shown[0] / shown[1] == pytest.approx(before[0] / before[1]), (
        'the others keep their proportions'
    )


def widget_state(page, key):
    return page.evaluate('k => model.get(k)', key)


def test_averaging_buttons(show):
    widget = Averaging()
    page = show(widget)
    page.locator('[data-name=equal-tokens]').click()
    settle(page)
    found = agree(page, widget)
    assert (
        found['mean_loss'] == pytest.approx(found['perplexity'])
        and found['mean_perplexity'] > found['perplexity'] * 1.1
    )
    assert page.locator('[data-name=mean_loss-error]').inner_text() == 'right' and page.locator(
        '[data-name=mean_perplexity-error]'
    ).inner_text().startswith('×')
    page.locator('[data-name=equal-losses]').click()
    settle(page)
    found = agree(page, widget)
    assert found['mean_perplexity'] == pytest.approx(found['perplexity'])
    page.locator('[data-name=undo]').click()
    settle(page)
    page.locator('[data-name=undo]').click()
    settle(page)
    assert agree(page, widget)['perplexity'] == pytest.approx(Averaging().perplexity)


def test_tokenizers_hold_the_bits_per_byte(show):
    widget = MAKERS['tokenizers']()
    page = show(widget)
    held = agree(page, widget)['bits_per_byte']
    for name, cut in PIECES.items():
        page.locator(f'[data-name="tokenizer-{name}"]').check()
        settle(page)
        assert agree(page, widget)['bits_per_byte'] == held and page.locator('.lmw-piece').count() == len(cut)


@pytest.mark.parametrize('name', ALL)
def test_every_control_is_reached_by_keyboard_and_named(name, show):
    page = show(ALL[name]())
    seen = set()
    for _ in range(60):
        page.keyboard.press('Tab')
        at = page.evaluate(
            '''() => { const n = document.activeElement; if (n === document.body) return null; const s = getComputedStyle(n), t = getComputedStyle(n, '::-webkit-slider-thumb');
            return { id: [...document.querySelectorAll('input, button, select, textarea, [tabindex="0"]')].indexOf(n), name: n.getAttribute('aria-label') || n.labels?.[0]?.innerText || n.innerText, ring: s.outlineStyle !== 'none' || n.type === 'range' }; }'''
        )
        if at is None:
            break
        assert at['name'].strip() and at['ring'], at
        seen.add(at['id'])
    groups = page.evaluate(
        "() => new Set([...document.querySelectorAll('input[type=radio]:enabled')].map(n => n.name)).size"
    )
    others = page.evaluate(
        "() => [...document.querySelectorAll('input:enabled:not([type=radio]), button:enabled, select:enabled,"
        " textarea:enabled, [tabindex=\"0\"]')].length"
    )
    assert len(seen) == groups + others
    assert page.locator('[role=status][aria-live=polite]').inner_text() and page.locator(
        '.lmw-notice'
    ).inner_text().startswith('Notice:')


def test_without_a_kernel_a_training_run_cannot_be_steered(show):
    page = show(ALL['live']())
    assert page.locator('.lmw-why').first.is_visible()
    assert not page.locator('.lmw-body :is(input, select):enabled').count()


@pytest.mark.parametrize('name, order', [('surprise', RUNG), ('rungs', RUNG), ('tokenizers', list(PIECES))])
def test_what_has_an_order_keeps_it(name, order, show):
    page = show(ALL[name]())
    shown = page.locator('fieldset').first.locator('label') if name == 'surprise' else page.locator('tbody th')
    assert [t.strip() for t in shown.all_inner_texts()] == order


@pytest.mark.parametrize('name', ALL)
def test_a_second_one_on_the_page_disturbs_nothing(name, show):
    """Each brings a script of its own, as two outputs of a notebook do: what is chosen in the one stays chosen, and no
    name is given twice."""
    page = show(ALL[name]())
    chosen = "() => [...document.querySelectorAll('#here input[type=radio]')].map(n => n.checked)"
    before = page.evaluate(chosen)
    page.evaluate(
        """async () => { const text = await (await fetch('widget.js')).text(), again = await import(URL.createObjectURL(new Blob([text], { type: 'text/javascript' })));
        const el = document.createElement('div'); document.body.append(el); await again.default.render({ model, el }); }"""
    )
    settle(page)
    assert page.evaluate(chosen) == before and page.locator('.lmw').count() == 2
    ids = page.eval_on_selector_all('[id]', 'nodes => nodes.map(n => n.id)')
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize('name', ALL)
def test_pictures(name, show):
    """Each widget, light and dark, wide and narrow: nothing hangs over, and the words can be read. The pictures are for
    people."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    for scheme in ('light', 'dark'):
        for width in (1000, 360):
            page = show(ALL[name](), width=width, scheme=scheme)
            page.locator('.lmw').screenshot(path=PICTURES / f'{name}-{scheme}-{width}.png')
            assert page.evaluate('document.documentElement.scrollWidth') <= width, 'no scrolling sideways'
            over = page.evaluate(
                '''() => { const root = document.querySelector('.lmw').getBoundingClientRect();
                return [...document.querySelectorAll('.lmw *')].filter(n => n.getClientRects().length).filter(n => { const r = n.getBoundingClientRect(); return r.right > root.right + .5 || r.left < root.left - .5; }).map(n => n.className.baseVal ?? n.className); }'''
            )
            assert not over, over
            assert contrast(page) >= 4.5


def contrast(page):
    "The least contrast of any text with the page behind it, as WCAG counts it."
    return page.evaluate(
        '''() => { const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
        const rgb = c => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3); };
        const light = c => { const [r, g, b] = rgb(c).map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
        const dark = matchMedia('(prefers-color-scheme: dark)').matches, behind = light(dark ? '#121212' : '#ffffff');
        const large = s => parseFloat(s.fontSize) >= 24 || parseFloat(s.fontSize) >= 18.6 && s.fontWeight >= 600;          // 3 to 1 will do for these
        const texts = [...document.querySelectorAll('.lmw *')].filter(n => [...n.childNodes].some(t => t.nodeType === 3 && t.textContent.trim()) && !n.disabled);
        return Math.min(...texts.map(n => { const s = getComputedStyle(n), a = light(n instanceof SVGElement ? s.fill : s.color); return (Math.max(a, behind) + .05) / (Math.min(a, behind) + .05) * (large(s) ? 1.5 : 1); })); }'''
    )


def test_the_page_decides_over_the_labs_colours(show):
    "On the site the widget library brings JupyterLab's light colours along; a dark page of the site stays readable."
    page = show(Doors(), theme='dark', furo=True)
    assert page.locator('.lmw-title').evaluate('n => getComputedStyle(n).color') == 'rgb(207, 208, 208)'
    page.screenshot(path=PICTURES / 'doors-site-dark.png') if PICTURES.exists() else None


def test_cleaning_up_leaves_nothing_listening(show):
    page = show(Doors())
    page.evaluate('cleanup()')
    assert page.evaluate('Object.values(model.heard).flat().length') == 0


# trained models: without a kernel, and with a stand-in for one


def at_kernel(page):
    page.wait_for_function("!document.querySelector('[data-name=score], [data-name=start]').disabled")


def expected(page, side='lmw-one'):
    return page.locator(f'.lmw-panel.{side} li').all_inner_texts()


def test_surprise_under_mouse_and_keys(show):
    widget = Surprise()
    page = show(widget)
    undo, told = page.locator('[data-name=undo]'), page.locator('.lmw-told')
    first, words = agree(page, widget), told.inner_text()
    assert first['token'] == 1 and '“The”' in words and page.locator('.lmw-strip').count() == 2
    tokens = page.locator('.lmw-one .lmw-token')
    tokens.nth(3).click()
    settle(page)
    assert (
        agree(page, widget)['token'] == 4
        and '“released”' in told.inner_text()
        and tokens.nth(3).get_attribute('aria-selected') == 'true'
        and 'nats' in tokens.nth(3).get_attribute('aria-label')
    )
    strip = page.locator('.lmw-one .lmw-strip')
    strip.focus()
    page.keyboard.press('ArrowRight')
    page.keyboard.press('ArrowRight')
    settle(page)
    assert agree(page, widget)['token'] == 6 and strip.get_attribute('aria-activedescendant') == tokens.nth(
        5
    ).get_attribute('id')
    page.keyboard.press('End')
    settle(page)
    assert agree(page, widget)['so_far'] == pytest.approx(first['perplexity'])
    page.keyboard.press('Home')
    page.keyboard.press('ArrowLeft')
    settle(page)
    assert agree(page, widget)['token'] == 1
    hand = page.locator('input[data-name=token_index]')
    drag(page, hand, 0.5)
    settle(page)
    assert agree(page, widget)['token'] in (7, 8) and 'token' in hand.get_attribute('aria-valuetext')
    hand.focus()
    page.keyboard.press('ArrowRight')
    settle(page)
    place = agree(page, widget)['token']
    page.locator('.lmw-two .lmw-token').nth(2).click()
    settle(page)
    assert agree(page, widget)['token'] == 3
    undo.click()
    settle(page)
    assert agree(page, widget)['token'] == place
    for name in RUNG:
        page.locator('fieldset').nth(0).get_by_label(name, exact=True).check()
        settle(page)
        r, i = load_pretrained(name).score(widget.text), int(agree(page, widget)['token']) - 1
        lines = expected(page)
        if name == 'uniform':
            assert 'all alike' in lines[0]
        else:
            assert [l.split('\n')[0].strip() for l in lines[:-1]] == [p.strip() for p, _ in r.top[i]]
        assert ('observed, rank ' in lines[-1] or name == 'uniform') and name in told.inner_text()
    page.locator('fieldset').nth(1).get_by_label('nobody').check()
    settle(page)
    assert (
        not any(k.endswith('_compared') for k in agree(page, widget))
        and page.locator('.lmw-panel:visible').count() == 1
    )
    for _ in range(20):
        if undo.is_disabled():
            break
        undo.click()
        settle(page)
    assert agree(page, widget) == first and told.inner_text() == words
    page.locator('[data-name=texts]').select_option(index=3)
    settle(page)
    assert (
        agree(page, widget)['perplexity'] != first['perplexity']
        and widget.text == SENTENCES[3]
        and 'Colorless' in page.locator('.lmw-one .lmw-strip').inner_text().replace('\n', '').replace(' ', '')
    )
    page.locator('[data-name=reset]').click()
    settle(page)
    assert agree(page, widget) == first


def test_without_a_kernel_typing_is_refused_in_a_sentence(show):
    for make in (Surprise, Rungs):
        page = show(make())
        assert (
            page.locator('[data-name=typed]').is_disabled()
            and page.locator('[data-name=score]').is_disabled()
            and 'JupyterLab' in page.locator('.lmw-why').first.inner_text()
        )
    page = show(live())
    assert (
        page.locator('[data-name=start]').is_disabled()
        and page.locator('[data-name=restart]').is_disabled()
        and 'needs a kernel' in page.locator('.lmw-why').inner_text()
    )


def test_a_typed_text_is_read_by_the_kernel(show):
    widget = Surprise()
    page = show(widget, kernel=True)
    at_kernel(page)
    field, why, told = page.locator('[data-name=typed]'), page.locator('.lmw-why').first, page.locator('.lmw-told')
    assert not why.is_visible()
    first = agree(page, widget)
    for text in ('He wrote “naïve” <b>poems</b> .', 'x', 'two\nlines', '🙂' * 200):
        field.fill(text)
        field.press('Enter')
        page.wait_for_function("t => model.get('text') === t && model.get('scored')[t]", arg=text)
        settle(page)
        r = load_pretrained().score(text)
        n = same(numbers(page), widget.readouts())
        assert (
            n['perplexity'] == pytest.approx(r.perplexity, rel=1e-9)
            and page.locator('.lmw-one .lmw-token').count() == r.num_tokens
            and n['token'] == 1
        )
        assert f'These {r.num_tokens} tokens'.lower() in told.inner_text().lower() and not why.is_visible()
    field.fill('   ')
    field.press('Enter')
    assert 'a word at least' in why.inner_text() and widget.text == '🙂' * 200
    field.fill('word ' * 200)
    page.locator('[data-name=score]').click()
    assert 'At most 600 characters' in why.inner_text() and '1,000' in why.inner_text() and widget.text == '🙂' * 200
    page.locator('.lmw-one .lmw-token').nth(2).click()
    settle(page)
    assert field.input_value() == 'word ' * 200, 'what is being typed stays'
    field.fill('a')
    page.keyboard.press('Shift+Enter')
    page.keyboard.type('b')
    page.locator('[data-name=score]').click()
    page.wait_for_function("model.get('scored')['a\\nb']")
    settle(page)
    assert '⏎' in page.locator('.lmw-one .lmw-strip').inner_text() and not why.is_visible()
    for _ in range(20):
        if page.locator('[data-name=undo]').is_disabled():
            break
        page.locator('[data-name=undo]').click()
        page.wait_for_function("model.get('scored')[model.get('text')]")
        settle(page)
    assert same(numbers(page), widget.readouts()) == first and field.input_value() == SENTENCES[0]


def test_other_tokenizers_are_not_compared_in_perplexity(show):
    from lmcourse.data.tokens import WordTokenizer
    from lmcourse.models.tied_rnn import TiedRNNConfig

    words = WordTokenizer(['<unk>', '<eos>', 'The', 'film', 'was', 'good', '.'])
    other = NeuralPredictor(
        'words', words, TiedRNNConfig(embedding_dim=8, num_layers=1, num_sampled=0).build(words.vocab_size)
    )
    widget = Surprise(
        [load_pretrained('lstm'), other],
        ['The film was good .', 'The film was dreadful .'],
        model='lstm',
        compare_to='words',
    )
    page = show(widget)
    found = agree(page, widget)
    assert (
        'perplexity_compared' not in found
        and 'bits_per_byte_compared' in found
        and 'cannot be compared' in page.locator('.lmw-body > .lmw-why').last.inner_text()
        and 'bits per byte; words' in page.locator('.lmw-told').inner_text()
    )
    page.locator('.lmw-two .lmw-token').nth(3).click()
    settle(page)
    assert agree(page, widget) and page.locator('.lmw-two .lmw-token[aria-selected=true]').inner_text() == 'good'
    page.locator('[data-name=texts]').select_option(index=1)
    settle(page)
    assert (
        'bits_per_byte_compared' not in agree(page, widget)
        and 'unknown' in page.locator('.lmw-reader.lmw-two').inner_text()
    )
    page.locator('fieldset').nth(0).get_by_label('words').check()
    settle(page)
    agree(page, widget)


def test_rungs_under_mouse_and_keys(show):
    widget = Rungs()
    page = show(widget)
    undo, told, page_written = page.locator('[data-name=undo]'), page.locator('.lmw-told'), page.locator('.lmw-written')
    first, sample = agree(page, widget), page_written.inner_text()
    assert page.locator('[data-name=temperature]').is_disabled() and widget.text in sample
    page.locator('[data-name=rung-unigram]').check()
    settle(page)
    one = agree(page, widget)
    assert one['here'] > first['here'] and page_written.inner_text() != sample and 'unigram' in told.inner_text()
    page.locator('[data-name=rung-unigram]').focus()
    page.keyboard.press('ArrowDown')
    settle(page)
    assert agree(page, widget) and widget.rung == 'bigram'
    seen = {page_written.inner_text()}
    for _ in range(3):
        page.locator('[data-name=again]').click()
        settle(page)
        agree(page, widget)
        seen.add(page_written.inner_text())
    assert len(seen) == 3 and widget.seed == 0, 'three are prepared'
    page.locator('[data-name=texts]').select_option(index=1)
    settle(page)
    assert widget.texts[1] in page_written.inner_text() and agree(page, widget)
    for _ in range(20):
        if undo.is_disabled():
            break
        undo.click()
        settle(page)
    assert agree(page, widget) == first and page_written.inner_text() == sample


def test_rungs_write_anew_with_a_kernel(show):
    widget = Rungs()
    page = show(widget, kernel=True)
    at_kernel(page)
    heat = page.locator('[data-name=temperature]')
    drag(page, heat, 0.2)
    page.wait_for_function(
        "model.get('written')[`${model.get('rung')}|${model.get('text')}|0|${model.get('temperature').toFixed(1)}`] !=="
        " undefined"
    )
    settle(page)
    assert (
        widget.temperature < 1
        and same(numbers(page), widget.readouts())
        and widget.sample.strip() in page.locator('.lmw-written').inner_text()
    )
    for _ in range(4):
        page.locator('[data-name=again]').click()
        page.wait_for_timeout(100)
    assert widget.seed == 4 and widget.sample.strip() in page.locator('.lmw-written').inner_text()
    page.locator('[data-name=typed]').fill('In the beginning')
    page.locator('[data-name=typed]').press('Enter')
    page.wait_for_function("model.get('scored')['In the beginning']")
    page.wait_for_timeout(200)
    assert same(numbers(page), widget.readouts())['here'] == pytest.approx(
        load_pretrained(widget.rung).score('In the beginning').perplexity
    ) and page.locator('.lmw-written').inner_text().startswith('In the beginning')


def test_live_buttons_sliders_and_sentences(show):
    """What the page asks of Python, and what it shows when Python runs, stops and is in trouble; the running itself is
    tried in JupyterLab."""
    widget = live()
    page = show(widget, kernel=False)
    page.evaluate("model.set('pong', model.get('ping'))")
    settle(page)
    start, restart, told = (
        page.locator('[data-name=start]'),
        page.locator('[data-name=restart]'),
        page.locator('.lmw-told'),
    )
    first = agree(page, widget)
    assert (
        start.inner_text() == 'Go on'
        and 'stands still' in told.inner_text()
        and not page.locator('.lmw-why').is_visible()
    )
    start.click()
    assert widget_state(page, 'command').startswith('start ')
    page.evaluate("model.set('running', true)")
    settle(page)
    assert start.inner_text() == 'Stop'
    start.click()
    assert widget_state(page, 'command').startswith('stop ')
    page.evaluate("model.set('running', false)")
    settle(page)
    assert start.inner_text() == 'Go on' and 'stands still' in told.inner_text()
    restart.click()
    assert widget_state(page, 'command').startswith('restart ')
    drag(page, page.locator('input[data-name=lr]'), 0.9)
    settle(page)
    agree(page, widget)
    assert widget.lr > 1
    page.locator('input[data-name=lr]').focus()
    page.keyboard.press('ArrowLeft')
    settle(page)
    agree(page, widget)
    page.locator('[data-name=width]').focus()
    page.keyboard.press('ArrowRight')
    settle(page)
    agree(page, widget)
    assert widget.width == 20 and 'the next run: markov, width 20' in page.locator('.lmw-conditions').inner_text()
    page.get_by_label('Python’s manual').check()
    settle(page)
    agree(page, widget)
    assert widget.corpus == 'stdlib'
    for _ in range(10):
        if page.locator('[data-name=undo]').is_disabled():
            break
        page.locator('[data-name=undo]').click()
        settle(page)
    assert agree(page, widget) == first and widget.width == 16
    page.evaluate(
        "model.set('earlier', [{ corpus: 'markov', width: 8, points: [[0, 3.2], [28000, 3.0]] }]); model.set('error',"
        " 'The loss stopped being a number.')"
    )
    settle(page)
    assert (
        start.is_disabled()
        and restart.is_enabled()
        and page.locator('.lmw-error').inner_text().startswith('The loss')
        and page.locator('.lmw-earlier').count() == 1
        and '1 earlier run' in page.locator('svg').get_attribute('aria-label')
    )


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_a_token_can_be_read_on_any_shade(scheme, show):
    "The least contrast of a token's letters with its own ground, as WCAG counts it."
    page = show(Surprise(), scheme=scheme)
    least = page.evaluate(
        '''() => { const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
        const over = (...cs) => { canvas.clearRect(0, 0, 1, 1); for (const c of cs) { canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); } return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3); };
        const light = rgb => { const [r, g, b] = rgb.map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
        const ground = matchMedia('(prefers-color-scheme: dark)').matches ? '#121212' : '#ffffff', shades = [...document.querySelectorAll('.lmw-shades .lmw-token')];
        const found = shades.map(n => { const s = getComputedStyle(n), a = light(over(ground, s.backgroundColor, s.color)), b = light(over(ground, s.backgroundColor)); return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), b]; });
        const dark = ground === '#121212', steps = found.slice(1).map((f, i) => dark ? f[1] - found[i][1] : found[i][1] - f[1]);
        return { contrast: Math.min(...found.map(f => f[0])), steps: Math.min(...steps), n: shades.length }; }'''
    )
    assert least['contrast'] >= 4.5 and least['steps'] > 0 and least['n'] == 8, least


# traits and errors


@pytest.mark.parametrize(
    'make, says',
    [
        (lambda: Doors(loss=-1), 'from 0 to 5, got -1'),
        (lambda: Doors(loss=5.5), 'from 0 to 5, got 5.5'),
        (lambda: Doors(loss=math.nan), 'got nan'),
        (lambda: Doors(unit='miles'), "'nats', 'bits' or 'bytes'"),
        (lambda: Doors(bytes_per_token=0), 'from 0.1 to 100'),
        (lambda: Doors(highest=100), 'from 1 to 12'),
        (lambda: Confidence(predicted=[0.5, 0.5]), 'one probability for each of the 5 words, got 2'),
        (lambda: Confidence(predicted=[1.2, -0.2, 0, 0, 0]), 'must be at least 0'),
        (lambda: Confidence(true_probs=[0.1] * 5), 'sum to one'),
        (lambda: Confidence(words=['a', 'b'], true_probs=[1.0]), 'one probability for each of the 2 words'),
        (lambda: Confidence(words=['a', 'a']), 'at least two words'),
        (lambda: Confidence(target='stone'), "'stone' is not one of the words"),
        (lambda: Confidence(temperature=0), 'from 0.1 to 3'),
        (lambda: Averaging(tokens=[1, 2]), '2 token counts and 3 losses'),
        (lambda: Averaging(tokens=[], losses=[]), '0 token counts'),
        (lambda: Averaging(tokens=[0, 1, 1]), 'got 0'),
        (lambda: Averaging(losses=[1, 2, 99]), 'from 0 to 12'),
        (lambda: Tokenizers('', {}), 'none of them empty'),
        (lambda: Tokenizers('a', {'words': []}), 'none of them empty'),
        (lambda: Tokenizers('abc', {'words': ['abc']}, nats=99), 'from 0 to 9'),
        (lambda: Tokenizers('abc', {'words': ['abc']}, tokenizer='bytes'), "no tokens of 'bytes', only of words"),
    ],
)
def test_bad_states_are_refused_in_a_sentence(make, says):
    with pytest.raises(WidgetError) as e:
        make()
    assert says in str(e.value) and isinstance(e.value, L.LMCourseError)


@pytest.mark.parametrize(
    'make', [lambda: Doors(loss='much'), lambda: Averaging(tokens=[1.5, 2, 3]), lambda: Confidence(predicted='evenly')]
)
def test_bad_types_are_refused(make):
    import traitlets

    with pytest.raises(traitlets.TraitError, match='expected'):
        make()


def test_a_refused_state_from_the_page_changes_nothing():
    doors = Doors()
    with pytest.raises(WidgetError):
        doors.set_state(dict(loss=-1.0))
    assert doors.loss == 2.5


def test_state_reset_and_perplexity():
    doors = Doors(loss=1.0)
    doors.perplexity = 100
    doors.unit = 'bits'
    assert doors.loss == pytest.approx(math.log(100)) and doors.state()['unit'] == 'bits'
    doors.reset()
    assert doors.state() == doors.initial_state == dict(loss=1.0, unit='nats', bytes_per_token=4.5)
    with pytest.raises(WidgetError, match='a perplexity on this scale'):
        doors.perplexity = 1000
    five = Averaging(tokens=[1, 2, 3, 4, 5], losses=[1.0] * 5)
    with five.hold_trait_notifications():
        five.tokens, five.losses = [8, 8], [1.0, 2.0]
    assert five.perplexity == pytest.approx(math.exp(1.5))
    five.reset()
    assert five.tokens == [1, 2, 3, 4, 5]


@pytest.mark.parametrize('name', ALL)
def test_the_words_instead_of_the_picture(name):
    assert re.fullmatch(r'\w+: perplexity [\d.]+ \(run the cell to move it\)', repr(ALL[name]()))
    assert len(repr(ALL[name]())) <= 110, 'anywidget cuts longer ones'


@pytest.mark.parametrize('name', ALL)
def test_one_piece_and_no_other_host(name):
    widget = ALL[name]()
    assert not re.search(r'^\s*import\b', widget._esm, re.M) and widget._esm.count('export default') == 1
    assert not re.search(r'(https?:)?//(?!www\.w3\.org)[a-z0-9.]+\.[a-z]{2,}|@import|url\(', widget._esm + widget._css)


def test_without_anywidget_one_clear_sentence():
    code = "import sys; sys.modules['anywidget'] = None\ntry: import lmcourse.interactive.widgets\nexcept ImportError as e: print(e)"
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert r.stdout.strip() == 'the widgets need the package anywidget: pip install anywidget', r.stderr


def test_the_package_is_imported_without_it():
    code = "import sys, lmcourse, lmcourse.cli; print('anywidget' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == 'False'
