"The package as somebody else installs it, and the README as the index makes it."

import ast
import importlib.util
import re
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

from conftest import stage

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
    assert sorted(stage.module_path(name) for name, _ in found) == sorted(modules)
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
