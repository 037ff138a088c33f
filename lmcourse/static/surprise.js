// Surprise: a text, each token coloured by what it cost a model; what had been expected in its place; and a second
// model beside the first.
import { perplexity, bitsPerByte, running, shade } from './core.js';
import {
  make,
  show,
  number,
  put,
  offer,
  choice,
  slider,
  place,
  menu,
  writing,
  strip,
  shades,
  pingKernel,
  frame,
} from './ui.js';

const HEIGHT = 96; // of the curve, in pixels
const SHOWN = 6; // how many expected tokens have a line

const priced = scored => scored.nats.map(x => (x === null ? Infinity : x));
const whole = xs => xs.reduce((a, b) => a + b, 0);
// The first token of a scored text that reaches a character of the text.
const reaching = (scored, spot) => {
  const i = scored.ends.findIndex(end => end >= spot);
  return i < 0 ? scored.ends.length - 1 : i;
};
const share = p =>
  p >= 0.0995
    ? `${Math.round(100 * p)}%`
    : p >= 0.00995
      ? `${(100 * p).toFixed(1)}%`
      : p >= 0.00005
        ? `${(100 * p).toFixed(2)}%`
        : '<0.01%';
const quoted = piece => `“${piece.trim() || piece}”`;

// One model's part: name and numbers, the tokens, and what was expected at one position.
function part(suffix, kind, chosen) {
  const name = make('b');
  const ppl = number(`perplexity${suffix}`);
  const bits = number(`bits_per_byte${suffix}`);
  const pplOf = make('span', { class: 'lmw-inline' }, ppl, ' perplexity');
  const bitsOf = make('span', { class: 'lmw-inline' }, bits, ' bits per byte');
  const tokens = strip('Tokens, the darker the dearer', shade, chosen);
  const from = make('p', { class: 'lmw-conditions' });
  const head = make(
    'div',
    { class: `lmw-reader ${kind}` },
    make('div', { class: 'lmw-line-of' }, name, pplOf, bitsOf),
    tokens.node,
    from,
  );
  const asked = make('h4', { class: 'lmw-asked' });
  const cost = number(`surprise${suffix}`);
  const soFar = number(`so_far${suffix}`);
  const soFarOf = make('span', {}, '; perplexity so far ', soFar);
  const list = make('ol', { class: 'lmw-expected' });
  const panel = make(
    'div',
    { class: `lmw-panel ${kind}` },
    asked,
    list,
    make('p', {}, 'it cost ', cost, ' nats', soFarOf),
  );
  return {
    head,
    panel,
    set(who, about, scored, i, compares) {
      const nats = priced(scored);
      const total = whole(nats);
      const alike = !scored.top[i].length;
      name.textContent = who;
      from.textContent = about.conditions;
      offer(ppl, `perplexity${suffix}`, compares ? perplexity(total, nats.length) : undefined);
      pplOf.hidden = !compares;
      offer(bits, `bits_per_byte${suffix}`, scored.num_bytes ? bitsPerByte(total, scored.num_bytes) : undefined);
      bitsOf.lastChild.textContent = scored.num_unk
        ? ` bits per byte: ${scored.num_unk} of its tokens ${scored.num_unk > 1 ? 'are' : 'is'} unknown to it`
        : scored.num_bytes
          ? ' bits per byte'
          : ' bits per byte: its tokens do not give the text back';
      tokens.set(scored.pieces, nats, i);
      offer(cost, `surprise${suffix}`, nats[i]);
      offer(soFar, `so_far${suffix}`, compares ? running(nats)[i] : undefined);
      soFarOf.hidden = !compares;
      asked.textContent = `${who} expected`;
      const most = alike ? 1 : Math.max(scored.top[i][0][1], Math.exp(-nats[i]));
      const rows = alike ? [] : scored.top[i].slice(0, SHOWN).map(([p, q], k) => [p, q, k + 1 === scored.ranks[i]]);
      const line = ([p, q, observed]) =>
        make(
          'li',
          { class: observed ? 'lmw-target' : '' },
          make('span', { class: 'lmw-piece' }, p),
          make(
            'span',
            { class: 'lmw-bar', 'aria-hidden': 'true' },
            make('span', { class: 'lmw-fill', style: `width:${(100 * q) / most}%` }),
          ),
          make('span', { class: 'lmw-share' }, share(q)),
        );
      list.replaceChildren(
        ...(alike
          ? [
              make(
                'li',
                { class: 'lmw-alike' },
                `any of ${scored.vocab_size.toLocaleString('en-GB')} tokens, all alike`,
              ),
            ]
          : rows.map(line)),
      );
      const own = line([scored.pieces[i], Math.exp(-nats[i]), true]);
      own.classList.add('lmw-own');
      own.firstChild.after(
        make(
          'small',
          { class: 'lmw-rank' },
          alike ? 'observed' : `observed, rank ${scored.ranks[i].toLocaleString('en-GB')}`,
        ),
      );
      list.append(own);
      return nats;
    },
    clear() {
      for (const node of [ppl, bits, cost, soFar]) offer(node, '', undefined);
    },
  };
}

