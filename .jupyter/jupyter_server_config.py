"""What is saved from JupyterLab is what goes into git: `make lab` names this folder as JUPYTER_CONFIG_PATH, and each
lesson is cleaned as it is saved."""

import base64
import io

WIDGET = 'application/vnd.jupyter.widget-view+json'


def _palette(png: str) -> str:
    "A picture in 64 colours, about a quarter of the size."
    from PIL import Image

    image, out = Image.open(io.BytesIO(base64.b64decode(png))), io.BytesIO()
    if image.mode == 'P':
        return png
    image.convert('RGB').quantize(64, dither=Image.Dither.NONE).save(out, 'png', optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def clean(nb: dict) -> dict:
    """A notebook as git has it: no run's traces, pictures small, and for a widget the words that stand for it until its
    cell is run."""
    nb['metadata'].pop('widgets', None)
    for cell in nb['cells']:
        for data in (o['data'] for o in cell.get('outputs', ()) if 'data' in o):
            data.pop(WIDGET, None)
            if 'image/png' in data:
                data['image/png'] = _palette(''.join(data['image/png']).rstrip())
    try:
        from nbdev.clean import clean_nb
        from nbdev.config import get_config as project
    except ImportError:  # whoever only reads has no nbdev, and nothing to put into git
        return nb
    kept = project().get('allowed_cell_metadata_keys') or []
    clean_nb(nb, allowed_cell_metadata_keys=kept, clean_ids=project().clean_ids)
    return nb


def on_save(model, **_):
    if model['type'] == 'notebook' and model['content'].get('nbformat') == 4:
        clean(model['content'])


if 'c' in globals():
    c.FileContentsManager.pre_save_hook = on_save  # noqa: F821 - Jupyter gives its configuration this name
