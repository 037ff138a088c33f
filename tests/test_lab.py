"""Every lesson in JupyterLab in a real browser: it runs to its end, its widgets move under mouse and keys, and what is
saved is what git has."""

import ast
import base64
import io
import json
import math
import os
import re

import pytest
from conftest import PICTURES, ROOT
from PIL import Image

LESSONS = sorted(str(p.relative_to(ROOT / 'nbs').with_suffix('')) for p in (ROOT / 'nbs').rglob('*.ipynb'))
WIDGETS, VIEW = '03_perplexity_widgets', 'application/vnd.jupyter.widget-view+json'
LIMIT = 60  # seconds of processor time: half a minute of two cores, whatever else runs beside
pytestmark = pytest.mark.xdist_group('lab')  # one server for all of them, where the tests are dealt out by group


@pytest.fixture
def alone(page):
    "A page for which there is no other machine: whatever it asks of one is a failure."
    asked = []
    page.route(
        re.compile(r'^https?://(?!127\.0\.0\.1[:/])'), lambda route: (asked.append(route.request.url), route.abort())
    )
    yield page
    assert not asked, f'asked of other hosts: {asked}'


@pytest.mark.parametrize('name', LESSONS)
def test_runs_and_saves_clean(name, lab, alone):
    """From a fresh copy to the last cell at small size, with no error; and what is saved from the browser is what git
    has."""
    lab.open(alone, name)
    done = lab.run(alone)
    took = float(lab.python(alone, 'import os; print(sum(os.times()[:4]))'))
    assert not done['errors'], done['errors']
    assert done['ran'] == done['code'], 'a cell was left out'
    assert took < LIMIT, f'{took:.0f} s of processor time'
    lab.do(alone, 'docmanager:save')
    alone.wait_for_function('!window.jupyterapp.shell.currentWidget.context.model.dirty')
    lab.close(alone)
    same(lab.nbs / f'{name}.ipynb', ROOT / 'nbs' / f'{name}.ipynb')


def bare(nb):
    "A notebook's text without what its cells printed."
    return json.dumps(
        {**nb, 'cells': [{**c, 'outputs': []} if 'outputs' in c else c for c in nb['cells']]},
        indent=1,
        sort_keys=True,
        ensure_ascii=False,
    )


def shape(output):
    "An output without what another processor may round otherwise: digits, and the dots of a picture."
    data = {
        k: (
            v
            if not k.startswith('image')
            else 'a picture in 64 colours'
            if picture(v).mode == 'P'
            else 'a picture that was not made small'
        )
        for k, v in output.get('data', {}).items()
    }
    return re.sub(r'[-–+]?[\d.,]*\d(e[-+]?\d+)?', '#', json.dumps({**output, 'data': data}, sort_keys=True)).replace(
        ' ', ''
    )


def picture(png):
    return Image.open(io.BytesIO(base64.b64decode(''.join(png))))


def same(saved, stored):
    """What was saved is what git has: all but the outputs to the byte, and the outputs too, but for digits that another
    processor may round otherwise. Cells that look for a corpus or a vocabulary are left out: they say one thing
    where it is, and another where it is not."""
    a, b = (p.read_text(encoding='utf-8') for p in (saved, stored))
    if a == b:
        return
    a, b = json.loads(a), json.loads(b)
    assert bare(a) == bare(b)
    assert saved.read_text(encoding='utf-8') == json.dumps(a, indent=1, sort_keys=True, ensure_ascii=False) + '\n', (
        'the same contents, written differently'
    )
    for i, (x, y) in enumerate(zip(a['cells'], b['cells'], strict=True)):
        if re.search(r'(corpus|gpt2)_available\(', ''.join(x['source'])):
            continue
        assert [shape(o) for o in x.get('outputs', ())] == [shape(o) for o in y.get('outputs', ())], (
            f'cell {i} prints something else than git has: build the lesson again'
        )


@pytest.mark.parametrize('name', LESSONS)
def test_full_size_waits_to_be_asked(name, monkeypatch):
    "A cell that would start a full-size run is an `if` on LMCOURSE_FULL, and says no where that is not set."
    monkeypatch.delenv('LMCOURSE_FULL', raising=False)
    for cell in json.loads((ROOT / 'nbs' / f'{name}.ipynb').read_text(encoding='utf-8'))['cells']:
        code = ''.join(cell['source'])
        if cell['cell_type'] != 'code' or not re.search(r'LMCOURSE_FULL|^#\|\s*eval:\s*false', code, re.M):
            continue
        for node in ast.parse(code).body:
            assert isinstance(node, ast.If) and 'LMCOURSE_FULL' in ast.unparse(node.test), (
                f'not guarded: {ast.unparse(node)[:200]}'
            )
            assert not eval(compile(ast.Expression(node.test), name, 'eval'), {'os': os}), ast.unparse(node.test)


