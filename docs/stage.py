"Makes the pages that Sphinx reads: lessons out of notebooks, and what is drawn from notebooks, modules and records."

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import tomllib
from configparser import ConfigParser
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[1]
NBS, DOCS = ROOT / 'nbs', ROOT / 'docs'
VIEW = 'application/vnd.jupyter.widget-view+json'


class StageError(Exception):
    "A page cannot be made: the message says which, why and what to do."


# ---- what the repository is


def repository() -> dict:  # url of the repository, its owner/name, branch, and the version
    "Where readers find the source, from settings.ini and pyproject.toml."
    parser = ConfigParser(delimiters=['='])
    parser.read(ROOT / 'settings.ini', encoding='utf-8')
    s = parser['DEFAULT']
    url = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['project']['urls']['Homepage'].rstrip(
        '/'
    )
    return dict(
        url=url,
        slug='/'.join(url.split('/')[-2:]),
        branch=s['branch'],
        version=s['version'],
        author=s['author'],
        name=s['lib_name'],
    )


REPO = repository()

# ---- modules and lessons


def module_path(name: str) -> Path:  # models.ngram -> lmcourse/models/ngram.py
    "The file of a module of the package."
    return ROOT / 'lmcourse' / f'{name.replace(".", "/")}.py'


def imported_modules(name: str) -> list[str]:  # modules of the package, in order
    "What a module of the package imports from the package, anywhere in its code."
    found, package = {}, ['lmcourse', *name.split('.')[:-1]]
    for n in ast.walk(ast.parse(module_path(name).read_text(encoding='utf-8'))):
        if not isinstance(n, ast.ImportFrom):
            continue
        base = package[: len(package) - n.level + 1] if n.level else []
        base = base + (n.module.split('.') if n.module else [])
        if base[0] != 'lmcourse':
            continue
        inside = '.'.join(base[1:])
        for a in n.names:
            full = f'{inside}.{a.name}'.lstrip('.')
            if module_path(full).exists():
                found[full] = None
            elif inside:
                found[inside] = None
    return list(found)


@dataclass(frozen=True)
class Lesson:
    "A notebook, and what its text says about it."

    path: Path

    @property
    def stem(self) -> str:
        return self.path.stem

    @property
    def home(self) -> str:  # the folder of the repository in which its links hold
        return os.path.dirname(f'nbs/{self.place}')

    @property
    def place(self) -> str:  # its path in the folder of the notebooks
        return f'{"engine/" if self.path.parent.name == "engine" else ""}{self.path.name}'

    @property
    def number(self) -> str:
        return m[1] if (m := re.match(r'(\d\d[a-z]?)_', self.stem)) else ''

    @cached_property
    def nb(self):
        return nbformat.read(self.path, 4)

    @cached_property
    def prose(self) -> str:
        return '\n\n'.join(c.source for c in self.nb.cells if c.cell_type == 'markdown')

    @cached_property
    def opening(self) -> tuple[str, str]:  # title and promise
        found = re.match(r'# (.+?)\n+> (.+?)(\n\n|$)', self.nb.cells[0].source, re.S)
        if not found:
            raise StageError(
                f'{self.path.name} does not open with a title and a promise: its first cell is "# Title", an empty'
                ' line, "> promise"'
            )
        return found[1], ' '.join(found[2].replace('\n> ', ' ').split())

    @property
    def title(self) -> str:
        return self.opening[0]

    @property
    def promise(self) -> str:
        return self.opening[1]

    @cached_property
    def module(self) -> str | None:
        found = re.search(
            r'^#\|\s*default_exp ([\w.]+)', '\n'.join(c.source for c in self.nb.cells if c.cell_type == 'code'), re.M
        )
        return found[1] if found else None

    @cached_property
    def words(self) -> int:
        return len(re.sub(r'```.*?```', '', self.prose, flags=re.S).split())

    @cached_property
    def exercises(self) -> list[str]:  # the questions, shortened to their last sentence of the first paragraph
        return [' '.join(q.split()) for q in re.findall(r'\*\*Your turn\.\*\*\s+(.+?)(?:\n\n|\Z)', self.prose, re.S)]

    @cached_property
    def shown(self) -> int:
        return sum(
            c.cell_type == 'code' and '#| hide' not in c.source and '#| default_exp' not in c.source
            for c in self.nb.cells
        )

    @property
    def minutes(
        self,
    ) -> int:  # 200 words a minute, 10 seconds a cell of code, 3 minutes an exercise; to the nearest five
        return max(5, 5 * round((self.words / 200 + self.shown / 6 + 3 * len(self.exercises)) / 5))

    @cached_property
    def takes(self) -> list[str]:  # modules of earlier lessons that its module imports
        return imported_modules(self.module) if self.module else []

    @cached_property
    def live(self) -> bool:  # whether it has widgets that move without a kernel
        code = '\n'.join(c.source for c in self.nb.cells if c.cell_type == 'code')
        return bool(
            re.search(
                r'^(?:try: )?(?:import anywidget|from anywidget|from lmcourse\.interactive\.widgets import)', code, re.M
            )
        )


