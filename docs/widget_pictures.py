"""Make the pictures of lesson 03's widgets anew: `python docs/widget_pictures.py`, then run the lesson. Needs
Chromium."""

import io
import json
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from lmcourse.interactive.widgets import Averaging, Confidence, Doors, Tokenizers

STATIC = Path(__file__).parents[1] / 'lmcourse' / 'static'
HOST = 'http://widgets.test/'  # answered from memory
TEXT = 'The café was closed.\n'
TOKENS = {
    'words': [*TEXT.split(), '⏎'],
    'pairs': [TEXT[i : i + 2] for i in range(0, len(TEXT), 2)],
    'characters': list(TEXT),
    'bytes': [f'{b:02x}' for b in TEXT.encode()],
}


def states() -> dict:  # {name: a widget in the state that the lesson describes}
    "The widgets after the move that the lesson asks for."
    averaging = Averaging()
    averaging.tokens = [28, 28, 28]
    return dict(
        doors=Doors(loss=5.0),
        confidence=Confidence(predicted=[0.9, 0.01, 0.06, 0.01, 0.02]),
        averaging=averaging,
        tokenizers=Tokenizers(TEXT, TOKENS, nats=42.0, tokenizer='characters'),
    )


def page_of(widget) -> str:
    "A page with one widget and no kernel."
    state = {
        k: v
        for k in widget.keys
        if not k.startswith('_') and isinstance(v := getattr(widget, k), (int, float, str, list, dict))
    }
    return f'''<!doctype html><html lang="en"><meta charset="utf-8"><title>widget</title>
<style>:root {{ color-scheme: light }} body {{ margin: 12px }} {widget._css}</style><body><div id="here"></div>
<script type="module">
  import widget from './widget.js';
  const state = {json.dumps(state, sort_keys=True)};
  const model = {{ get: k => state[k], set(k, v) {{ state[k] = v; }}, save_changes() {{}}, on() {{}}, off() {{}} }};
  window.cleanup = await widget.render({{ model, el: document.getElementById('here') }});
</script>'''


def main():
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which('chromium'), args=['--no-sandbox'])
        page = browser.new_page(viewport=dict(width=620, height=1100))
        for name, widget in states().items():
            answers = {'': ('text/html', page_of(widget)), 'widget.js': ('text/javascript', widget._esm)}

            def answer(route):
                kind, text = answers.get(route.request.url[len(HOST) :], ('image/x-icon', ''))  # noqa: B023
                route.fulfill(content_type=f'{kind}; charset=utf-8', body=text)

            page.unroute_all()
            page.route('**/*', answer)
            page.goto(HOST)
            page.wait_for_function('window.cleanup !== undefined')
            shot = Image.open(io.BytesIO(page.locator('.lmw').screenshot())).convert('RGB')
            few = shot.quantize(colors=48, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
            few.save(STATIC / f'{name}.png', 'PNG', optimize=True)
        browser.close()


if __name__ == '__main__':
    main()
