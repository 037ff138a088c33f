// LiveRun: a small network trained while one watches; the learning rate is a slider.
import { perplexity } from './core.js';
import { make, show, number, put, offer, figure, button, choice, slider, place, pingKernel, frame } from './ui.js';

const HEIGHT = 210; // of the picture, in pixels
const LABEL = 44; // width of a rate's label, in pixels
const WORDS = 3000; // milliseconds between two spoken sentences while it runs

const ppl = nats => perplexity(nats, 1);
const rate = lr => (lr >= 0.0995 ? String(Number(lr.toPrecision(2))) : lr.toExponential(1).replace('.0e', 'e'));
const grouped = n => n.toLocaleString('en-GB');

// Perplexity against tokens seen, both reference lines and all curves; what is off the top is drawn at the top.
function drawRun(svg, curve, earlier, referenceLines) {
  const width = svg.clientWidth || 600;
  const left = 40;
  const narrow = width < 480;
  const right = narrow ? 4 : 104;
  const bottom = HEIGHT - 20;
  const top = 18;
  const points = [...curve.train, ...curve.validation, ...earlier.flatMap(e => e.points)];
  const far = Math.max(20000, ...points.map(p => p[0]));
  const first = curve.validation[0][1];
  const low = Math.log(
    Math.max(
      1,
      Math.exp(Math.min(referenceLines.source ?? Infinity, referenceLines.unigram, ...points.map(p => p[1]))) * 0.85,
    ),
  );
  const high = Math.max(first, ...curve.validation.map(p => Math.min(p[1], first + 2))) + 0.1;
  const x = tokens => left + (tokens / far) * (width - left - right);
  const y = nats => bottom - ((Math.max(low, Math.min(nats, high)) - low) / (high - low)) * (bottom - top);
  const path = ps => ps.map(([t, v]) => `${x(t).toFixed(1)},${y(v).toFixed(1)}`).join(' ');
  const line = (ps, kind) => make('polyline', { points: path(ps), class: kind });
  svg.replaceChildren();
  for (const v of [1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 100000, 1e6]) {
    const at = Math.log(v);
    if (at < low || at > high) continue;
    if (high - low > 3 && !/^1|^[25]0*$/.test(String(v))) continue;
    svg.append(
      make('line', { x1: left, x2: width - right, y1: y(at), y2: y(at), class: 'lmw-grid' }),
      make('text', { x: left - 6, y: y(at) + 4, 'text-anchor': 'end' }, grouped(v)),
    );
  }
  svg.append(
    make('line', { x1: left, x2: width - right, y1: bottom, y2: bottom, class: 'lmw-ground' }),
    make('text', { x: 0, y: 9 }, 'perplexity'),
    make('text', { x: left, y: HEIGHT - 4, 'text-anchor': 'middle' }, '0'),
    make('text', { x: width - right, y: HEIGHT - 4, 'text-anchor': 'end' }, `${grouped(far)} tokens seen`),
  );
  for (const [name, label, kind] of [
    ['unigram', 'unigram', 'lmw-wrong'],
    ['source', 'the source', 'lmw-source'],
  ])
    if (name in referenceLines)
      svg.append(
        make('line', {
          x1: left,
          x2: width - right,
          y1: y(referenceLines[name]),
          y2: y(referenceLines[name]),
          class: `lmw-line lmw-reference ${kind}`,
        }),
        make(
          'text',
          narrow
            ? { x: width - right, y: y(referenceLines[name]) - 4, 'text-anchor': 'end' }
            : { x: width - right + 6, y: y(referenceLines[name]) + 4 },
          `${label} ${show(ppl(referenceLines[name]))}`,
        ),
      );
  let [before, row] = [-Infinity, 0]; // labels that would touch stand below one another
  for (const [tokens, lr] of curve.lr_changes.slice(1)) {
    const here = x(tokens);
    row = here - before < LABEL ? (row + 1) % 5 : 0;
    before = here;
    svg.append(
      make('line', { x1: here, x2: here, y1: top, y2: bottom, class: 'lmw-here' }),
      make('text', { x: here + 3, y: top + 8 + 12 * row }, rate(lr)),
    );
  }
  for (const e of earlier) svg.append(line(e.points, 'lmw-run lmw-earlier'));
  svg.append(line(curve.train, 'lmw-run lmw-thin'), line(curve.validation, 'lmw-run lmw-one'));
  const [tokens, last] = curve.validation.at(-1);
  svg.append(make('circle', { cx: x(tokens), cy: y(last), r: 3.5, class: 'lmw-dot lmw-one' }));
  svg.setAttribute(
    'aria-label',
    `Validation perplexity from ${show(ppl(first))} to ${show(ppl(last))} over ${grouped(tokens)} tokens; ` +
      `the unigram has ${show(ppl(referenceLines.unigram))}` +
      ('source' in referenceLines ? `, the source itself ${show(ppl(referenceLines.source))}` : '') +
      (earlier.length
        ? `; ${earlier.length} earlier ${earlier.length > 1 ? 'runs stand' : 'run stands'} beside it`
        : ''),
  );
}