def all_lessons(nbs: Path = NBS) -> list[Lesson]:
    "Every page of the course but the index: numbered lessons, then the engine rooms."
    return [Lesson(p) for p in sorted(nbs.glob('[0-9]*.ipynb')) + sorted(nbs.glob('engine/*.ipynb'))]


# ---- links


def site_path(
    target: str,  # a path in the repository
) -> str | None:  # the page of the site that shows it; None: it has none
    "Where on the site a file of the repository is shown."
    if target in ('nbs/index.ipynb', 'README.md'):
        return 'index.ipynb'
    if m := re.fullmatch(r'nbs/(?:engine/)?(\w+\.ipynb)', target):
        return f'lessons/{m[1]}'
    if m := re.fullmatch(r'lmcourse/([\w/]+)\.py', target):
        return f'api/{m[1].replace("/", ".")}.md'
    if m := re.fullmatch(r'docs/(\w+\.md)', target):
        return m[1]
    return None


def relink(
    text: str,  # Markdown
    was: str,  # the folder of the repository in which its links hold: nbs or docs
    page: str,  # the page of the site on which it will stand: lessons/01_cross_entropy.ipynb
) -> str:
    "The same with links that hold on the site; what the site does not show is linked in the repository."

    def new(m):
        target, hash, anchor = m[1].partition('#')
        if re.match(r'\w+:', target) or not target:
            return m[0]
        path = os.path.relpath(ROOT / was / target, ROOT).replace(os.sep, '/')
        to = site_path(path)
        if to:
            return f']({os.path.relpath(to, Path(page).parent).replace(os.sep, "/")}{hash}{anchor})'
        kind = 'tree' if (ROOT / path).is_dir() else 'blob'
        return f']({REPO["url"]}/{kind}/{REPO["branch"]}/{path}{hash}{anchor})'

    return re.sub(r'\]\(([^)\s]+)\)', new, text)


def colab(lesson: Lesson) -> str:
    return f'https://colab.research.google.com/github/{REPO["slug"]}/blob/{REPO["branch"]}/nbs/{lesson.place}'


def binder(lesson: Lesson) -> str:
    return (
        f'https://mybinder.org/v2/gh/{REPO["slug"]}/{REPO["branch"]}?labpath=nbs%2F{lesson.place.replace("/", "%2F")}'
    )


# ---- notebooks


def _alternative(source: str, heading: str = '') -> str:
    """What a figure shows, in words: those of the cell's `#| fig-alt:` or `# figure name:`, else the titles that the
    cell gives it, else the heading that it stands under."""
    if given := re.search(r'^(?:#\|\s*fig-alt|# figure \w+):\s*(.+)$', source, re.M):
        return f'Figure: {given[1]}'
    found = re.findall(r"title\s*[=(]\s*f?(?:'((?:[^'\\]|\\.)+)'|\"([^\"]+)\")", source) + re.findall(
        r"plot_ladder\([^']*'([^']+)'()", source
    )
    titles = [title for a, b in found if '{' not in (title := (a or b).replace("\\'", "'"))]
    return 'Figure: ' + '; '.join(dict.fromkeys(titles)) if titles else f'Figure: described in the section {heading}'


