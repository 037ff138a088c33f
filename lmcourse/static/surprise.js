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
  knocking,
  frame,
} from './ui.js';

const HEIGHT = 96; // of the curve, in pixels
const SHOWN = 6; // how many expected tokens have a line

const priced = reading => reading.nats.map(x => (x === null ? Infinity : x));
const whole = xs => xs.reduce((a, b) => a + b, 0);
// The first token of a reading that reaches a character of the text.
const reaching = (reading, spot) => {
  const i = reading.ends.findIndex(end => end >= spot);
  return i < 0 ? reading.ends.length - 1 : i;
};
const share = p =>
  p >= 0.0995
    ? `${Math.round(100 * p)}%`
    : p >= 0.00995
      ? `${(100 * p).toFixed(1)}%`
      : p >= 0.00005
        ? `${(100 * p).toFixed(2)}%`
        : '<0.01%';
const ordinal = n =>
  `${n.toLocaleString('en-GB')}${n % 100 > 10 && n % 100 < 14 ? 'th' : (['th', 'st', 'nd', 'rd'][n % 10] ?? 'th')}`;
const quoted = piece => `“${piece.trim() || piece}”`;

// One model's part: name and numbers, the tokens, and what was expected at the place.
function part(suffix, kind, chosen) {
  const name = make('b');
  const doors = number(`perplexity${suffix}`);
  const bits = number(`bits_per_byte${suffix}`);
  const doorsOf = make('span', { class: 'lmw-inline' }, doors, ' perplexity');
  const bitsOf = make('span', { class: 'lmw-inline' }, bits, ' bits per byte');
  const tokens = strip('Tokens, the darker the dearer', shade, chosen);
  const from = make('p', { class: 'lmw-passport' });
  const head = make(
    'div',
    { class: `lmw-reader ${kind}` },
    make('div', { class: 'lmw-line-of' }, name, doorsOf, bitsOf),
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
    set(who, about, reading, i, compares) {
      const nats = priced(reading);
      const total = whole(nats);
      const alike = !reading.top[i].length;
      name.textContent = who;
      from.textContent = about.passport;
      offer(doors, `perplexity${suffix}`, compares ? perplexity(total, nats.length) : undefined);
      doorsOf.hidden = !compares;
      offer(bits, `bits_per_byte${suffix}`, reading.num_bytes ? bitsPerByte(total, reading.num_bytes) : undefined);
      bitsOf.lastChild.textContent = reading.num_unk
        ? ` bits per byte: ${reading.num_unk} of its tokens ${reading.num_unk > 1 ? 'are' : 'is'} unknown to it`
        : reading.num_bytes
          ? ' bits per byte'
          : ' bits per byte: its tokens do not give the text back';
      tokens.set(reading.pieces, nats, i);
      offer(cost, `surprise${suffix}`, nats[i]);
      offer(soFar, `so_far${suffix}`, compares ? running(nats)[i] : undefined);
      soFarOf.hidden = !compares;
      asked.textContent = `${who} expected`;
      const most = alike ? 1 : Math.max(reading.top[i][0][1], Math.exp(-nats[i]));
      const rows = alike ? [] : reading.top[i].slice(0, SHOWN).map(([p, q], k) => [p, q, k + 1 === reading.ranks[i]]);
      const line = ([p, q, came]) =>
        make(
          'li',
          { class: came ? 'lmw-came' : '' },
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
                `any of ${reading.vocab_size.toLocaleString('en-GB')} tokens, all alike`,
              ),
            ]
          : rows.map(line)),
      );
      const own = line([reading.pieces[i], Math.exp(-nats[i]), true]);
      own.classList.add('lmw-own');
      own.firstChild.after(
        make('small', { class: 'lmw-rank' }, alike ? 'came' : `came, ${ordinal(reading.ranks[i])} guess`),
      );
      list.append(own);
      return nats;
    },
    clear() {
      for (const node of [doors, bits, cost, soFar]) offer(node, '', undefined);
    },
  };
}

// Perplexity of the first token, of the first two, … on a logarithmic scale; the place looked at is marked.
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
  const live = knocking(model);
  const { body, told, edit, done, run } = frame(
    { model, el },
    {
      kind: 'surprise',
      title: 'What a text costs',
      keys: ['text', 'model', 'against', 'at'],
      notice:
        'a few dark tokens pay most of the bill. Look at what was expected in their place, ' +
        'and at which of them the better model is dark too.',
    },
  );
  const settle = values => {
    edit(values);
    done();
  };
  const pick = at => settle({ at });
  const texts = menu('A prepared text', model.get('texts'), 'a text of your own', text => settle({ text, at: 0 }));
  const typed = writing(model.get('longest'), text => settle({ text, at: 0 }));
  const who = choice('Read by', Object.fromEntries(names.map(n => [n, n])), value => edit({ model: value }));
  const beside = choice('Beside it', Object.fromEntries([...names.map(n => [n, n]), ['', 'nobody']]), value =>
    edit({ against: value }),
  );
  // a token of the second model's strip is looked at through the first model's token at the same characters
  const through = i => {
    const both = model.get('readings')[model.get('text')];
    if (both) pick(reaching(both[model.get('model')], both[model.get('against')].ends[i]));
  };
  const first = part('', 'lmw-one', pick);
  const second = part('_against', 'lmw-two', through);
  const note = make('p', { class: 'lmw-why' });
  const hand = slider('Token', { min: 1, max: 2, step: 1, name: 'at' }, value => edit({ at: value - 1 }));
  const token = number('token');
  const of = make('span');
  const total = number('nats');
  const totalAgainst = number('nats_against');
  const andTotal = make('span', {}, ' and ', totalAgainst);
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
    const both = model.get('readings')[text];
    const a = model.get('model');
    const b = model.get('against');
    const about = model.get('about');
    texts.set(text);
    typed.set(text, live());
    who.set(a);
    beside.set(b);
    el.firstElementChild?.classList.toggle('lmw-waiting', !both);
    if (!both) {
      told.textContent = 'The models are reading…';
      return;
    }
    const one = both[a];
    const n = one.nats.length;
    const i = Math.min(model.get('at'), n - 1);
    const alike = b && about[a].cuts === about[b].cuts;
    const nats = first.set(a, about[a], one, i, true);
    const curves = [['lmw-one', running(nats)]];
    put(token, i + 1);
    token.textContent = i + 1;
    of.textContent = ` of ${n}`;
    hand.max = n;
    hand.disabled = n < 2;
    place(hand, i + 1, `token ${i + 1} of ${n}, ${one.pieces[i].trim()}: ${show(nats[i])} nats`);
    put(total, whole(nats));
    offer(totalAgainst, 'nats_against', b ? whole(priced(both[b])) : undefined);
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
          `${a} and ${b} cut the text differently, so their perplexities do not compare: compare the bits per byte` +
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
    const guess = one.top[i][0];
    told.textContent =
      `To ${a} these ${n} tokens have perplexity ${show(perplexity(whole(nats), n))}${other}. ` +
      `At token ${i + 1}, ${quoted(one.pieces[i])}, it gave ${share(Math.exp(-nats[i]))}` +
      (!guess
        ? ', as to any other.'
        : one.ranks[i] === 1
          ? ', its first guess.'
          : `; its first guess was ${quoted(guess[0])} with ${share(guess[1])}.`);
  }, ['readings', 'heard']);
}
export default { render };
