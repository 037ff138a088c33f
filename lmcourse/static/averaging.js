// Averaging: batches of different lengths, and three ways of making one number of them.
import { averages } from './core.js';
import { make, show, number, put, button, slider, place, frame } from './ui.js';

const HEIGHT = 150; // of the picture, in pixels
const TOP = 6; // the highest loss that the sliders reach
const WAYS = {
  perplexity: ['right', 'all nats / all tokens'],
  mean_loss: ['wrong', 'mean of the losses'],
  mean_perplexity: ['worse', 'mean of perplexities'],
};

function render({ model, el }) {
  const n = model.get('tokens').length;
  const letter = i => String.fromCharCode(65 + (i % 26));
  const { body, told, edit, done, run } = frame(
    { model, el },
    {
      kind: 'averaging',
      title: 'One number from several batches',
      keys: ['tokens', 'losses'],
      notice:
        'with equal lengths the mean of the losses is right; the mean of the perplexities is still too high, ' +
        'until the losses are equal too.',
    },
  );
  const changed = (key, i, value) => edit({ [key]: model.get(key).map((x, j) => (j === i ? value : x)) });
  const evenly = key => {
    const xs = model.get(key);
    const mean = xs.reduce((a, b) => a + b, 0) / n;
    edit({ [key]: xs.map(() => (key === 'tokens' ? Math.max(1, Math.round(mean)) : mean)) });
    done();
  };
  const rows = Array.from({ length: n }, (_, i) => {
    const tokens = slider(`Tokens of batch ${letter(i)}`, { min: 1, max: 64, step: 1, name: `tokens-${i}` }, v =>
      changed('tokens', i, v),
    );
    const loss = slider(`Loss of batch ${letter(i)}`, { min: 0, max: TOP, step: 0.05, name: `loss-${i}` }, v =>
      changed('losses', i, v),
    );
    const a = make('span', { class: 'lmw-share' });
    const b = make('span', { class: 'lmw-share' });
    const row = make(
      'div',
      { class: 'lmw-batch' },
      make('b', { 'aria-hidden': 'true' }, letter(i)),
      make('span', { class: 'lmw-pair' }, tokens, a),
      make('span', { class: 'lmw-pair' }, loss, b),
    );
    return { tokens, loss, a, b, row };
  });
  const picture = make('svg', { class: 'lmw-picture', height: HEIGHT, role: 'img' });
  const ways = Object.entries(WAYS).map(([name, [kind, text]]) => {
    const node = number(name);
    const bar = make('div', { class: 'lmw-fill' });
    const off = make('span', { class: 'lmw-off', 'data-name': `${name}-error` });
    return {
      name,
      kind,
      node,
      bar,
      off,
      row: make(
        'div',
        { class: `lmw-way lmw-${kind}` },
        make('span', { class: 'lmw-key' }, text),
        make('div', { class: 'lmw-bar' }, bar),
        node,
        off,
      ),
    };
  });
  body.append(
    picture,
    make('div', { class: 'lmw-batch lmw-columns' }, make('span'), make('span', {}, 'tokens'), make('span', {}, 'loss')),
    ...rows.map(r => r.row),
    make(
      'div',
      { class: 'lmw-controls' },
      button('Equal lengths', () => evenly('tokens'), { 'data-name': 'equal-tokens' }),
      button('Equal losses', () => evenly('losses'), { 'data-name': 'equal-losses' }),
    ),
    make('div', { class: 'lmw-ways' }, ...ways.map(w => w.row)),
  );

  return run(() => {
    const tokens = model.get('tokens');
    const losses = model.get('losses');
    const found = averages(tokens, losses);
    const most = Math.max(...Object.values(found));
    rows.forEach((r, i) => {
      place(r.tokens, tokens[i], `${tokens[i]} tokens`);
      r.a.textContent = tokens[i];
      place(r.loss, losses[i], `${losses[i].toFixed(2)} nats per token`);
      r.b.textContent = losses[i].toFixed(2);
    });
    for (const w of ways) {
      const ratio = found[w.name] / found.perplexity;
      put(w.node, found[w.name]);
      w.bar.style.width = `${(100 * found[w.name]) / most}%`;
      w.off.textContent =
        w.name === 'perplexity' ? 'doors' : Math.abs(ratio - 1) < 0.005 ? 'right' : `× ${show(ratio)}`;
    }
    drawBatches(picture, tokens, losses, found, letter);
    told.textContent =
      `${tokens.reduce((a, b) => a + b)} tokens in ${n} batches: the perplexity is ${show(found.perplexity)}. ` +
      `The mean of the losses would say ${show(found.mean_loss)}, ` +
      `the mean of the perplexities ${show(found.mean_perplexity)}.`;
  });
}

// Each batch is a block, as wide as its tokens and as high as its loss, so that its area is its nats; each mean is a
// line at its height.
function drawBatches(svg, tokens, losses, found, letter) {
  const width = svg.clientWidth || 600;
  const left = 26;
  const floor = HEIGHT - 20;
  const total = tokens.reduce((a, b) => a + b);
  const top = Math.max(TOP, ...losses);
  const x = n => left + (n / total) * (width - left);
  const y = loss => floor - (loss / top) * (floor - 22);
  svg.replaceChildren(
    ...[0, 2, 4, 6].map(v =>
      make(
        'g',
        {},
        make('line', { x1: left, x2: width, y1: y(v), y2: y(v), class: 'lmw-grid' }),
        make('text', { x: left - 6, y: y(v) + 4, 'text-anchor': 'end' }, v),
      ),
    ),
  );
  svg.append(make('text', { x: left, y: 10 }, 'loss (nats per token)'));
  let before = 0;
  tokens.forEach((n, i) => {
    const w = x(before + n) - x(before);
    svg.append(
      make('rect', {
        x: x(before) + 1,
        y: y(losses[i]),
        width: Math.max(w - 2, 1),
        height: floor - y(losses[i]),
        class: 'lmw-block',
      }),
      make(
        'text',
        { x: x(before) + w / 2, y: HEIGHT - 5, 'text-anchor': 'middle' },
        w < 12 ? '' : w < 90 ? letter(i) : `${letter(i)}: ${show(n * losses[i])} nats`,
      ),
    );
    before += n;
  });
  for (const [name, [kind]] of Object.entries(WAYS).reverse()) {
    const at = y(Math.log(found[name]));
    svg.append(make('line', { x1: left, x2: width, y1: at, y2: at, class: `lmw-line lmw-${kind}` }));
  }
  svg.setAttribute(
    'aria-label',
    `${tokens.length} batches: ` +
      tokens.map((n, i) => `${letter(i)} with ${n} tokens at ${losses[i].toFixed(2)} nats each`).join(', '),
  );
}
export default { render };