def _tidy(cell, exports: bool, page: str, home: str, heading: str = ''):
    "A code cell as readers of the site see it, or None."
    directives = re.findall(r'^#\|\s*(.+)$', cell.source, re.M)
    source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M).strip('\n')
    if any(d.startswith('eval: false') for d in directives):
        return nbformat.v4.new_markdown_cell(f'```python\n{source}\n```')
    hidden = any(d.split()[0] == 'hide' for d in directives)
    outputs = deepcopy(cell.get('outputs', []))
    if not source or hidden and not outputs:
        return None
    tags = (
        ['remove-input']
        if hidden
        else ['exported']
        if exports and any(d.startswith('export') for d in directives)
        else []
    )
    for o in outputs:
        data = o.get('data', {})
        if any(k.startswith('image/') for k in data) or VIEW in data or 'text/markdown' in data:
            data.pop('text/plain', None)
        if 'text/markdown' in data:
            data['text/markdown'] = relink(''.join(data['text/markdown']), home, page)
    outputs = [o for o in outputs if o.get('data', True)]
    figure = _alternative(cell.source, heading)
    new = nbformat.v4.new_code_cell(
        source, outputs=outputs, metadata={'tags': tags, 'mystnb': {'image': {'alt': figure}}}
    )
    return new


def digest(path: Path, package: Path = ROOT / 'lmcourse') -> str:
    """A name for a notebook together with all that the package is made of: code, scripts, styles, records, and the
    models that travel with it."""
    made = hashlib.sha256(path.read_bytes())
    for p in sorted(p for p in package.rglob('*') if p.is_file() and p.suffix != '.pyc'):
        made.update(p.read_bytes())
    return made.hexdigest()[:16]


def execute(lesson: Lesson, cache: Path) -> nbformat.NotebookNode:
    "The notebook run from top to bottom, with the state of its widgets; kept until the lesson or the package changes."
    from nbclient import NotebookClient

    kept = cache / f'{lesson.stem}-{digest(lesson.path)}.ipynb'
    if kept.exists():
        return nbformat.read(kept, 4)
    nb = nbformat.read(lesson.path, 4)
    for c in nb.cells:
        if c.cell_type == 'code' and re.search(r'^#\|\s*eval: false', c.source, re.M):
            c.metadata['tags'] = ['skip-execution']
    env = {k: os.environ.pop(k) for k in ('LMCOURSE_DATA', 'LMCOURSE_FULL') if k in os.environ}
    try:
        NotebookClient(
            nb,
            timeout=120,
            kernel_name='python3',
            resources={'metadata': {'path': str(lesson.path.parent)}},
            skip_cells_with_tag='skip-execution',
        ).execute(stderr=subprocess.DEVNULL)
    except Exception as e:
        raise StageError(
            f'{lesson.path.name} could not be run for its widgets: {type(e).__name__}: {str(e)[-800:]}'
        ) from e
    finally:
        os.environ.update(env)
    cache.mkdir(parents=True, exist_ok=True)
    for old in cache.glob(f'{lesson.stem}-*.ipynb'):
        old.unlink()
    nbformat.write(nb, kept)
    return nb


def _bar(lesson: Lesson) -> str:
    "The line under the promise: where to run the lesson, and where its module is listed."
    own = f'Its module: [lmcourse.{lesson.module}](../api/{lesson.module}.md). ' if lesson.module else ''
    tasks = f'{len(lesson.exercises)} exercise{"s" * (len(lesson.exercises) > 1)}. ' if lesson.exercises else ''
    return (
        f':::{{div}} lesson-bar\nRun this lesson: [here](../run.md), in [Colab]({colab(lesson)}) or'
        f' [Binder]({binder(lesson)}). {tasks}{own}\n:::'
    )


_STILL = (
    ':::{note}\nThe widgets of this page are missing: npm could not be reached when the site was built. They work in'
    ' JupyterLab, with `make lab`.\n:::'
)


def stage_notebook(nb, page: str, lesson: Lesson | None = None, note: str = '') -> nbformat.NotebookNode:
    "A notebook as a page: without directives and hidden cells, with links that hold."
    cells, home, heading = [], lesson.home if lesson else 'nbs', ''
    for c in nb.cells:
        if c.cell_type == 'markdown':
            heading = ([heading] + re.findall(r'^#+ (.+)$', c.source, re.M))[-1]
            cells.append(nbformat.v4.new_markdown_cell(relink(c.source, home, page)))
        elif new := _tidy(c, bool(lesson and lesson.module), page, home, heading):
            cells.append(new)
    if lesson:
        cells.insert(1, nbformat.v4.new_markdown_cell('\n\n'.join(filter(None, [_bar(lesson), note]))))
    meta = {
        'kernelspec': {'name': 'python3', 'display_name': 'Python 3', 'language': 'python'},
        'language_info': {'name': 'python', 'pygments_lexer': 'ipython3'},
    }
    if 'widgets' in nb.metadata:
        meta['widgets'] = nb.metadata['widgets']
    staged = nbformat.v4.new_notebook(cells=cells, metadata=meta)
    for i, c in enumerate(staged.cells):
        c['id'] = f'cell-{i}'
    return staged


