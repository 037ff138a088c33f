"""The site as its readers have it: built once, every page opened, nothing broken, nothing fetched from elsewhere,
widgets that move."""

import functools
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / 'build' / 'site'  # for people to look at; not in git
sys.path.insert(0, str(ROOT / 'docs'))
import stage
import vendor

LESSONS = stage.all_lessons()
LIVE = [l for l in LESSONS if l.live]


@pytest.fixture(scope='session')
def site(tmp_path_factory):
    "The folder of the built site; made by one of the test processes for all of them."
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base) / 'site'
    with FileLock(f'{folder}.lock'):
        if not (folder / 'built').exists():
            r = subprocess.run(
                [sys.executable, ROOT / 'docs' / 'build.py', '--out', folder / 'html', '--pages', folder / 'pages'],
                capture_output=True,
                text=True,
                timeout=500,
            )
            folder.mkdir(exist_ok=True)
            (folder / 'built').write_text(f'{r.returncode}\n{r.stdout}{r.stderr}')
    status, _, said = (folder / 'built').read_text().partition('\n')
    assert status == '0', said[-6000:]
    if 'stay as TeX' in said:  # no npm, or no network: what can be seen in a browser would not be the site
        if os.environ.get('LMCOURSE_REQUIRE_BROWSER') == '1':
            pytest.fail(said)
        pytest.skip(said.splitlines()[0])
    return folder / 'html'


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope='session')
def site_url(site):
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(_Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()


class Reader:
    """A page of the browser that writes down what goes wrong; whatever it asks of another host goes to a proxy that is
    not there."""

    def __init__(self, browser, url, **context):
        self.url, self.wrong = url, []
        self.context_length = browser.new_context(
            **{
                'viewport': dict(width=1440, height=1000),
                'proxy': dict(server='http://127.0.0.1:9', bypass='127.0.0.1'),
            }
            | context
        )
        self.page = self.context_length.new_page()
        self.page.on('request', self._asked)
        self.page.on('console', lambda m: m.type == 'error' and self.wrong.append(f'console: {m.text[:300]}'))
        self.page.on('pageerror', lambda e: self.wrong.append(f'error: {str(e)[:300]}'))
        self.page.on('response', lambda r: r.status >= 400 and self.wrong.append(f'{r.status}: {r.url}'))

    def _asked(self, request):
        if urlsplit(request.url).scheme not in ('data', 'blob') and not request.url.startswith(self.url):
            self.wrong.append(f'foreign request: {request.url}')

    def open(self, name):
        self.page.goto(self.url + name)
        self.page.evaluate('window.MathJax?.startup?.promise.then(() => null)')
        return self.page

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context_length.close()


@pytest.fixture
def reader(browser, site_url):
    with Reader(browser, site_url) as r:
        yield r
    assert not r.wrong, r.wrong


# ---- the files


class _Links(HTMLParser):
    "Links, what the page loads, and the places that can be linked to."

    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.ids = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if 'id' in a:
            self.ids.add(a['id'])
        if tag == 'a' and a.get('name'):
            self.ids.add(a['name'])
        if tag == 'a' and a.get('href'):
            self.links.append(a['href'])
        for k in ('src', 'data', 'poster'):
            if tag != 'a' and a.get(k):
                self.loads.append(a[k])
        if (
            tag == 'link'
            and a.get('href')
            and a.get('rel') not in ('next', 'prev', 'search', 'index', 'author', 'canonical')
        ):
            self.loads.append(a['href'])


@pytest.fixture(scope='session')
def pages(site):
    return {
        str(p.relative_to(site)): _Links(p.read_text(encoding='utf-8'))
        for p in sorted(site.rglob('*.html'))
        if '_static' not in p.parts
    }


def test_every_lesson_and_module_has_its_page(pages):
    assert LIVE, 'no lesson with widgets was found'
    assert {f'lessons/{l.stem}.html' for l in LESSONS} | {f'api/{l.module}.html' for l in LESSONS if l.module} <= set(
        pages
    )
    assert {
        'index.html',
        'run.html',
        'teachers.html',
        'troubleshooting.html',
        'results.html',
        'glossary.html',
        'bibliography.html',
        'search.html',
    } <= set(pages)


def test_no_link_is_broken(pages, site):
    broken = []
    for name, page in pages.items():
        for link in set(page.links + page.loads):
            target, anchor = urldefrag(link)
            if urlsplit(target).scheme:
                continue
            target = urlsplit(target).path
            to = unquote(urljoin(f'/{name}', target) if target else f'/{name}').lstrip('/') or 'index.html'
            if to.endswith('/'):
                to += 'index.html'
            if not (site / to).is_file():
                broken.append(f'{name}: {link}')
            elif anchor and to in pages and unquote(anchor) not in pages[to].ids and anchor != 'top':
                broken.append(f'{name}: {link} (no such place)')
    assert not broken, '\n'.join(broken)


def test_nothing_is_loaded_from_elsewhere(pages, site):
    foreign = [
        f'{name}: {u}'
        for name, page in pages.items()
        for u in page.loads
        if urlsplit(u).scheme not in ('', 'data') or u.startswith('//')
    ]
    foreign += [
        f'{p.name}: {m}'
        for p in site.rglob('*.css')
        for m in re.findall(r'(?:url\(|@import\s+)["\']?((?:https?:)?//[^)"\']+)', p.read_text(encoding='utf-8'))
    ]
    assert not foreign, '\n'.join(foreign)


@pytest.mark.parametrize('lesson', LESSONS, ids=lambda l: l.stem)
def test_a_lesson_is_shown_as_it_should_be(lesson, site):
    """No directive and no hidden source; a figure has words; the links for running it name this notebook in this
    repository."""
    text = (site / 'lessons' / f'{lesson.stem}.html').read_text(encoding='utf-8')
    for c in lesson.nb.cells:
        if c.cell_type == 'code':
            for d in re.findall(r'^#\|.*$', c.source, re.M):
                assert f'<span class="c1">{d}</span>' not in text
    hidden = [
        m
        for c in lesson.nb.cells
        if c.source.startswith('#| hide')
        for m in re.findall(r'^(check_\w+) = ', c.source, re.M)
    ]
    for name in hidden:
        assert not re.search(rf'<span class="n">{name}</span> *<span class="o">=</span>', text), (
            f'the answer of {name} can be read on the page'
        )
    assert len(re.findall(r'<img alt="Figure: [^"]+', text)) >= sum(
        'image/png' in o.get('data', {}) for c in lesson.nb.cells for o in c.get('outputs', [])
    )
    assert (
        f'{stage.REPO["slug"]}/blob/{stage.REPO["branch"]}/nbs/{lesson.place}' in text
        and f'labpath=nbs%2F{lesson.place.replace("/", "%2F")}' in text
    )


def test_parameters_have_their_shapes_and_units(site):
    text = re.sub(r'<[^>]+>', '', (site / 'api' / 'measure.cross_entropy.html').read_text(encoding='utf-8'))
    for said in (
        'logits – logits (..., V), the vocabulary last',
        'targets – ids (...) of the target tokens, int64',
        'summed nats, and the number of tokens',
    ):
        assert said in text
    for l in LESSONS:
        if not l.module:
            continue
        html = (site / 'api' / f'{l.module}.html').read_text(encoding='utf-8')
        missing = [n for n in stage.names_of(l.module) if f'id="lmcourse.{l.module}.{n}"' not in html]
        assert not missing and f'../lessons/{l.stem}.html' in html, f'{l.module}: {missing}'


def test_a_comment_at_the_end_of_a_line_goes_to_the_parameter_it_is_about(site):
    html = (site / 'api' / 'data.batches.html').read_text(encoding='utf-8')
    text = re.sub(r'<[^>]+>', '', html)
    assert 'epoch – the number of the epoch, from 0' in text and 'Returns:\nthe number of the epoch' not in text


def test_each_term_of_the_glossary_can_be_linked(site, pages):
    entries = re.findall(r'^- \*\*(.+?)\*\*: ', (ROOT / 'docs' / 'glossary.md').read_text(encoding='utf-8'), re.M)
    ids = {i.lower() for i in pages['glossary.html'].ids}
    for term in entries:
        assert f'term-{re.sub(r"[^A-Za-z0-9]+", "-", term.strip("`")).strip("-")}'.lower() in ids, term


def test_every_page_has_a_description(site, pages):
    for name in pages:
        text = (site / name).read_text(encoding='utf-8')
        assert re.search(r'<meta name="description" content="[^"]{20,}"', text), name
    lesson = (site / 'lessons' / '02_perplexity.html').read_text(encoding='utf-8')
    assert 'content="In twenty-five minutes you will turn a loss' in lesson


def test_an_address_without_a_page_has_links_that_hold(pages):
    assert {'index.html', 'search.html', 'glossary.html'} <= set(pages['404.html'].links)


@pytest.mark.parametrize('lesson', LESSONS, ids=lambda l: l.stem)
def test_a_figure_says_in_words_what_it_shows(lesson):
    page = stage.stage_notebook(lesson.nb, f'lessons/{lesson.stem}.ipynb', lesson)
    for c in page.cells:
        if any('image/png' in o.get('data', {}) for o in c.get('outputs', [])):
            words = c.metadata['mystnb']['image']['alt']
            assert len(words) > 25 and '{' not in words


def test_teachers_find_every_lesson_and_every_exercise(site):
    text = (site / 'teachers.html').read_text(encoding='utf-8')
    for l in LESSONS:
        assert text.count(f'lessons/{l.stem}.html') >= 1 + bool(l.exercises) + 2 * bool(l.number), (
            f'{l.stem} is missing in a table, a plan or among the exercises'
        )


def test_the_results_are_those_of_the_records(site):
    text = (site / 'results.html').read_text(encoding='utf-8')
    for p in (ROOT / 'lmcourse' / 'records').glob('*/summary.json'):
        assert p.parent.name in text
    for b in json.loads((ROOT / 'lmcourse' / 'records' / 'baselines.json').read_text(encoding='utf-8')):
        assert f'{b["validation"]["perplexity"]:,.2f}' in text or f'{b["validation"]["perplexity"]:,.0f}' in text


# ---- made by parts


def test_links_are_rewritten_for_the_page_they_stand_on():
    text = (
        '[a](04_text.ipynb#b) [c](../docs/bibliography.md#k) [d](https://x.org/) [e](../Makefile) [f](#g)'
        ' [h](../lmcourse/measure/cross_entropy.py)'
    )
    repo = f'{stage.REPO["url"]}/blob/{stage.REPO["branch"]}'
    assert (
        stage.relink(text, 'nbs', 'lessons/01_x.ipynb')
        == f'[a](04_text.ipynb#b) [c](../bibliography.md#k) [d](https://x.org/) [e]({repo}/Makefile) [f](#g)'
        ' [h](../api/measure.cross_entropy.md)'
    )
    assert stage.relink('[a](04_text.ipynb)', 'nbs', 'index.ipynb') == '[a](lessons/04_text.ipynb)'


NUMBERS = {
    'five minutes': 5,
    'ten minutes': 10,
    'fifteen minutes': 15,
    'twenty minutes': 20,
    'twenty-five minutes': 25,
    'half an hour': 30,
    'thirty-five minutes': 35,
    'forty minutes': 40,
}


@pytest.mark.parametrize('lesson', LESSONS, ids=lambda lesson: lesson.stem)
def test_a_lesson_promises_the_minutes_that_are_computed(lesson):
    if promised := re.match(r'In ([\w-]+ minutes|half an hour)', lesson.promise):
        assert NUMBERS[promised[1]] == lesson.minutes


@pytest.mark.parametrize(
    'value',
    [
        '<b>x</b>',
        '\\<script>alert(1)</script>',
        'a\r<script>',
        'a\r\n\n<script>',
        '`<b>`',
        '[x](javascript:y)',
        '$\\href{a}{b}$',
        '{role}`x`',
    ],
)
def test_a_record_from_elsewhere_lets_nothing_but_text_through(value):
    "Its name, its sections' names, its fields and its values, read by the parser that makes the site."
    from types import SimpleNamespace

    from markdown_it import MarkdownIt

    run = SimpleNamespace(
        name=value,
        config={value: {value: value}},
        environment={value: value},
        summary={value: value, 'validation': {value: value}},
    )
    first, *body = stage._record(run).split('\n')
    assert first.startswith('::::{dropdown} ')
    parser = MarkdownIt('commonmark', {'html': True}).enable('table')
    tokens = parser.parse(first.partition('} ')[2] + '\n\n' + '\n'.join(body[:-1]))
    inside = [child for t in tokens for child in t.children or []]
    assert not [t for t in tokens if t.type.startswith('html')] and inside
    assert {t.type for t in inside} <= {'text', 'text_special', 'strong_open', 'strong_close'}


def test_a_run_without_a_summary_has_its_place_among_the_records():
    from types import SimpleNamespace

    for summary in (None, {}, {'validation': None}):
        assert 'Settings, data' in stage._record(
            SimpleNamespace(name='r', config={'data': {'a': 1}}, environment={}, summary=summary)
        )


def test_a_place_that_nothing_is_made_for_is_told():
    assert stage.fill('x <!-- a --> y <!-- b\n1 | 2\n-->', {'a': '1', 'b': '2'}) == 'x 1 y 2'
    with pytest.raises(stage.StageError, match='the place c'):
        stage.fill('<!-- c -->', {})


def test_without_npm_one_sentence_says_so(tmp_path, monkeypatch):
    "And the pages can still be staged: the widgets' page says where its widgets are."
    monkeypatch.setenv('PATH', '')
    with pytest.raises(vendor.VendorError, match='npm is not installed'):
        vendor.vendor(tmp_path / 'vendor')
    for l in LIVE:
        nb = stage.stage_notebook(l.nb, f'lessons/{l.stem}.ipynb', l, stage._STILL)
        assert 'They work in JupyterLab' in nb.cells[1].source


def test_a_file_that_is_not_what_was_looked_at_is_refused(tmp_path):
    import io
    import tarfile

    with tarfile.open(tmp_path / 'x.tgz', 'w:gz') as tar:
        info = tarfile.TarInfo('package/require.js')
        info.size = 3
        tar.addfile(info, io.BytesIO(b'bad'))
    with pytest.raises(vendor.VendorError, match='SHA-256 differs'):
        vendor._unpack(tmp_path / 'x.tgz', vendor.FILES['requirejs@2.3.8'], tmp_path)
    assert not (tmp_path / 'require.js').exists()


# ---- in the browser


@pytest.mark.parametrize('kind', ('lessons', 'api', 'other'))
def test_every_page_opens_without_a_complaint(kind, pages, browser, site_url):
    "And none is wider than a telephone."
    with Reader(browser, site_url) as r:
        for name in pages:
            if (name.split('/')[0] if '/' in name else 'other') != kind:
                continue
            r.page.set_viewport_size(dict(width=1440, height=1000))
            seen = len(r.wrong)
            page = r.open(name)
            assert name == 'search.html' or len(page.locator('[role=main]').inner_text()) > 100, f'{name} is empty'
            if page.locator('.math').count():
                assert page.locator('mjx-container svg').count() and not page.locator('mjx-merror').count(), (
                    f'{name}: a formula was not set'
                )
            page.set_viewport_size(dict(width=390, height=800))
            wide = page.evaluate('document.documentElement.scrollWidth')
            if wide > 390:
                r.wrong.append(f'{wide} pixels wide on a screen of 390')
            r.wrong[seen:] = [f'{name}: {w}' for w in r.wrong[seen:]]
    assert not r.wrong, '\n'.join(r.wrong)


def _moves(page):
    "Pulls the first slider of the page by the keyboard; what the widget said before and after."
    slider = page.locator('.cell_output input[type=range], .cell_output [role=slider]').first
    slider.wait_for(timeout=20_000)
    said = lambda: slider.evaluate("s => s.closest('.cell_output').innerText")
    before = said()
    slider.focus()
    for _ in range(5):
        page.keyboard.press('ArrowRight')
    page.wait_for_timeout(200)
    return before, said()


@pytest.mark.parametrize('lesson', LIVE, ids=lambda l: l.stem)
def test_widgets_move(lesson, reader):
    page = reader.open(f'lessons/{lesson.stem}.html')
    before, after = _moves(page)
    numbers = [re.findall(r'\d+\.?\d*', s) for s in (before, after)]
    assert numbers[0] and numbers[0] != numbers[1], f'the widget says the same after it was moved: {after}'
    views = page.locator(f'script[type="{stage.VIEW}"]').count()
    shown = page.evaluate(
        "[...document.querySelectorAll('.cell_output .jupyter-widgets, .cell_output .widget-subarea')].filter(w =>"
        " w.getBoundingClientRect().height > 20).length"
    )
    assert shown >= views > 0, f'{views} widgets are on the page, {shown} can be seen'


CONTRAST = """() => {
  const light = c => c.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
    .map(x => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4).reduce((s, x, i) => s + x * [.2126, .7152, .0722][i], 0);
  const ground = light(getComputedStyle(document.querySelector('div.cell_input')).backgroundColor);
  return [...document.querySelectorAll('.cell_input .highlight span')].filter(e => e.textContent.trim()).map(e => {
    const ink = light(getComputedStyle(e).color);
    return (Math.max(ink, ground) + .05) / (Math.min(ink, ground) + .05); }); }"""


def test_code_can_be_read_by_day_and_by_night(reader):
    "4.5:1, as WCAG asks of text."
    page = reader.open('lessons/12_training.html')
    for theme in ('light', 'dark'):
        page.emulate_media(color_scheme=theme)
        assert min(page.evaluate(CONTRAST)) >= 4.5


@pytest.mark.parametrize('name', ['01_cross_entropy', '12_training', '20_transformer', '30_playground'])
def test_a_line_of_code_is_not_cut_on_a_wide_screen(name, reader):
    page = reader.open(f'lessons/{name}.html')
    page.set_viewport_size(dict(width=1400, height=1000))
    cut = "[...document.querySelectorAll('.cell_input pre')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    assert page.evaluate(cut) == 0
    assert page.evaluate('document.documentElement.scrollWidth') <= 1400


def test_what_goes_on_beside_its_box_is_marked(reader):
    page = reader.open('lessons/12_training.html')
    page.set_viewport_size(dict(width=420, height=800))
    page.wait_for_timeout(200)
    wide = "e => e.scrollWidth > e.clientWidth + 2"
    boxes = "[...document.querySelectorAll('[role=main] div.highlight pre')]"
    assert page.evaluate(f'{boxes}.filter({wide}).length') > 5
    assert page.evaluate(f"{boxes}.every(e => ({wide})(e) === e.classList.contains('scrolls'))")


def test_the_sidebar_shows_where_one_is(reader):
    page = reader.open('results.html')
    page.wait_for_function(
        """() => {
          const [box, here] = ['.sidebar-scroll', '.sidebar-tree .current-page'].map(
            s => document.querySelector(s).getBoundingClientRect());
          return box.top <= here.top && here.top <= box.bottom;
        }""",
        timeout=5000,
    )


def test_a_lesson_can_be_read_from_the_disk(browser, site):
    "No server, no network: formulas are set, and widgets move."
    with Reader(browser, site.as_uri() + '/') as r:
        assert r.open('lessons/01_cross_entropy.html').locator('mjx-container svg').count()
        before, after = _moves(r.open(f'lessons/{LIVE[0].stem}.html'))
        assert before != after
    assert not r.wrong, r.wrong


def test_search_finds(reader):
    page = reader.open('search.html?q=perplexity')
    page.wait_for_selector('#search-results ul.search li a', timeout=20_000)
    page.wait_for_function("document.querySelector('#search-results .search-summary')?.textContent.includes('found')")
    found = page.locator('#search-results ul.search li > a').evaluate_all('a => a.map(x => x.href)')
    assert (
        len(found) > 10
        and any('02_perplexity' in u for u in found[:5])
        and any('glossary' in u or 'api/measure.perplexity' in u for u in found)
    )


def test_it_can_be_dark(reader):
    page = reader.open('lessons/02_perplexity.html')
    ground = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")
    seen = {ground()}
    for _ in range(3):
        page.locator('.content-icon-container .theme-toggle').click()
        page.wait_for_timeout(100)
        seen.add(ground())
    assert len(seen) == 2, f'one ground colour only: {seen}'
    page.reload()
    assert page.evaluate('document.body.dataset.theme') in ('light', 'dark', 'auto')


def test_pictures(browser, site_url):
    "Wide and narrow, by day and by night, for people to look at."
    PICTURES.mkdir(parents=True, exist_ok=True)
    slider = '.cell_output input[type=range], .cell_output [role=slider]'
    with Reader(browser, site_url) as r:
        for name in ['index', 'lessons/02_perplexity', 'api/measure.perplexity', 'results', 'teachers'] + [
            f'lessons/{l.stem}' for l in LIVE
        ]:
            page = r.open(f'{name}.html')
            page.evaluate("document.documentElement.style.scrollBehavior = 'auto'")
            if live := any(l.stem in name for l in LIVE):
                page.locator(slider).first.wait_for(timeout=20_000)
            for width, theme in ((1440, 'light'), (1440, 'dark'), (390, 'dark'), (390, 'light')):
                page.set_viewport_size(dict(width=width, height=900))
                page.emulate_media(color_scheme=theme)
                if live:
                    page.locator(slider).first.evaluate("s => s.closest('.cell').scrollIntoView()")
                path = PICTURES / f'{name.replace("/", "-")}-{theme}-{width}.png'
                page.screenshot(path=path)
                assert path.stat().st_size > 5_000
    assert not r.wrong, r.wrong
