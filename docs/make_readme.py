"README.md from the index lesson: what its cells show, without the code of the cells marked `#| hide`; figures go to docs/images."
import re
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[1]

def make(images: Path=ROOT/'docs'/'images')->str:
    "The text of the README; its figures are written to `images`."
    nb = nbformat.read(ROOT/'nbs'/'index.ipynb', 4)
    nb.metadata['language_info'] = {'name': 'python'}
    for c in nb.cells:
        hidden = c.cell_type == 'code' and c.source.startswith('#| hide')
        if hidden: c.metadata['tags'] = ['hidden']
        for o in c.get('outputs', []):
            if 'image/png' in o.get('data', {}): o.data.pop('text/plain', None)
    exporter = MarkdownExporter(config={'TagRemovePreprocessor': {'enabled': True, 'remove_input_tags': ['hidden']}})
    text, resources = exporter.from_notebook_node(nb)
    images.mkdir(parents=True, exist_ok=True)
    for name, data in resources.get('outputs', {}).items():
        (images/name).write_bytes(data)
        text = text.replace(f'![png]({name})', f'![What each rung of the ladder is worth](docs/images/{name})')
    text = re.sub(r'\]\((\w+\.ipynb)', r'](nbs/\1', text).replace('](../docs/', '](docs/')
    text = re.sub(r'^[ ]+$', '', text, flags=re.M)
    return re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'

if __name__ == '__main__': (ROOT/'README.md').write_text(make(), encoding='utf-8')
