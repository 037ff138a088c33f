"The package as somebody else installs it, and the README as the index makes it."

import ast
import base64
import importlib.util
import io
import re
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import execute
import nbformat
import pytest
from conftest import stage
from nbdev.clean import nbdev_clean
from PIL import Image

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_all_that_the_code_reads(tmp_path):
    r = subprocess.run(
        [sys.executable, '-m', 'pip', 'wheel', ROOT, '--no-deps', '--no-build-isolation', '--quiet', '-w', tmp_path],
        capture_output=True,
        text=True,
    )
    assert r.returncode == 0, r.stderr
    [wheel] = tmp_path.glob('lmcourse-*.whl')
    names = set(zipfile.ZipFile(wheel).namelist())
    here = {
        str(p.relative_to(ROOT)) for p in (ROOT / 'lmcourse').rglob('*') if p.is_file() and '__pycache__' not in p.parts
    }
    assert here <= names, f'not in the wheel: {sorted(here - names)}'
    entry = next(n for n in names if n.endswith('entry_points.txt'))
    assert 'lmcourse = lmcourse.__main__:main' in zipfile.ZipFile(wheel).read(entry).decode().replace(
        '=', ' = '
    ).replace('  ', ' ')


def test_the_readme_is_what_the_index_makes(tmp_path):
    spec = importlib.util.spec_from_file_location('make_readme', ROOT / 'docs' / 'make_readme.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.make(tmp_path) == (ROOT / 'README.md').read_text(encoding='utf-8'), 'run docs/make_readme.py'
    for image in tmp_path.iterdir():
        assert image.read_bytes() == (ROOT / 'docs' / 'images' / image.name).read_bytes()


def test_the_architecture_names_every_module():
    "Each module stands in the table once, beside the notebook that it is made from."
    text = (ROOT / 'ARCHITECTURE.md').read_text(encoding='utf-8')
    found = re.findall(r'^\| `lmcourse\.([\w.]+)` \| \[[\w]+\]\((nbs/[\w/]+\.ipynb)\)', text, re.M)
    modules = [p for p in (ROOT / 'lmcourse').rglob('*.py') if not p.name.startswith('_')]
    assert sorted(stage.module_path(name) for name, _ in found) == sorted(modules), (
        'each module has one row in the table "The rooms" of ARCHITECTURE.md'
    )
    for name, notebook in found:
        assert f'default_exp {name}' in (ROOT / notebook).read_text(encoding='utf-8')


def test_every_import_is_declared_and_every_requirement_imported():
    "What the modules import stands in settings.ini, and nothing that neither they nor the lessons import."
    s = ConfigParser(delimiters=['='])
    s.read(ROOT / 'settings.ini', encoding='utf-8')
    declared = {re.split(r'[<>=\[]', r)[0] for r in s['DEFAULT']['requirements'].split()}
    imported = set()
    for p in (ROOT / 'lmcourse').rglob('*.py'):
        text = p.read_text(encoding='utf-8')
        for n in ast.walk(ast.parse(text)):
            if isinstance(n, ast.Import):
                imported |= {a.name.split('.')[0] for a in n.names}
            if isinstance(n, ast.ImportFrom) and not n.level:
                imported.add(n.module.split('.')[0])
    imported -= set(sys.stdlib_module_names) | {'lmcourse'}
    assert imported - declared == set(), 'imported, and not declared'
    lessons = ''.join(p.read_text(encoding='utf-8') for p in (ROOT / 'nbs').rglob('*.ipynb'))
    in_lessons = set(re.findall(r'"(?:import|from) (fastcore|ipywidgets|datasets)\b', lessons))
    assert declared - imported - in_lessons == set(), 'declared, and not imported'


def test_what_the_readme_draws_is_there():
    "Every folder and module in its tree."
    tree = (ROOT / 'README.md').read_text(encoding='utf-8').split('## Where things are')[1].split('```')[1]
    for line in tree.strip().splitlines():
        names = line.split('  ')[0 if line[0] != ' ' else 1].strip()
        folder = ROOT / 'lmcourse' if line.startswith(' ') else ROOT
        for name in names.split(', '):
            assert (folder / name).exists() or (folder / f'{name}.py').exists(), f'the README draws {name}'


ROW = re.compile(
    r'^\| (?:(?P<number>\d\d[a-z]?) \| )?\[(?P<title>.+?)\]\((?:nbs/)?(?P<place>[\w/]+\.ipynb)\)'
    r' \| (?:`(?P<module>[\w.]+)`)? \| (?P<promise>.*) \|$',
    re.M,
)


def text_of(page):
    "A page's text; of a notebook, what its outputs show."
    if page.suffix == '.md':
        return page.read_text(encoding='utf-8')
    cells = [c for c in nbformat.read(page, 4).cells if c.cell_type == 'code']
    return '\n'.join(o.data.get('text/markdown', '') for c in cells for o in c.outputs if 'data' in o)


@pytest.mark.parametrize(
    'page', sorted(p.relative_to(ROOT).as_posix() for p in [*ROOT.glob('*.md'), *ROOT.glob('docs/*.md')])
)
def test_links_within_the_repository_lead_somewhere(page):
    "A relative link of a Markdown page names a file that is there."
    text = (ROOT / page).read_text(encoding='utf-8')
    targets = {m for m in re.findall(r'\]\(([^)#\s]+)', text) if '://' not in m and not m.startswith('mailto:')}
    dead = sorted(t for t in targets if not (ROOT / page).parent.joinpath(t).exists())
    assert not dead, f'{page} links to {dead}'


@pytest.mark.parametrize('page', ['nbs/index.ipynb', 'README.md'])
def test_every_lesson_and_engine_room_has_its_row(page):
    "Number, title, module and promise stand in the index's tables as in the notebooks, in the directory's order."
    plain = lambda markdown: re.sub(r'\\(\W)', r'\1', markdown or '')
    rows = [tuple(map(plain, m.group(*ROW.groupindex))) for m in ROW.finditer(text_of(ROOT / page))]
    there = [(l.number, l.title, l.place, l.module or '', l.promise) for l in stage.all_lessons()]
    assert rows == there, (
        f'{page} is older than the notebooks: run `make execute NB=nbs/index.ipynb`, then'
        ' `.venv/bin/python docs/make_readme.py`'
    )


def test_a_notebook_is_run_as_git_wants_it(tmp_path, monkeypatch, capsys):
    "What was printed in pieces is one text, pictures have 64 colours, nothing tells of the run; an error changes nothing."
    v4 = nbformat.v4
    code = [
        "import os, sys\nfor word in ('one', 'two'):\n    print(word)\n    sys.stdout.flush()",
        "print(os.environ.get('LMCOURSE_DATA'))",
        "from IPython.display import Image\nimport base64\nImage(data=base64.b64decode(picture))",
        '#| eval: false\n1 / 0',
    ]
    many = Image.linear_gradient('L').convert('RGB')
    many.putdata([(i % 256, i // 256, 0) for i in range(256 * 256)])
    png = io.BytesIO()
    many.save(png, 'png')
    code[0] += f'\npicture = {base64.b64encode(png.getvalue()).decode()!r}'
    path = tmp_path / 'page.ipynb'
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell(c) for c in code]), path)

    for name in ('LMCOURSE_DATA', 'LMCOURSE_FULL', 'PYTHONPATH'):
        monkeypatch.setenv(name, '/somewhere')
    assert execute.main([str(path)]) == 0
    cells = nbformat.read(path, 4).cells
    assert [o.text for o in cells[0].outputs] == ['one\ntwo\n']
    assert cells[1].outputs[0].text == 'None\n'
    picture = Image.open(io.BytesIO(base64.b64decode(cells[2].outputs[0].data['image/png'])))
    assert len(picture.getcolors()) <= 64
    assert cells[3].outputs == []
    assert not any(c.execution_count or c.metadata for c in cells)
    made = path.read_bytes()
    nbdev_clean(path)
    assert path.read_bytes() == made
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell('1 / 0')]), path)
    before = path.read_bytes()
    assert execute.main([str(path)]) == 1
    assert 'is left as it was: CellExecutionError' in capsys.readouterr().err
    assert path.read_bytes() == before
