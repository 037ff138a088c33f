"""README.md from the index lesson: what its cells show, without the code of the cells marked `#| hide`. A figure goes
to docs/images, under the name and with the words for those who cannot see it that its cell gives it: `# figure name:
words`."""

import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[1]


def make(images: Path = ROOT / 'docs' / 'images') -> str:
    "The text of the README; its figures are written to `images`."
    nb = nbformat.read(ROOT / 'nbs' / 'index.ipynb', 4)
    nb.metadata['language_info'] = {'name': 'python'}
    for c in nb.cells:
        hidden = c.cell_type == 'code' and c.source.startswith('#| hide')
        if hidden:
            c.metadata['tags'] = ['hidden']
        for o in c.get('outputs', []):
            if 'image/png' in o.get('data', {}):
                o.data.pop('text/plain', None)
    exporter = MarkdownExporter(config={'TagRemovePreprocessor': {'enabled': True, 'remove_input_tags': ['hidden']}})
    text, resources = exporter.from_notebook_node(nb)
    images.mkdir(parents=True, exist_ok=True)
    for given, data in resources.get('outputs', {}).items():
        cell = nb.cells[int(given.split('_')[1])]
        name, words = re.search(r'^# figure (\w+): (.+)$', cell.source, re.M).groups()
        (images / f'{name}.png').write_bytes(data)
        text = text.replace(f'![png]({given})', f'![{words}](docs/images/{name}.png)')
    text = re.sub(r'\]\(([\w/]+\.ipynb)', r'](nbs/\1', text).replace('](../', '](')
    text = re.sub(r'^[ ]+$', '', text, flags=re.M)
    return re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'


if __name__ == '__main__':
    (ROOT / 'README.md').write_text(make(), encoding='utf-8')
