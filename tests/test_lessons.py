"What holds for every lesson: it runs, its module is what it exports, and it keeps the manners of the house."

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from conftest import chromium, stage

ROOT = Path(__file__).parents[1]
LESSONS = sorted((ROOT / 'nbs').rglob('*.ipynb'))
PACKAGE = ROOT / 'lmcourse'
MODULES = sorted(p for p in PACKAGE.rglob('*.py') if not p.name.startswith('_'))
NUMBERED = [p for p in LESSONS if p.stem[:2].isdigit()]
BIN = Path(sys.executable).parent


def cells(path):
    return json.loads(path.read_text(encoding='utf-8'))['cells']


def source(cell):
    return ''.join(cell['source'])


def words(path):
    return '\n'.join(source(c) for c in cells(path) if c['cell_type'] == 'markdown')


def code(path):
    return [source(c) for c in cells(path) if c['cell_type'] == 'code']


def module_of(path):
    "The module that a lesson exports, if any."
    found = [m for s in code(path) for m in re.findall(r'^#\|\s*default_exp ([\w.]+)', s, re.M)]
    assert len(found) <= 1, f'{path.name} exports {found}: one notebook, one module'
    return found[0] if found else None


def nbdev(command, cwd, *args, **env):
    return subprocess.run(
        [BIN / command, *args],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=570,
        env=dict(os.environ, PATH=f'{BIN}{os.pathsep}{os.environ["PATH"]}', **env),
    )


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "The notebooks and the package in another place, where commands may change them."
    d = tmp_path_factory.mktemp('copy')
    for f in ('pyproject.toml', 'settings.ini', 'setup.py', 'README.md'):
        shutil.copy(ROOT / f, d)
    for f in ('nbs', 'lmcourse'):
        shutil.copytree(
            ROOT / f, d / f, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', 'records', 'runs')
        )
    return d


