"""Runs notebooks from top to bottom and stores their outputs as git wants them: what JupyterLab cleans when it saves is
cleaned here too (.jupyter/jupyter_server_config.py). A notebook with an error is left as it was."""

import argparse
import os
import re
import runpy
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
SKIP = 'skip-execution'
clean = runpy.run_path(str(ROOT / '.jupyter' / 'jupyter_server_config.py'))['clean']


def joined(outputs: list) -> list:
    "Outputs in which what was printed in pieces, one after the other, is one text, as in JupyterLab."
    found = []
    for o in outputs:
        if found and o.output_type == found[-1].output_type == 'stream' and o.name == found[-1].name:
            found[-1].text += o.text
        else:
            found.append(o)
    return found


def execute(path: Path, timeout: int = 1200):  # timeout: seconds for a cell
    "Run a notebook in its folder and write it back, its outputs small and clean."
    nb = nbformat.read(path, 4)
    cells = [cell for cell in nb.cells if cell.cell_type == 'code']
    skipped = [cell for cell in cells if re.search(r'^#\|\s*eval: false', cell.source, re.M)]
    for cell in skipped:
        cell.metadata['tags'] = [*cell.metadata.get('tags', []), SKIP]
    folder = {'metadata': {'path': str(path.resolve().parent)}}
    client = NotebookClient(nb, timeout=timeout, kernel_name='python3', resources=folder, skip_cells_with_tag=SKIP)
    client.execute(stderr=subprocess.DEVNULL)  # the kernel's remarks about itself
    for cell in skipped:
        cell.metadata['tags'].remove(SKIP)
        if not cell.metadata['tags']:
            del cell.metadata['tags']
    for cell in cells:
        cell.outputs = joined(cell.outputs)
    path.write_text(nbformat.writes(clean(nb), version=4).rstrip('\n') + '\n', encoding='utf-8')


def main(args=None) -> int:  # exit code
    "The command: each notebook that is named."
    parser = argparse.ArgumentParser(description='Run notebooks in place, their outputs as git wants them.')
    parser.add_argument('notebooks', nargs='+', type=Path)
    parser.add_argument('--data', action='store_true', help='keep LMCOURSE_DATA, which lesson 7 wants')
    a = parser.parse_args(args)
    os.environ['PYTHONPATH'] = str(ROOT)
    for name in ('LMCOURSE_FULL',) if a.data else ('LMCOURSE_DATA', 'LMCOURSE_FULL'):
        os.environ.pop(name, None)
    for path in a.notebooks:
        if not path.is_file():
            print(f'there is no notebook {path}: name one as in nbs/05_tokens.ipynb', file=sys.stderr)
            return 2
        tic = time.perf_counter()
        try:
            execute(path)
        except Exception as e:
            print(f'{path} is left as it was: {type(e).__name__}: {str(e)[-3000:]}', file=sys.stderr)
            return 1
        print(f'{path}: {time.perf_counter() - tic:.0f} s, {path.stat().st_size // 1000} KB')
    return 0


if __name__ == '__main__':
    sys.exit(main())