// Perplexity of the first token, of the first two, … on a logarithmic scale; the token looked at is marked.
function drawCurve(svg, curves, i, n) {
  const width = svg.clientWidth || 600;
  const left = 40;
  const floor = HEIGHT - 16;
  const all = curves.flatMap(([, ys]) => ys).filter(Number.isFinite);
  const low = Math.floor(Math.log10(Math.min(...all, 9)));
  const high = Math.max(Math.ceil(Math.log10(Math.max(...all, 2))), low + 1);
  const x = k => left + 6 + (n > 1 ? k / (n - 1) : 0) * (width - left - 12);
  const y = v => floor - ((Math.log10(Math.min(v, 10 ** high)) - low) / (high - low)) * (floor - 16);
  svg.replaceChildren();
  for (let e = low; e <= high; e++)
    if ((e - low) % Math.ceil((high - low) / 3) === 0)
      svg.append(
        make('line', { x1: left, x2: width, y1: y(10 ** e), y2: y(10 ** e), class: 'lmw-grid' }),
        make('text', { x: left - 6, y: y(10 ** e) + 4, 'text-anchor': 'end' }, (10 ** e).toLocaleString('en-GB')),
      );
  svg.append(
    make('line', { x1: x(i), x2: x(i), y1: 12, y2: floor, class: 'lmw-here' }),
    make('text', { x: width, y: 9, 'text-anchor': 'end' }, 'perplexity so far'),
    make('text', { x: left + 6, y: HEIGHT - 2 }, 'first token'),
    make('text', { x: width - 6, y: HEIGHT - 2, 'text-anchor': 'end' }, 'last'),
  );
  for (const [kind, ys] of curves)
    svg.append(
      make('polyline', {
        points: ys.map((v, k) => `${x(k).toFixed(1)},${y(v).toFixed(1)}`).join(' '),
        class: `lmw-run ${kind}`,
      }),
      make('circle', { cx: x(i), cy: y(ys[i]), r: 3.5, class: `lmw-dot ${kind}` }),
    );
  svg.setAttribute(
    'aria-label',
    'Perplexity of the text up to each token: ' +
      curves.map(([, ys]) => `from ${show(ys[0])} to ${show(ys.at(-1))}`).join('; beside it '),
  );
}