# ---- modules


def names_of(module: str) -> dict[str, str]:  # {public name: first line of its docstring}
    "What a module exports, in order."
    tree = ast.parse(module_path(module).read_text(encoding='utf-8'))
    said = {
        n.name: (ast.get_docstring(n) or '').partition('\n')[0]
        for n in tree.body
        if isinstance(n, (ast.FunctionDef, ast.ClassDef))
    }
    shared = next(
        ast.literal_eval(n.value)
        for n in tree.body
        if isinstance(n, ast.Assign) and any(getattr(t, 'id', None) == '__all__' for t in n.targets)
    )
    return {k: v for k, v in said.items() if k in shared}


LEGEND = (
    'Names of arrays and tensors end in their shapes: `logits_BTV` has axes B, T and V. B is the batch (its rows, or'
    ' parallel streams), T time in tokens, V the vocabulary, D a width, N tokens in a row, H and I the hidden and input'
    ' widths of a cell. Surprisal is in nats unless a name says bits; sizes are in bytes, times in seconds.'
)


def api_page(lesson: Lesson) -> str:
    "One module's reference."
    where = (
        f'lesson {lesson.number.lstrip("0") or 0}, [{lesson.title}](../lessons/{lesson.stem}.ipynb)'
        if lesson.number
        else f'[{lesson.title}](../lessons/{lesson.stem}.ipynb)'
    )
    takes = ', '.join(f'[{t}]({t}.md)' for t in lesson.takes)
    return (
        f'# lmcourse.{lesson.module}\n\nDefined, explained and tested in {where}. '
        + (f'It builds on {takes}. ' if takes else 'It builds on no other module. ')
        + f'[Shapes and units](index.md).\n\n```{{eval-rst}}\n.. automodule:: lmcourse.{lesson.module}\n   :members:\n '
        '  :member-order: bysource\n```\n'
    )


def api_index(lessons: list[Lesson]) -> str:
    "All modules in the order of the lessons."
    rows = ['| module | what it defines | lesson |', '| --- | --- | --- |']
    for l in (l for l in lessons if l.module):
        names = ', '.join(f'[`{n}`](#lmcourse.{l.module}.{n})' for n in names_of(l.module) if not n.startswith('cmd_'))
        rows.append(f'| [{l.module}]({l.module}.md) | {names} | [{l.number or l.title}](../lessons/{l.stem}.ipynb) |')
    toc = '\n'.join(l.module for l in lessons if l.module)
    return (
        '# The package, module by module\n\nEach module is exported by one lesson and imports only modules of earlier'
        ' ones, so the order below is the order of the course. The descriptions of parameters are the comments that'
        f' stand beside them in the code.\n\n{LEGEND}\n\n'
        + '\n'.join(rows)
        + f'\n\n```{{toctree}}\n:hidden:\n\n{toc}\n```\n'
    )


# ---- tables and figures from records


def _stored(name):
    return json.loads((files('lmcourse') / 'records' / name).read_text(encoding='utf-8'))


def _image(path: str, says: str, width: int = 496) -> str:
    return f'```{{image}} {path}\n:alt: "Figure: {says}"\n:width: {width}px\n```'


def _numbers(table: str, kind: str = 'numbers') -> str:
    return f':::{{div}} {kind}\n{table}\n:::'


def _draw(figure, path: Path):
    "A figure as a file, twice as fine as it is shown."
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160, metadata={'Software': None})