@pytest.mark.parametrize('name', LESSONS)
def test_no_widget_is_stored(name):
    """A stored view would be an error message until its cell is run, and another one after each run; the words for it
    are stored."""
    nb = json.loads((ROOT / 'nbs' / f'{name}.ipynb').read_text(encoding='utf-8'))
    assert 'widgets' not in nb['metadata']
    assert not any(VIEW in o.get('data', {}) for c in nb['cells'] for o in c.get('outputs', ()))


# lesson 03, with a kernel


@pytest.fixture
def lesson(lab, alone):
    "The widgets' lesson, run."
    lab.open(alone, WIDGETS)
    assert not lab.run(alone)['errors']
    yield alone
    lab.close(alone)


def on_page(widget):
    found = widget.locator('output[data-name]').evaluate_all(
        'nodes => nodes.map(n => [n.dataset.name, n.dataset.value])'
    )
    return {name: float(value.replace('Infinity', 'inf')) for name, value in found}


def agreed(lab, page, widget, name, unlike=None):
    "The numbers of the page, once Python's are the same (and are no longer `unlike`)."
    for _ in range(100):
        there = on_page(widget)
        here = json.loads(
            lab.python(page, f'import json; print(json.dumps({name}.readouts()))').replace('Infinity', '1e999')
        )
        if (
            there != unlike
            and there.keys() == here.keys()
            and all(math.isclose(there[k], here[k], rel_tol=1e-9, abs_tol=1e-9) for k in here)
        ):
            return there
        page.wait_for_timeout(100)
    pytest.fail(f'the page says {there}, Python says {here}')


MOVES = {
    'doors': ('loss', 'perplexity', 'loss = 1.0'),
    'confidence': ('predicted-0', 'perplexity', 'temperature = 2.0'),
    'averaging': ('loss-2', 'mean_perplexity', 'losses = [1.0, 2.0, 3.0]'),
    'tokenizers': ('nats', 'perplexity-words', "nats = 11.0"),
}


