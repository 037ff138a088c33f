// Tokenizers: one text and its total surprisal, with several tokenizers.
import { perplexity, bitsPerByte } from './core.js';
import { make, show, number, put, slider, place, unique, frame } from './ui.js';

function render({ model, el }) {
  const pieces = model.get('pieces');
  const names = Object.keys(pieces).sort((a, b) => pieces[a].length - pieces[b].length);
  const bytes = model.get('bytes');
  const { body, told, edit, run } = frame(
    { model, el },
    {
      kind: 'tokenizers',
      title: 'One text, several tokenizers',
      keys: ['nats', 'tokenizer'],
      notice:
        'shorter tokens have a lower perplexity, with the same knowledge of the text; ' +
        'the bits per byte do not move.',
    },
  );
  const group = unique('tokenizer');
  const hand = slider(
    'Total surprisal of the text',
    { min: 0, max: Math.ceil(3 * bytes), step: 0.5, name: 'nats' },
    nats => edit({ nats }),
  );
  const total = number('nats');
  const perByte = number('bits_per_byte');
  const shown = make('div', { class: 'lmw-tokens', role: 'img' });
  const rows = names.map(name => {
    const radio = make('input', {
      type: 'radio',
      name: group,
      'aria-label': `Show the tokens of ${name}`,
      'data-name': `tokenizer-${name}`,
      onchange: () => edit({ tokenizer: name }),
    });
    const nats = number(`nats_per_token-${name}`);
    const doors = number(`perplexity-${name}`);
    const byte = number(`bits_per_byte-${name}`);
    const bar = make('div', { class: 'lmw-fill' });
    const row = make(
      'tr',
      {},
      make('th', { scope: 'row' }, make('label', { class: 'lmw-word' }, radio, name)),
      make('td', {}, String(pieces[name].length)),
      make('td', {}, nats),
      make('td', { class: 'lmw-wide', 'aria-hidden': 'true' }, make('div', { class: 'lmw-bar' }, bar)),
      make('td', {}, doors),
      make('td', { class: 'lmw-held' }, byte),
    );
    return { name, radio, nats, doors, byte, bar, row };
  });
  const head = ['unit', 'tokens', 'nats per token', null, 'perplexity', 'bits per byte'].map(t =>
    t === null ? make('td', { class: 'lmw-wide' }) : make('th', { scope: 'col' }, t),
  );
  body.append(
    shown,
    make(
      'div',
      { class: 'lmw-row lmw-total' },
      make('span', { class: 'lmw-word' }, 'total surprisal'),
      hand,
      make('span', { class: 'lmw-share' }, total, ' nats'),
    ),
    make(
      'table',
      { class: 'lmw-table' },
      make('thead', {}, make('tr', {}, ...head)),
      make('tbody', {}, ...rows.map(r => r.row)),
    ),
    make(
      'div',
      { class: 'lmw-legend' },
      make('span', {}, `${bytes} bytes, with any tokenizer: `, perByte, ' bits per byte'),
    ),
  );

  return run(() => {
    const nats = model.get('nats');
    const chosen = model.get('tokenizer');
    const most = Math.max(...names.map(n => nats / pieces[n].length)) || 1;
    put(total, nats);
    put(perByte, bitsPerByte(nats, bytes));
    place(hand, nats, `${nats} nats for the whole text`);
    for (const r of rows) {
      const each = nats / pieces[r.name].length;
      put(r.nats, each);
      put(r.doors, perplexity(nats, pieces[r.name].length));
      put(r.byte, bitsPerByte(nats, bytes));
      r.bar.style.width = `${(100 * each) / most}%`;
      r.radio.checked = r.name === chosen;
      r.row.classList.toggle('lmw-it', r.name === chosen);
    }
    shown.replaceChildren(...pieces[chosen].map(p => make('span', { class: 'lmw-piece' }, p)));
    shown.setAttribute(
      'aria-label',
      `the text in ${pieces[chosen].length} ${chosen}: ${pieces[chosen].join(' | ')}`,
    );
    told.textContent =
      `In ${chosen}, the text has ${pieces[chosen].length} tokens ` +
      `and a perplexity of ${show(perplexity(nats, pieces[chosen].length))}; ` +
      `in bits per byte it stays at ${show(bitsPerByte(nats, bytes))}, with any tokenizer.`;
  });
}
export default { render };