@pytest.mark.parametrize('path', LESSONS[:2] if chromium() else LESSONS, ids=lambda p: p.stem)
def test_runs(path, tmp_path):
    """Every cell runs from top to bottom, with no network and no data but the embedded. Where there is a browser,
    JupyterLab runs the lessons there, and this is for `nbdev-test` itself."""
    env = {k: v for k, v in os.environ.items() if k != 'LMCOURSE_DATA'}
    r = subprocess.run(
        [BIN / 'nbdev-test', path, '--n-workers', '0', '--do-print'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=570,
        env=env | dict(HF_HUB_OFFLINE='1', LMCOURSE_CACHE=str(tmp_path), PYTHONHASHSEED='0'),
    )
    assert r.returncode == 0 and 'Success' in r.stdout, (r.stdout + r.stderr)[-6000:]


def test_modules_are_what_the_lessons_export(copy):
    r = nbdev('nbdev-export', copy)
    assert r.returncode == 0, r.stderr
    for p in sorted((copy / 'lmcourse').rglob('*.py')):
        name = p.relative_to(copy / 'lmcourse')
        assert p.read_text(encoding='utf-8') == (PACKAGE / name).read_text(encoding='utf-8'), (
            f'{name} is not what the notebooks export: run nbdev-export'
        )
    assert {stage.module_path(m) for p in LESSONS if (m := module_of(p))} == set(MODULES)


def test_notebooks_are_clean(copy):
    r = nbdev('nbdev-clean', copy)
    assert r.returncode == 0, r.stderr
    for p in sorted((copy / 'nbs').rglob('*.ipynb')):
        assert p.read_bytes() == (ROOT / 'nbs' / p.relative_to(copy / 'nbs')).read_bytes(), (
            f'{p.name} is not clean: run nbdev-clean'
        )


@pytest.mark.parametrize('path', LESSONS, ids=lambda p: p.stem)
def test_manners(path):
    "A title and a promise, a link on, outputs that are small and say nothing of the machine that made them."
    text, first = words(path), source(cells(path)[0])
    assert re.match(r'# .+\n\n> ', first), 'a lesson opens with a title and a promise'
    if path in NUMBERED:
        assert re.search(r'^Next: \[', text, re.M), 'a lesson ends with a link to the next'
    for target in re.findall(r'\]\((?!http|#|mailto)([^)#\s]+)', text):
        assert (path.parent / target).exists(), f'{path.name} links to {target}, which is not there'
    keys = set(re.findall(r'<a id="(\w+)">', (ROOT / 'docs' / 'bibliography.md').read_text(encoding='utf-8')))
    cited = set(re.findall(r'bibliography\.md#(\w+)', text + '\n'.join(code(path))))
    assert cited <= keys, f'cited but not in the bibliography: {cited - keys}'
    assert path.stat().st_size < 230_000, 'a lesson stays near 200 KB'
    outputs = json.dumps([c.get('outputs') for c in cells(path)])
    for bad in (r'0x[0-9a-f]{8,}', r'/(?:home|root|tmp|Users)/', r'"output_type": "error"'):
        assert not re.search(bad, outputs), f'{path.name}: an output holds {re.search(bad, outputs).group()}'


def test_lesson_order_is_import_order():
    "A lesson's module imports only modules of earlier lessons, and of engine rooms."
    numbered = [m for p in NUMBERED if (m := module_of(p))]
    for place, name in enumerate(numbered):
        late = set(stage.imported_modules(name)) & set(numbered[place:])
        assert not late, f'lmcourse.{name} imports {late}, which comes later'


def test_imports_go_one_way():
    "No module is imported by what it imports, directly or by a way round."
    imports = {m: stage.imported_modules(m) for p in LESSONS if (m := module_of(p))}

    def reached(name, seen):
        for m in imports[name]:
            if m not in seen:
                seen.add(m)
                reached(m, seen)
        return seen

    for name in imports:
        assert name not in reached(name, set()), f'lmcourse.{name} imports itself by a way round'


def test_exported_functions_say_what_they_are():
    "Every public function and class has a docstring, every public function's parameters a type or a comment."
    bare = []
    for p in MODULES:
        for n in ast.parse(p.read_text(encoding='utf-8')).body:
            if (
                isinstance(n, (ast.FunctionDef, ast.ClassDef))
                and not n.name.startswith('_')
                and not ast.get_docstring(n)
            ):
                bare.append(f'{p.stem}.{n.name}')
    assert not bare, f'no docstring: {bare}'


def test_settings_ini_is_the_one_place():
    s = ConfigParser(delimiters=['='])
    s.read(ROOT / 'settings.ini', encoding='utf-8')
    s = s['DEFAULT']
    from importlib.metadata import distribution

    import lmcourse

    d = distribution('lmcourse')
    assert lmcourse.__version__ == s['version'] == d.version
    assert {r.split('>')[0].strip() for r in d.requires if 'extra' not in r} == {
        r.split('>')[0] for r in s['requirements'].split()
    }
    assert s['version'] in (ROOT / 'CITATION.cff').read_text(encoding='utf-8')


def test_one_statement_a_line():
    "What ruff and its formatter ask for, in notebooks, tests and scripts; modules are what notebooks export."
    for words in (['format', '--check'], ['check']):
        done = subprocess.run([BIN / 'ruff', *words, '.'], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr


def mypy_errors(path, text, *words):
    "What mypy says of the package and of a script that uses it."
    command = shutil.which('mypy', path=BIN) or shutil.which('mypy')
    if command is None:
        pytest.skip('mypy is not installed: `make setup` installs it')
    path.write_text(text, encoding='utf-8')
    done = subprocess.run(
        [command, '--python-executable', sys.executable, *words, path],
        cwd=ROOT,
        env=dict(os.environ, MYPYPATH=str(ROOT)),
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1) and not done.stderr, done.stdout[-3000:] + done.stderr
    return [line for line in done.stdout.splitlines() if ': error: ' in line]


USE = """from lmcourse.training.recipes import get_recipe
from lmcourse.training.trainer import Trainer

trainer = Trainer(get_recipe('ladder-gru'), show=False)
trainer.fit().summary['test']
print(trainer.validate().perplexity)
"""


def test_types_fit(tmp_path):
    "What mypy asks for in the package; it knows the methods that come by `@patch`, and so it finds a slip in their use."
    slips = USE + "trainer.validat()\nTrainer('ladder-gru')\n"
    found = mypy_errors(tmp_path / 'use.py', slips, 'lmcourse')
    assert len(found) == 2, '\n'.join(found)
    assert '"Trainer" has no attribute "validat"' in found[0]
    assert 'incompatible type "str"; expected "Recipe"' in found[1]


def test_types_fit_elsewhere(tmp_path):
    "A checker that does not know `@patch` accepts what the trainer can do."
    plain = '--config-file=', '--no-site-packages', '--ignore-missing-imports', '--follow-imports=silent'
    plain += '--cache-dir', tmp_path / 'cache'
    found = mypy_errors(tmp_path / 'use.py', USE, *plain)
    assert not found, '\n'.join(found)
    [found] = mypy_errors(tmp_path / 'use.py', USE + "Trainer.fitt\n", *plain)
    assert 'has no attribute "fitt"' in found


def test_baselines_are_asked_for_by_corpus_and_tokenizer():
    "No lesson reads the file of counts on its own, so none can set one tokenizer's counts beside another's network."
    for p in LESSONS:
        if p.stem[:2] not in ('07', '09'):  # these two make the file, and show all of it
            assert 'baselines.json' not in '\n'.join(code(p)), (
                f'{p.name} reads baselines.json: ask baselines(corpus, tokenizer)'
            )