function render({ model, el }) {
  const live = pingKernel(model);
  const tell = { at: -Infinity };
  const { body, told, edit, run } = frame(
    { model, el },
    {
      kind: 'live',
      title: 'A training run',
      keys: ['corpus', 'width', 'lr'],
      notice:
        'the curve falls quickly to the unigram, which needs no context, and more slowly from there on. ' +
        'A rate ten times larger starts fast; only the end shows whether it is better.',
    },
  );
  // Who looks reads the sentence that goes with the figures; who listens hears one every few seconds.
  const spoken = make('p', { class: 'lmw-spoken', role: 'status', 'aria-live': 'polite' });
  told.removeAttribute('role');
  told.setAttribute('aria-live', 'off');
  told.after(spoken);
  let commands = 0;
  const send = word => {
    model.set('command', `${word} ${Date.now()}-${++commands}`);
    model.save_changes();
  };
  const start = button('Start', () => send(model.get('running') ? 'stop' : 'start'), {
    'data-name': 'start',
    disabled: true,
  });
  const restart = button('Restart', () => send('restart'), { 'data-name': 'restart', disabled: true });
  const corpus = choice('Text of the next run', { markov: 'synthetic words', stdlib: 'Python’s manual' }, value =>
    edit({ corpus: value }),
  );
  const width = slider('Width of the next run', { min: 4, max: 128, step: 4, name: 'width' }, value =>
    edit({ width: value }),
  );
  const wide = make('span', { class: 'lmw-share' });
  const lr = slider('Learning rate, at once', { min: -5, max: 1, step: 0.1, name: 'lr' }, value =>
    edit({ lr: Number((10 ** value).toPrecision(2)) }),
  );
  const at = make('span', { class: 'lmw-share' });
  const row = (label, node, value) =>
    make('div', { class: 'lmw-row' }, make('span', { class: 'lmw-word' }, label), node, value);
  const picture = make('svg', { class: 'lmw-picture', height: HEIGHT, role: 'img' });
  const error = make('p', { class: 'lmw-error', role: 'alert' });
  const made = make('p', { class: 'lmw-conditions' });
  const of = Object.fromEntries(
    ['perplexity', 'train', 'step', 'num_tokens', 'lr', 'unigram', 'source'].map(n => [n, number(n)]),
  );
  const source = figure('the source', of.source, 'itself');
  const why = make(
    'p',
    { class: 'lmw-why' },
    'Training needs a kernel behind this page, as in JupyterLab; here you see the stored run, and the controls are ' +
      'off.',
  );
  body.append(
    picture,
    made,
    make('div', { class: 'lmw-controls' }, start, restart),
    why,
    error,
    row('learning rate', lr, at),
    row('width', width, wide),
    corpus.field,
    make(
      'div',
      { class: 'lmw-figures lmw-six' },
      figure('validation', of.perplexity, 'perplexity', 'lmw-main'),
      figure('training', of.train, 'perplexity'),
      figure('unigram', of.unigram, 'perplexity'),
      source,
      figure('steps', of.step, 'made'),
      figure('tokens', of.num_tokens, 'at the last validation'),
    ),
    make('span', { hidden: true }, of.lr),
  );

  return run(() => {
    const curve = model.get('curve');
    const referenceLines = model.get('reference_lines');
    const running = model.get('running');
    const last = curve.validation.at(-1);
    const stuck = model.get('error');
    put(of.perplexity, ppl(last[1]));
    offer(of.train, 'train', curve.train.length ? ppl(curve.train.at(-1)[1]) : undefined);
    put(of.unigram, ppl(referenceLines.unigram));
    offer(of.source, 'source', 'source' in referenceLines ? ppl(referenceLines.source) : undefined);
    source.hidden = !('source' in referenceLines);
    put(of.step, curve.step);
    of.step.textContent = grouped(curve.step);
    put(of.num_tokens, last[0]);
    of.num_tokens.textContent = grouped(last[0]);
    put(of.lr, model.get('lr'));
    place(lr, Number(Math.log10(model.get('lr')).toFixed(1)), rate(model.get('lr')));
    at.textContent = rate(model.get('lr'));
    place(width, model.get('width'), `${model.get('width')}`);
    wide.textContent = model.get('width');
    corpus.set(model.get('corpus'));
    const next = model.get('width') !== curve.width || model.get('corpus') !== curve.corpus;
    made.textContent =
      `on show: ${curve.corpus}, one LSTM layer of width ${curve.width}` +
      (next ? `; the next run: ${model.get('corpus')}, width ${model.get('width')}` : '');
    start.textContent = running ? 'Stop' : curve.step ? 'Go on' : 'Start';
    start.disabled = !live() || (!running && Boolean(stuck));
    restart.disabled = lr.disabled = width.disabled = !live();
    for (const x of corpus.field.querySelectorAll('input, select')) x.disabled = !live();
    why.hidden = live();
    error.textContent = stuck;
    error.hidden = !stuck;
    drawRun(picture, curve, model.get('earlier'), referenceLines);
    const below = last[1] < referenceLines.unigram;
    told.textContent =
      `At the last validation, after ${grouped(last[0])} tokens, the validation perplexity is ${show(ppl(last[1]))}, ` +
      `${below ? 'below' : 'above'} the unigram’s ${show(ppl(referenceLines.unigram))}` +
      ('source' in referenceLines ? `; the source itself has ${show(ppl(referenceLines.source))}` : '') +
      (stuck || running || curve.step
        ? `. At step ${grouped(curve.step)} it ${stuck ? 'cannot go on' : running ? 'is running' : 'stands still'}.`
        : '. Nothing has been learnt yet.');
    const now = performance.now();
    if (running && now - tell.at < WORDS) return; // a sentence at each step would be too much for a screen reader
    tell.at = now;
    spoken.textContent = told.textContent;
  }, ['curve', 'earlier', 'reference_lines', 'running', 'error', 'pong']);
}
export default { render };
