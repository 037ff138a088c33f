"The package as somebody else installs it, and the README as the index makes it."

import importlib.util, subprocess, sys, zipfile
from pathlib import Path

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
    assert 'lmcourse = lmcourse.cli:main' in zipfile.ZipFile(wheel).read(entry).decode().replace('=', ' = ').replace(
        '  ', ' '
    )


def test_the_readme_is_what_the_index_makes(tmp_path):
    spec = importlib.util.spec_from_file_location('make_readme', ROOT / 'docs' / 'make_readme.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.make(tmp_path) == (ROOT / 'README.md').read_text(encoding='utf-8'), 'run docs/make_readme.py'
    for image in tmp_path.iterdir():
        assert image.read_bytes() == (ROOT / 'docs' / 'images' / image.name).read_bytes()