def test_widgets_move_under_mouse_keys_and_python(lab, lesson):
    """The kernel and the page at two ends of one string: each hears of what the other does, and makes the same numbers
    of it."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name, (slider, number, order) in MOVES.items():
        widget = lesson.locator(f'.lmw-{name}')
        hand, undo = widget.locator(f'input[data-name="{slider}"]'), widget.locator('[data-name=undo]')
        hand.scroll_into_view_if_needed()
        first = agreed(lab, lesson, widget, name)
        box = hand.bounding_box()
        y = box['y'] + box['height'] / 2
        x = box['x'] + box['width'] * float(hand.evaluate('n => (n.value - n.min) / (n.max - n.min)'))
        lesson.mouse.move(x, y)
        lesson.mouse.down()
        lesson.mouse.move(box['x'] + 0.5 * box['width'], y)
        lesson.mouse.move(box['x'] + 0.25 * box['width'], y)
        lesson.mouse.up()
        moved = agreed(lab, lesson, widget, name, unlike=first)
        hand.focus()
        lesson.keyboard.press('ArrowRight')
        keyed = agreed(lab, lesson, widget, name, unlike=moved)
        assert keyed[number] != moved[number] != first[number], name
        assert hand.evaluate('n => document.activeElement === n'), 'an arrow key moved the slider, and not the notebook'
        undo.click()
        assert agreed(lab, lesson, widget, name, unlike=keyed) == moved
        undo.click()
        assert agreed(lab, lesson, widget, name, unlike=moved) == first and undo.is_disabled()
        lab.python(lesson, f'{name}.{order}')
        assert agreed(lab, lesson, widget, name, unlike=first)[number] != first[number]
        widget.locator('[data-name=reset]').click()
        assert agreed(lab, lesson, widget, name) == first
        widget.screenshot(path=PICTURES / f'lab-{name}-light.png')


def test_dark_lab(lesson):
    "The widgets take the colours of JupyterLab's dark theme."
    lesson.evaluate(
        "async () => { await window.jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark'"
        " }); }"
    )
    lesson.wait_for_function("document.body.dataset.jpThemeLight === 'false'")
    for name in MOVES:
        widget = lesson.locator(f'.lmw-{name}')
        widget.scroll_into_view_if_needed()
        widget.screenshot(path=PICTURES / f'lab-{name}-dark.png')
        bright = [
            int(float(x))
            for x in re.findall(r'[\d.]+', widget.locator('.lmw-title').evaluate('n => getComputedStyle(n).color'))[:3]
        ]
        assert min(bright) > 180, bright
    lesson.evaluate(
        "async () => { await window.jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Light'"
        " }); }"
    )


def test_before_it_is_run_words_stand_for_a_widget(lab, alone):
    lab.open(alone, WIDGETS)
    alone.get_by_text('Doors: perplexity 12.18 (run the cell to move it)').wait_for()
    assert not alone.get_by_text('Error displaying widget').count() and not alone.locator('.lmw').count()
    lab.close(alone)


# the playground, with a kernel


def test_trained_models_under_the_hand(lab, alone):
    "Type a sentence and read what it costs; climb a rung; start a run, see its curve grow, stop it, and go on."
    lab.open(alone, '30_playground')
    assert not lab.run(alone)['errors']
    PICTURES.mkdir(parents=True, exist_ok=True)
    surprise, rungs, live = (alone.locator(f'.lmw-{name}').first for name in ('surprise', 'rungs', 'live'))
    assert [
        w.locator('input[type=radio]:checked').count()
        for w in (surprise, alone.locator('.lmw-surprise').nth(1), rungs, live)
    ] == [2, 2, 1, 1], 'each keeps its own choices'
    surprise.scroll_into_view_if_needed()
    first, field = agreed(lab, alone, surprise, 'surprise'), surprise.locator('[data-name=typed]')
    field.click()
    field.fill('')
    alone.keyboard.type('The cat sat on the mat .')
    alone.keyboard.press('Enter')
    typed = agreed(lab, alone, surprise, 'surprise', unlike=first)
    wanted = float(lab.python(alone, "print(load_pretrained().score('The cat sat on the mat .').perplexity)"))
    assert math.isclose(typed['perplexity'], wanted, rel_tol=1e-9)
    surprise.locator('.lmw-one .lmw-token').nth(2).click()
    assert agreed(lab, alone, surprise, 'surprise', unlike=typed)['token'] == 3
    surprise.screenshot(path=PICTURES / 'lab-surprise-light.png')
    rungs.scroll_into_view_if_needed()
    before = agreed(lab, alone, rungs, 'rungs')
    rungs.locator('[data-name=rung-unigram]').check()
    assert (
        agreed(lab, alone, rungs, 'rungs', unlike=before)['here'] > before['here']
        and lab.python(alone, 'print(rungs.rung)').strip() == 'unigram'
    )
    rungs.screenshot(path=PICTURES / 'lab-rungs-light.png')
    live.scroll_into_view_if_needed()
    start = live.locator('[data-name=start]')
    step = lambda: int(lab.python(alone, "print(live.curve['step'])"))
    drawn = lambda: live.locator('polyline.lmw-thin').get_attribute('points').split()
    began, points = step(), len(drawn())
    start.click()
    for _ in range(300):
        if step() > began:
            break
        alone.wait_for_timeout(100)
    start.click()
    for _ in range(300):
        if lab.python(alone, 'print(live.running)').strip() == 'False':
            break
        alone.wait_for_timeout(100)
    stopped = step()
    alone.wait_for_timeout(1000)
    assert stopped > began and step() == stopped, 'a stopped run stands still'
    agreed(lab, alone, live, 'live')
    start.click()
    for _ in range(300):
        if step() > stopped and len(drawn()) > points:
            break
        alone.wait_for_timeout(100)
    start.click()
    assert step() > stopped and len(drawn()) > points, 'it goes on from there, and its curve has grown'
    live.screenshot(path=PICTURES / 'lab-live-light.png')
    alone.evaluate(
        "async () => { await window.jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark'"
        " }); }"
    )
    alone.wait_for_function("document.body.dataset.jpThemeLight === 'false'")
    for name, widget in dict(surprise=surprise, rungs=rungs, live=live).items():
        widget.scroll_into_view_if_needed()
        widget.screenshot(path=PICTURES / f'lab-{name}-dark.png')
    alone.evaluate(
        "async () => { await window.jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Light'"
        " }); }"
    )
    lab.close(alone)