def results(out: Path) -> dict[str, str]:  # {name of a place in results.md: what stands there}
    "What has been measured, as tables and figures."
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    from lmcourse.experiments.bench import load_stored, ratios_table
    from lmcourse.experiments.ladder import ladder_table, plot_ladder
    from lmcourse.training.runs import _bits, markdown_table, plot_curves, records, results_table

    plt.style.use('lmcourse.lmcourse')
    ladder = _stored('ladder.json')
    _draw(plot_ladder(ladder, 'What each rung is worth, on one stream of tokens').figure, out / 'images' / 'ladder.png')
    plt.close('all')
    v = ladder[0]['validation']
    place = dict(
        ladder=(
            f'{_image("images/ladder.png", "validation perplexity of each rung of the ladder")}\n\n'
            f'{_numbers(ladder_table(ladder))}\n\nText:'
            f' `{v["corpus"]}`, {v["num_tokens"]:,} validation tokens, {v["vocab_size"]:,} types, tokenizer'
            f' `{v["tokenizer"]}`, fingerprint `{v["fingerprint"]}`.'
        )
    )
    rows = [
        dict(
            order=b['validation']['context_length'] + 1,
            corpus=b['validation']['corpus'],
            tokenizer=b['validation']['tokenizer'],
            num_tokens=b['validation']['num_tokens'],
            validation=b['validation']['perplexity'],
            test=b['test']['perplexity'],
            num_unk=b['validation']['num_unk'],
            bits=_bits(b['validation']),
            seconds=round(b['seconds'], 1),
        )
        for b in _stored('baselines.json')
    ]
    place['counted'] = _numbers(
        markdown_table(
            rows,
            dict(
                corpus='corpus',
                tokenizer='tokenizer',
                order='order',
                validation='validation perplexity',
                test='test perplexity',
                bits='bits per byte',
                num_tokens='validation tokens',
                num_unk='of them unknown',
                seconds='seconds',
            ),
        )
    )
    runs = records()
    place['trained'] = _numbers(results_table(runs)) if runs else 'No run has been published yet.'
    drawn = [r for r in runs if sum('split' in row for row in r.metrics()) > 1]
    place['curves'] = ''
    if drawn:
        corpora = dict.fromkeys(r.summary['validation']['corpus'] for r in drawn)
        fig, axes = plt.subplots(len(corpora), 1, figsize=(6.2, 3 * len(corpora)), squeeze=False, layout='constrained')
        for ax, corpus in zip(axes.flat, corpora):
            plot_curves([r for r in drawn if r.summary['validation']['corpus'] == corpus], ax=ax)
            ax.xaxis.set_major_formatter(lambda x, _: f'{x / 1e6:g} M')
            ax.set_title(f'{corpus}: training (thin) and validation (thick)')
        _draw(fig, out / 'images' / 'curves.png')
        plt.close('all')
        place['curves'] = _image(
            'images/curves.png',
            'training and validation perplexity of the published runs by tokens seen, one panel for each corpus',
        )
    place['records'] = '\n\n'.join(_record(r) for r in runs)
    place['speed'] = _numbers(ratios_table(load_stored()['fused_loss']['shapes'], 'full fp32'))
    return place


def _record(run) -> str:
    "One record with its conditions, folded; whatever stands in its files is shown letter by letter."
    from lmcourse.training.runs import _bits, markdown_table, markdown_text

    def rows(values):
        return [
            dict(field=k, value=json.dumps(v, ensure_ascii=False) if isinstance(v, (dict, list)) else v)
            for k, v in values.items()
        ]

    summary = run.summary or {}
    measured = summary.get('validation') or {}
    if measured:
        measured = measured | {'bits_per_byte': _bits(measured)}
    parts = [('Measured on validation', measured), ('Where it ran', run.environment)]
    parts.append(('The run', {k: v for k, v in summary.items() if not isinstance(v, dict)}))
    parts += [(f'Settings, {markdown_text(k)}', v) for k, v in run.config.items() if isinstance(v, dict)]
    body = '\n\n'.join(f'**{title}**\n\n{markdown_table(rows(values))}' for title, values in parts if values)
    return f'::::{{dropdown}} {markdown_text(run.name)}\n{body}\n::::'


