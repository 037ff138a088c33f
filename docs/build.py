"""The site: `make docs`, or `python docs/build.py`. HTML goes to docs/_build/html and is read with no network.

Formulas and widgets come from npm, once. Where npm is not to be had the site is built without them: formulas stay as
TeX, and the widgets' page says so."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from stage import NBS, StageError, stage
from vendor import VendorError, vendor

WORK = Path(__file__).parent / '_build'


class SiteError(Exception):
    "The site could not be built: the message is Sphinx's."


def build(
    html: Path = WORK / 'html',  # folder of the finished pages
    work: Path = WORK,  # folder for what can be used again: npm's files, lessons that were run
    nbs: Path = NBS,  # folder of the notebooks
    pages: Path | None = None,  # folder of the staged pages; None: in `work`
) -> bool:  # whether formulas and widgets are in it
    "Stages the pages and builds them; a warning is an error. Raises `SiteError` or `StageError`."
    pages, vendored = pages or work / 'pages', work / 'vendor'
    try:
        vendor(vendored)
    except VendorError as e:
        print(
            f'docs: {e}, so formulas stay as TeX and widgets are left out; install Node.js or go online, and build'
            ' again.',
            file=sys.stderr,
        )
        vendored = None
    stage(pages, nbs, vendored, work / 'executed')
    r = subprocess.run(
        [
            sys.executable,
            '-m',
            'sphinx',
            '-b',
            'html',
            '-q',
            '-W',
            '--keep-going',
            '-j',
            str(min(2, os.cpu_count() or 1)),
            '-d',
            pages.parent / f'{pages.name}-doctrees',
            pages,
            html,
        ],
        capture_output=True,
        text=True,
        env=dict(os.environ, OMP_NUM_THREADS='1'),
    )
    if r.returncode:
        raise SiteError((r.stdout + r.stderr).strip())
    return vendored is not None


def main(argv=None) -> int:
    p = argparse.ArgumentParser(description='Build the site.')
    p.add_argument('--out', type=Path, default=WORK / 'html', help='folder of the finished pages')
    p.add_argument('--pages', type=Path, default=WORK / 'pages', help='folder for what Sphinx reads')
    p.add_argument('--nbs', type=Path, default=NBS, help='folder of the notebooks')
    a = p.parse_args(argv)
    try:
        build(a.out, nbs=a.nbs, pages=a.pages)
    except (SiteError, StageError) as e:
        print(f'docs: {e}', file=sys.stderr)
        return 1
    print(f'docs: {a.out / "index.html"}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
