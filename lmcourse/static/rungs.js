// Rungs: a rung of the ladder, what it scores, what it makes of one sentence, and how it goes on.
import { perplexity, bitsPerByte, shade } from './core.js';
import {
  make,
  show,
  number,
  put,
  button,
  slider,
  place,
  menu,
  writing,
  strip,
  shades,
  unique,
  pingKernel,
  frame,
} from './ui.js';

const priced = scored => scored.nats.map(x => (x === null ? Infinity : x));
// Bits per byte, or a dash where they mean nothing.
const putBits = (node, nats, bytes) => {
  if (bytes) put(node, bitsPerByte(nats, bytes));
  else node.textContent = '–';
};
const whole = xs => xs.reduce((a, b) => a + b, 0);

function render({ model, el }) {
  const ladder = model.get('ladder');
  const live = pingKernel(model);
  const pplOf = n => perplexity(ladder[n].nats, ladder[n].num_tokens);
  const names = Object.keys(ladder).sort((a, b) => pplOf(b) - pplOf(a));
  const { body, told, edit, done, run } = frame(
    { model, el },
    {
      kind: 'rungs',
      title: 'The ladder',
      keys: ['rung', 'text', 'seed', 'temperature'],
      notice:
        'going up, the dark tokens fade one after another, and what is written begins to hold together: ' +
        'first neighbours, then phrases.',
    },
  );
  const settle = values => {
    edit(values);
    done();
  };
  const group = unique('rung');
  const most = Math.log(Math.max(...names.map(pplOf)));
  const rows = names.map(name => {
    const radio = make('input', {
      type: 'radio',
      name: group,
      'aria-label': `${name}, perplexity ${show(pplOf(name))}`,
      'data-name': `rung-${name}`,
      onchange: () => edit({ rung: name }),
    });
    const ppl = number(`perplexity-${name}`);
    const bits = number(`bits_per_byte-${name}`);
    const row = make(
      'tr',
      {},
      make('th', { scope: 'row' }, make('label', { class: 'lmw-word' }, radio, name)),
      make(
        'td',
        { class: 'lmw-wide', 'aria-hidden': 'true' },
        make(
          'div',
          { class: 'lmw-bar' },
          make('div', { class: 'lmw-fill', style: `width:${(100 * Math.log(pplOf(name))) / most}%` }),
        ),
      ),
      make('td', {}, ppl),
      make('td', {}, bits),
    );
    put(ppl, pplOf(name));
    putBits(bits, ladder[name].nats, ladder[name].num_bytes);
    return { name, radio, row };
  });
  const heads = ['rung', null, 'perplexity', 'bits per byte'].map(t =>
    t === null
      ? make('td', { class: 'lmw-wide lmw-scale', 'aria-hidden': 'true' }, 'logarithmic scale')
      : make('th', { scope: 'col' }, t),
  );
  const from = make('p', { class: 'lmw-conditions' });
  const texts = menu('A prepared sentence', model.get('texts'), 'a sentence of your own', text =>
    settle({ text, seed: 0 }),
  );
  const typed = writing(model.get('max_chars'), text => settle({ text, seed: 0 }));
  const here = number('here');
  const hereBits = number('here_bits');
  const tokens = strip('The sentence, token by token, in nats', shade);
  const again = button(
    'Write again',
    () => settle({ seed: live() ? model.get('seed') + 1 : (model.get('seed') + 1) % model.get('seeds') }),
    { 'data-name': 'again' },
  );
  const heat = slider('Temperature', { min: 0.1, max: 2, step: 0.1, name: 'temperature' }, t =>
    edit({ temperature: Math.round(10 * t) / 10 }),
  );
  const degree = make('span', { class: 'lmw-share' });
  const prompt = make('span', { class: 'lmw-prompt' });
  const written = make('span');
  const page = make('blockquote', { class: 'lmw-written' }, prompt, written);
  body.append(
    make(
      'table',
      { class: 'lmw-table' },
      make('thead', {}, make('tr', {}, ...heads)),
      make('tbody', {}, ...rows.map(r => r.row)),
    ),
    from,
    texts.node,
    ...typed.parts,
    make(
      'div',
      { class: 'lmw-line-of' },
      make('span', { class: 'lmw-inline' }, 'this sentence: ', here, ' perplexity'),
      make('span', { class: 'lmw-inline' }, hereBits, ' bits per byte'),
    ),
    tokens.node,
    shades(),
    make(
      'div',
      { class: 'lmw-goes-on' },
      make('span', { class: 'lmw-word' }, 'how it goes on'),
      again,
      make('span', { class: 'lmw-heat-of' }, make('span', { class: 'lmw-word' }, 'temperature'), heat, degree),
    ),
    page,
  );

  return run(() => {
    const rung = model.get('rung');
    const text = model.get('text');
    const T = model.get('temperature');
    const scored = model.get('scored')[text]?.[rung];
    const sample = model.get('written')[`${rung}|${text}|${model.get('seed')}|${T.toFixed(1)}`];
    for (const r of rows) {
      r.radio.checked = r.name === rung;
      r.row.classList.toggle('lmw-it', r.name === rung);
    }
    from.textContent =
      ladder[rung].conditions +
      (ladder[rung].num_parameters
        ? `; ${ladder[rung].num_parameters.toLocaleString('en-GB')} ${ladder[rung].counted ? 'counts' : 'parameters'}`
        : '; nothing learnt');
    texts.set(text);
    typed.set(text, live());
    heat.disabled = !live();
    place(heat, T, T.toFixed(1));
    degree.textContent = T.toFixed(1);
    el.firstElementChild?.classList.toggle('lmw-waiting', !scored || sample === undefined);
    if (!scored) {
      told.textContent = 'The models are scoring the text…';
      return;
    }
    const nats = priced(scored);
    const ppl = perplexity(whole(nats), nats.length);
    put(here, ppl);
    putBits(hereBits, whole(nats), scored.num_bytes);
    tokens.set(scored.pieces, nats);
    prompt.textContent = text;
    written.textContent = sample ?? ' …';
    told.textContent =
      `${rung} has perplexity ${show(pplOf(rung))} on the validation text, and ${show(ppl)} on this sentence. ` +
      (sample === undefined
        ? 'It is writing…'
        : `It goes on: “${sample.trim().split(/\s+/).slice(0, 12).join(' ')} …”`);
  }, ['scored', 'written', 'pong']);
}
export default { render };