def board(out: Path) -> dict[str, str]:  # {name of a place in leaderboard.md: what stands there}
    "The leaderboard: a section for each text and tokenizer, the details folded."
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    from lmcourse.experiments.leaderboard import claims_table, leaderboard, plot_group

    plt.style.use('lmcourse.lmcourse')
    found = leaderboard()
    sections = {}
    for g in found.groups:
        c = g.conditions
        known = (c.tokenizer, c.vocab_size, c.eos) if g.unit == 'perplexity' else ()
        sections.setdefault((g.unit, c.corpus, c.adapts, *known), []).append(g)
    parts = [_section(groups) for groups in sections.values()]
    first = found.find('wikitext-2', 'test', 'word')
    drawn = [
        'The same rows drawn, ours filled and published ones hollow: perplexity against size, then against the'
        ' time that training took, with a colour for each device.'
    ]
    axes = dict(num_parameters='the number of parameters', seconds='the seconds of training')
    for x, words in axes.items():
        _draw(plot_group(first, x).figure, out / 'images' / f'board_{x}.png')
        plt.close('all')
        says = f'test perplexity on WikiText-2 by words against {words}'
        drawn.append(_image(f'images/board_{x}.png', says, 576))
    if any(r.energy_joules for r in first.rows):
        _draw(plot_group(first, 'energy_joules').figure, out / 'images' / 'board_energy.png')
        plt.close('all')
        drawn.append(_image('images/board_energy.png', 'test perplexity against the energy of training', 576))
    else:
        drawn.append('No record of this group tells the energy that its training took.')
    at = list(sections.values()).index(next(g for g in sections.values() if first in g))
    parts.insert(at + 1, '\n\n'.join(drawn))
    return {'board groups': '\n\n'.join(parts), 'board claims': _numbers(claims_table(found), 'board')}


def _section(groups: list) -> str:
    "The test split of a group as a table, its other splits and all details folded."
    from lmcourse.experiments.leaderboard import group_table

    link = 'bibliography.md#{}'.format
    shown = ['rank', 'model', *['tokenizer'] * (groups[0].unit != 'perplexity'), 'value', 'ci95', 'seeds', 'origin']
    more = ['model', 'millions', 'epochs', 'seconds', 'device', 'energy_joules', 'scored', 'source']
    first, *others = groups
    parts = [f'## {first.title}', _numbers(group_table(first, shown, link), 'board')]
    parts += [f':::::{{dropdown}} {g.title}\n{_numbers(group_table(g, shown, link), "board")}\n:::::' for g in others]
    if any(r.kind == 'measured' for r in first.rows):
        details = [f'**{g.title}**\n\n{_numbers(group_table(g, more), "board")}' for g in groups]
        parts.append(
            ':::::{dropdown} Size, budget, device, and how each was scored\n' + '\n\n'.join(details) + '\n:::::'
        )
    return '\n\n'.join(parts)


# ---- pages for teachers and for those who run the lessons


def _called(l: Lesson, page='') -> str:
    return f'[{l.number + " " if l.number else ""}{l.title}]({page}lessons/{l.stem}.ipynb)'


def teachers(lessons: list[Lesson], text: str) -> dict[str, str]:
    "What stands in the places of teachers.md: the lessons, their exercises, and the plans with their minutes."
    rows = [
        '| lesson | builds on | gives | words | cells to run | exercises | minutes |',
        '| --- | --- | --- | --: | --: | --: | --: |',
    ]
    for l in lessons:
        takes = ', '.join(f'`{t}`' for t in l.takes) or '–'
        names = (
            [n for n in names_of(l.module) if not n.startswith('cmd_') and not n.endswith('Error')] if l.module else []
        )
        gives = (
            f'[`{l.module}`](api/{l.module}.md): '
            + ', '.join(f'`{n}`' for n in names[:4])
            + (f' and {len(names) - 4} more' if len(names) > 4 else '')
            if l.module
            else '–'
        )
        rows.append(
            f'| {_called(l)} | {takes} | {gives} | {l.words:,} | {l.shown} | {len(l.exercises)} | {l.minutes} |'
        )
    total = (
        f'| all | | | {sum(l.words for l in lessons):,} | {sum(l.shown for l in lessons)} |'
        f' {sum(len(l.exercises) for l in lessons)} | {sum(l.minutes for l in lessons)} |'
    )
    tasks = '\n\n'.join(
        f'{_called(l)}\n\n'
        + '\n'.join(f'{i}. {relink(q, l.home, "teachers.md")}' for i, q in enumerate(l.exercises, 1))
        for l in lessons
        if l.exercises
    )
    place = dict(lessons=':::{div} lessons\n' + '\n'.join(rows + [total]) + '\n:::', exercises=tasks)
    for name, body in re.findall(r'<!-- plan (\w+)\n(.*?)-->', text, re.S):
        place[f'plan {name}'] = _plan(lessons, body)
    return place