function render({ model, el }) {
  const names = model.get('names');
  const live = pingKernel(model);
  const { body, told, edit, done, run } = frame(
    { model, el },
    {
      kind: 'surprise',
      title: 'What a text costs',
      keys: ['text', 'model', 'compare_to', 'token_index'],
      notice:
        'a few dark tokens pay most of the bill. Look at what was expected in their place, ' +
        'and at which of them the better model is dark too.',
    },
  );
  const settle = values => {
    edit(values);
    done();
  };
  const pick = index => settle({ token_index: index });
  const texts = menu('A prepared text', model.get('texts'), 'a text of your own', text =>
    settle({ text, token_index: 0 }),
  );
  const typed = writing(model.get('max_chars'), text => settle({ text, token_index: 0 }));
  const who = choice('Scored by', Object.fromEntries(names.map(n => [n, n])), value => edit({ model: value }));
  const beside = choice('Compared with', Object.fromEntries([...names.map(n => [n, n]), ['', 'nobody']]), value =>
    edit({ compare_to: value }),
  );
  // a token of the second model's strip is looked at through the first model's token at the same characters
  const through = i => {
    const both = model.get('scored')[model.get('text')];
    if (both) pick(reaching(both[model.get('model')], both[model.get('compare_to')].ends[i]));
  };
  const first = part('', 'lmw-one', pick);
  const second = part('_compared', 'lmw-two', through);
  const note = make('p', { class: 'lmw-why' });
  const hand = slider('Token', { min: 1, max: 2, step: 1, name: 'token_index' }, value =>
    edit({ token_index: value - 1 }),
  );
  const token = number('token');
  const of = make('span');
  const total = number('nats');
  const totalCompared = number('nats_compared');
  const andTotal = make('span', {}, ' and ', totalCompared);
  const picture = make('svg', { class: 'lmw-picture', height: HEIGHT, role: 'img' });
  body.append(
    texts.node,
    ...typed.parts,
    make('div', { class: 'lmw-controls' }, who.field, beside.field),
    first.head,
    second.head,
    note,
    shades(),
    make(
      'div',
      { class: 'lmw-row lmw-where' },
      make('span', { class: 'lmw-word' }, make('span', {}, 'token ', token, of)),
      hand,
    ),
    picture,
    make('div', { class: 'lmw-panels' }, first.panel, second.panel),
    make('p', { class: 'lmw-all' }, 'the whole text: ', total, andTotal, ' nats'),
  );

  return run(() => {
    const text = model.get('text');
    const both = model.get('scored')[text];
    const a = model.get('model');
    const b = model.get('compare_to');
    const about = model.get('about');
    texts.set(text);
    typed.set(text, live());
    who.set(a);
    beside.set(b);
    el.firstElementChild?.classList.toggle('lmw-waiting', !both);
    if (!both) {
      told.textContent = 'The models are scoring the text…';
      return;
    }
    const one = both[a];
    const n = one.nats.length;
    const i = Math.min(model.get('token_index'), n - 1);
    const alike = b && about[a].tokenizer_key === about[b].tokenizer_key;
    const nats = first.set(a, about[a], one, i, true);
    const curves = [['lmw-one', running(nats)]];
    put(token, i + 1);
    token.textContent = i + 1;
    of.textContent = ` of ${n}`;
    hand.max = n;
    hand.disabled = n < 2;
    place(hand, i + 1, `token ${i + 1} of ${n}, ${one.pieces[i].trim()}: ${show(nats[i])} nats`);
    put(total, whole(nats));
    offer(totalCompared, 'nats_compared', b ? whole(priced(both[b])) : undefined);
    andTotal.hidden = !b;
    second.head.hidden = second.panel.hidden = !b;
    note.hidden = !b || alike;
    let other = '';
    if (b) {
      const two = both[b];
      const j = alike ? i : reaching(two, one.ends[i]);
      const theirs = second.set(b, about[b], two, j, alike);
      const cost = whole(theirs);
      if (alike) {
        curves.push(['lmw-two', running(theirs)]);
        other = `; ${b}, ${show(perplexity(cost, n))}`;
      } else {
        note.textContent =
          `${a} and ${b} tokenize the text differently, so their perplexities cannot be compared: compare the bits per byte` +
          (one.num_bytes && two.num_bytes
            ? '.'
            : ', which a model with unknown words, or one that loses text, does not have.');
        other =
          !one.num_bytes || !two.num_bytes
            ? ''
            : `, ${show(bitsPerByte(whole(nats), one.num_bytes))} bits per byte; ` +
              `${b}, ${show(bitsPerByte(cost, two.num_bytes))} bits per byte`;
      }
    } else second.clear();
    drawCurve(picture, curves, i, n);
    const likeliest = one.top[i][0];
    told.textContent =
      `To ${a} these ${n} tokens have perplexity ${show(perplexity(whole(nats), n))}${other}. ` +
      `At token ${i + 1}, ${quoted(one.pieces[i])}, it gave ${share(Math.exp(-nats[i]))}` +
      (!likeliest
        ? ', as to any other.'
        : one.ranks[i] === 1
          ? ', the highest of all.'
          : `; its likeliest token was ${quoted(likeliest[0])} with ${share(likeliest[1])}.`);
  }, ['scored', 'pong']);
}
export default { render };
