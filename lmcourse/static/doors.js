// Loss to perplexity: a slider over the loss, and as many equal doors as it is worth.
import { perplexity, bitsPerToken, bitsPerByte } from './core.js';
import { make, show, number, put, figure, button, choice, slider, place, frame } from './ui.js';

// losses to know by heart, and their doors
const TABLE = [
  [0, 1],
  [0.69, 2],
  [1.1, 3],
  [2.3, 10],
  [4.6, 100],
  [6.91, 1000],
  [9.21, 10000],
];
const UNITS = { nats: 'nats per token', bits: 'bits per token', bytes: 'bits per byte' };
const HEIGHT = 120; // of the picture, in pixels
const SHAPE = 0.58; // a door's width by its height
const DRAWN = 1500; // most doors drawn

// The largest doors that fit: columns and the width and height of one place.
function layout(doors, width) {
  let best = { w: 0 };
  for (let rows = 1; rows <= doors; rows++) {
    const columns = Math.ceil(doors / rows);
    const w = Math.min(width / columns, ((HEIGHT - 2) / rows) * SHAPE, 52);
    if (w > best.w) best = { w, h: w / SHAPE, columns, top: HEIGHT - 2 - (rows * w) / SHAPE };
    else if ((HEIGHT / rows) * SHAPE < best.w) break;
  }
  return best;
}

const outline = (x, y, w, h) => {
  const r = Math.min(w, h) / 4;
  return `M${x} ${y + h}v${r - h}q0 ${-r} ${r} ${-r}h${w - 2 * r}q${r} 0 ${r} ${r}v${h - r}z`;
};

function drawDoors(svg, k) {
  const width = svg.clientWidth || 600;
  const whole = Math.min(Math.floor(k + 1e-9), DRAWN);
  const part = whole < DRAWN ? k - whole : 0;
  const { w, h, columns, top } = layout(whole + (part > 1e-9 ? 1 : 0), width);
  const at = i => [(i % columns) * w, top + Math.floor(i / columns) * h];
  let doors = '';
  let knobs = '';
  for (let i = 0; i < whole; i++) {
    const [x, y] = at(i);
    const r = w * 0.045;
    doors += outline(x, y + h * 0.1, w * 0.82, h * 0.9);
    if (w > 7) knobs += `M${x + w * 0.66 - r} ${y + h * 0.53}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0`;
  }
  const [x, y] = at(whole);
  svg.replaceChildren(
    make('path', { d: doors, class: 'lmw-door' }),
    make('path', { d: knobs, class: 'lmw-knob' }),
    make('line', { x1: 0, x2: width, y1: HEIGHT - 1, y2: HEIGHT - 1, class: 'lmw-ground' }),
  );
  if (part > 1e-9)
    svg.append(
      make('path', { d: outline(x, y + h * 0.1, w * 0.82, h * 0.9), class: 'lmw-ajar' }),
      make('rect', { x, y: y + h * 0.1, width: w * 0.82 * part, height: h * 0.9, class: 'lmw-part' }),
    );
  svg.setAttribute('aria-label', `${show(k)} equal doors${k > DRAWN ? `, ${show(DRAWN)} of them drawn` : ''}`);
}

function render({ model, el }) {
  const highest = model.get('highest');
  const bytes = () => model.get('bytes_per_token');
  const { body, told, edit, done, run } = frame(
    { model, el },
    {
      kind: 'doors',
      title: 'From loss to doors',
      keys: ['loss', 'unit', 'bytes_per_token'],
      notice:
        'each 0.69 nats to the right doubles the doors, wherever you start; ' +
        'another unit changes the scale, and never the doors.',
    },
  );
  const to = { nats: x => x, bits: x => bitsPerToken(x, 1), bytes: x => bitsPerByte(x, bytes()) };
  const unit = choice('Scale in', UNITS, value => edit({ unit: value }));
  const perToken = make('input', {
    type: 'number',
    class: 'lmw-field',
    min: 0.1,
    max: 100,
    step: 0.1,
    'data-name': 'bytes_per_token',
    'aria-label': 'Bytes per token of the tokenizer',
  });
  perToken.addEventListener('input', () => {
    if (perToken.value && perToken.checkValidity()) edit({ bytes_per_token: Number(perToken.value) });
  });
  perToken.addEventListener('blur', () => {
    perToken.value = bytes();
  });
  const hand = slider('Loss', { min: 0, max: highest, step: 0.01, name: 'loss' }, loss => edit({ loss }));
  const marks = [];
  for (const [loss, doors] of TABLE) {
    const last = marks.at(-1);
    const f = loss / highest;
    if (f > 1 || (last && f - last.f < 0.075)) continue;
    const below = make('small');
    const mark = button(
      '',
      () => {
        edit({ loss });
        done();
      },
      { class: 'lmw-mark', style: `--f:${f}`, 'data-loss': loss },
    );
    mark.append(make('span', {}, doors.toLocaleString('en-GB')), below);
    marks.push({ f, loss, doors, below, mark });
  }
  const picture = make('svg', { class: 'lmw-picture', height: HEIGHT, role: 'img' });
  const k = number('perplexity');
  const nats = number('nats');
  const bits = number('bits');
  const perByte = number('bits_per_byte');
  const figures = {
    nats: figure('loss', nats, 'nats per token'),
    bits: figure('loss', bits, 'bits per token'),
    bytes: figure('loss', perByte, 'bits per byte'),
  };
  body.append(
    picture,
    make('div', { class: 'lmw-scale' }, hand, make('div', { class: 'lmw-marks' }, ...marks.map(m => m.mark))),
    make(
      'div',
      { class: 'lmw-controls' },
      unit.field,
      make('label', { class: 'lmw-inline' }, 'with ', perToken, ' bytes per token'),
    ),
    make(
      'div',
      { class: 'lmw-figures' },
      figure('perplexity', k, 'equal doors', 'lmw-main'),
      ...Object.values(figures),
    ),
  );

  return run(() => {
    const loss = model.get('loss');
    const which = model.get('unit');
    const doors = perplexity(loss, 1);
    put(k, doors);
    put(nats, to.nats(loss));
    put(bits, to.bits(loss));
    put(perByte, to.bytes(loss));
    place(hand, loss, `${show(to[which](loss))} ${UNITS[which]}, ${show(doors)} doors`);
    unit.set(which);
    if (document.activeElement !== perToken) perToken.value = bytes();
    for (const m of marks) {
      m.below.textContent = to[which](m.loss).toFixed(2);
      m.mark.setAttribute(
        'aria-label',
        `Go to a loss of ${m.below.textContent} ${UNITS[which]}, about ${m.doors} doors`,
      );
    }
    for (const [name, node] of Object.entries(figures)) node.classList.toggle('lmw-chosen', name === which);
    drawDoors(picture, doors);
    told.textContent =
      doors < 1.005
        ? 'A loss of zero: one door, and no doubt left.'
        : `A loss of ${show(loss)} nats per token is as hard as choosing among ${show(doors)} equal doors: ` +
          `${show(to.bits(loss))} yes-or-no questions per token, ` +
          `or ${show(to.bytes(loss))} per byte at ${bytes()} bytes per token.`;
  });
}
export default { render };