def _plan(lessons: list[Lesson], body: str) -> str:
    """A plan's lines, `numbers | subject | what to do together`, as a table with minutes; lessons in no session are
    named under it."""
    by, used, rows = (
        {l.number or l.stem: l for l in lessons},
        set(),
        ['| session | lessons | minutes | together |', '| --: | --- | --: | --- |'],
    )
    for i, line in enumerate(filter(None, map(str.strip, body.splitlines())), 1):
        numbers, together = (s.strip() for s in line.split('|'))
        some = [by[n] for n in numbers.split() if n in by]
        used |= {l.stem for l in some}
        rows.append(f'| {i} | {"; ".join(map(_called, some))} | {sum(l.minutes for l in some)} | {together} |')
    left = [l for l in lessons if l.stem not in used and l.number]
    return '\n'.join(rows) + (f'\n\nNot in this plan: {", ".join(map(_called, left))}.' if left else '')


def run_table(lessons: list[Lesson]) -> str:
    "Where each lesson can be run."
    rows = ['| lesson | here | elsewhere |', '| --- | --- | --- |']
    rows += [
        f'| {_called(l)} | `jupyter lab nbs/{l.stem}.ipynb` | [Colab]({colab(l)}), [Binder]({binder(l)}) |'
        for l in lessons
    ]
    return '\n'.join(rows)


# ---- hand-written pages


def glossary(text: str) -> str:
    "A list of `- **term**: sentence` as Sphinx's glossary, whose terms can be found and linked."
    entries = re.findall(r'^- \*\*(.+?)\*\*: (.+)$', text, re.M)
    body = '\n\n'.join(
        f'{term}\n  {sentence}' for term, sentence in sorted(entries, key=lambda e: e[0].lower().strip('`<'))
    )
    return text[: text.index('- **')] + f'::::{{glossary}}\n{body}\n::::\n'


def bibliography(text: str, lessons: list[Lesson]) -> str:
    "The list with a target for each key, and with the lessons that cite it."
    cited = {}
    for l in lessons:
        for key in re.findall(r'bibliography\.md#(\w+)', '\n'.join(c.source for c in l.nb.cells)):
            cited.setdefault(key, {})[l.stem] = l

    def entry(m):
        where = ', '.join(f'[{l.number or l.title}](lessons/{l.stem}.ipynb)' for l in cited.get(m[1], {}).values())
        return f'({m[1]})=\n**{m[1]}** {m[2]}' + (f' *Cited in {where}.*' if where else '') + '\n'

    text = re.sub(r'arXiv:(\d{4}\.\d{4,5})', r'[arXiv:\1](https://arxiv.org/abs/\1)', text)
    text = re.sub(r'RFC (\d+)', r'[RFC \1](https://www.rfc-editor.org/rfc/rfc\1)', text)
    return re.sub(r'^- <a id="(\w+)"></a>\*\*\w+\*\* (.+)$', entry, text, flags=re.M)


def plain(text: str) -> str:
    "Markdown without its marks, for where only text is shown."
    return re.sub(r'\[([^\]]+)\]\([^)]*\)', r'\1', text).replace('**', '').replace('`', '').replace('\\', '')


ABOUT = {  # descriptions of the pages that are neither a lesson nor a module
    'run': 'How to run the lessons on your machine, in Colab or in Binder.',
    'teachers': 'For teachers: minutes, exercises, and plans for four and for eight sessions.',
    'troubleshooting': 'Symptoms and remedies: installation, network, GPU, speed, full disks, JupyterLab.',
    'results': 'Measured perplexities and bits per byte of n-gram models and neural language models, with conditions.',
    'leaderboard': 'Measured, published and claimed perplexities in groups whose rows compare.',
    'glossary': 'Terms of language modelling in one or two sentences each, with the lesson that introduces them.',
    'bibliography': 'The papers and books that the lessons cite.',
    'api/index': 'Reference of the Python package, module by module.',
}


def fill(text: str, place: dict[str, str]) -> str:
    "A page with its places, `<!-- name -->`, filled."
    for name, value in place.items():
        text = re.sub(rf'<!-- {name}(?: -->|\n.*?-->)', lambda m, value=value: value, text, flags=re.S)
    left = re.findall(r'<!-- (\w[\w ]*?)(?: -->|\n)', text)
    if left:
        raise StageError(f'nothing is made for the place{"s" * (len(left) > 1)} {", ".join(left)}')
    return text


def _toc(caption: str, entries: list[str]) -> str:
    return f'```{{toctree}}\n:hidden:\n:caption: {caption}\n\n' + '\n'.join(entries) + '\n```'


def front(lessons: list[Lesson], nbs: Path) -> nbformat.NotebookNode:
    "The index lesson as the front page, with ways in and the list of all pages."
    nb = stage_notebook(nbformat.read(nbs / 'index.ipynb', 4), 'index.ipynb')
    called = lambda l: f'{l.number} · {l.title} <lessons/{l.stem}>' if l.number else f'{l.title} <lessons/{l.stem}>'
    ways = fill((DOCS / 'front.md').read_text(encoding='utf-8'), dict(first=f'lessons/{lessons[0].stem}'))
    tocs = [
        _toc('Lessons', [called(l) for l in lessons if l.number]),
        _toc('Tools', [called(l) for l in lessons if not l.number]),
        _toc('Around the lessons', ['run', 'teachers', 'troubleshooting']),
        _toc('Reference', ['results', 'leaderboard', 'api/index', 'glossary', 'bibliography']),
    ]
    nb.cells.insert(1, nbformat.v4.new_markdown_cell(ways, id='ways'))
    nb.cells.append(nbformat.v4.new_markdown_cell('\n\n'.join(tocs), id='toc'))
    return nb


def stage(
    out: Path,  # folder of the pages; only what changed is written, so that Sphinx reads only that
    nbs: Path = NBS,  # folder of the notebooks
    vendored: Path | None = None,  # folder of what came from npm; None: it could not be had
    cache: Path | None = None,  # folder for lessons that were run for their widgets
) -> list[Lesson]:
    "All pages of the site, and what Sphinx needs to know of them."
    out.mkdir(parents=True, exist_ok=True)
    lessons, pages = all_lessons(nbs), {}
    for l in lessons:
        nb, note = l.nb, ''
        if l.live and vendored:
            nb = execute(l, cache or out.parent / 'executed')
        elif l.live:
            note = _STILL
        page = f'lessons/{l.stem}.ipynb'
        pages[page] = nbformat.writes(stage_notebook(nb, page, l, note))
        if l.module:
            pages[f'api/{l.module}.md'] = api_page(l)
    pages['index.ipynb'] = nbformat.writes(front(lessons, nbs))
    pages['api/index.md'] = api_index(lessons)
    text = {p.name: p.read_text(encoding='utf-8') for p in DOCS.glob('*.md') if p.name != 'front.md'}
    place = (
        results(out)
        | board(out)
        | teachers(lessons, text['teachers.md'])
        | {
            'run table': run_table(lessons),
            'repository': REPO['url'],
        }
    )
    text['glossary.md'], text['bibliography.md'] = (
        glossary(text['glossary.md']),
        bibliography(text['bibliography.md'], lessons),
    )
    for name, t in text.items():
        t = t if name == 'bibliography.md' else relink(t, 'docs', name)
        pages[name] = fill(t, {k: v for k, v in place.items() if f'<!-- {k}' in t})
    pages['site.json'] = json.dumps(
        REPO
        | dict(
            vendored=bool(vendored),
            site=os.environ.get('LMCOURSE_SITE_URL', ''),
            descriptions={f'lessons/{l.stem}': plain(l.promise) for l in lessons}
            | {f'api/{l.module}': f'Reference of lmcourse.{l.module}: {plain(l.title)}.' for l in lessons if l.module}
            | ABOUT
            | {'index': plain(Lesson(nbs / 'index.ipynb').promise)},
            names={n: f'lmcourse.{l.module}.{n}' for l in reversed(lessons) if l.module for n in names_of(l.module)},
        )
    )
    for name in ('conf.py', '404.html'):
        pages[name] = (DOCS / name).read_text(encoding='utf-8')
    for name, t in pages.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding='utf-8') != t:
            path.write_text(t, encoding='utf-8')
    for old in [*out.rglob('*.md'), *out.rglob('*.ipynb')]:
        if str(old.relative_to(out)).replace(os.sep, '/') not in pages:
            old.unlink()
    shutil.copytree(DOCS / '_static', out / '_static', dirs_exist_ok=True)
    if vendored:
        shutil.copytree(vendored, out / '_static' / 'vendor', dirs_exist_ok=True)
    else:
        shutil.rmtree(out / '_static' / 'vendor', ignore_errors=True)
        (out / '_static' / 'vendor').mkdir()
        (out / '_static' / 'vendor' / 'tex-svg.js').write_text(
            '// MathJax could not be had when this site was built: formulas stay as TeX.\n'
        )
    return lessons
