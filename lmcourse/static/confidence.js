// Confidence: the bars of a next-word distribution as sliders, and what they cost.
import { entropy, crossEntropy, klDivergence, perplexity, temper, withShare } from './core.js';
import { make, show, percent, number, put, figure, slider, place, unique, frame } from './ui.js';

function render({ model, el }) {
  const words = model.get('words');
  const T = () => model.get('temperature');
  const shown = () => temper(model.get('predicted'), T());
  const { body, told, edit, run } = frame(
    { model, el },
    {
      kind: 'confidence',
      title: 'How sure to be',
      keys: ['predicted', 'true_probs', 'target', 'temperature'],
      notice:
        'no bars do better in the long run than those that end at the marks; being sure is cheap ' +
        'when the word comes, and dear when it does not.',
    },
  );
  const group = unique('target');
  const rows = words.map((word, i) => {
    const bar = slider(
      `Predicted probability of ${word}`,
      { min: 0, max: 1, step: 0.01, name: `predicted-${i}` },
      share => edit({ predicted: temper(withShare(shown(), i, share), 1 / T()) }),
    );
    const radio = make('input', {
      type: 'radio',
      name: group,
      'aria-label': `${word} was observed`,
      'data-name': `target-${i}`,
      onchange: () => edit({ target: word }),
    });
    const fill = make('div', { class: 'lmw-fill' });
    const tick = make('div', { class: 'lmw-tick' });
    const share = make('span', { class: 'lmw-share' });
    const row = make(
      'div',
      { class: 'lmw-row' },
      make('label', { class: 'lmw-word' }, radio, word),
      make('div', { class: 'lmw-bar' }, fill, tick, bar),
      share,
    );
    return { bar, radio, fill, tick, share, row };
  });
  const heat = slider('Temperature', { min: 0.1, max: 3, step: 0.05, name: 'temperature' }, temperature =>
    edit({ temperature }),
  );
  const degree = make('span', { class: 'lmw-share' });
  const of = Object.fromEntries(
    [
      'surprise',
      'surprise_perplexity',
      'entropy',
      'entropy_perplexity',
      'cross_entropy',
      'perplexity',
      'floor',
      'kl',
    ].map(n => [n, number(n)]),
  );
  const floor = make('div', { class: 'lmw-floor' });
  const extra = make('div', { class: 'lmw-extra' });
  const line = (label, nats, doors, kind) =>
    make('tr', { class: kind }, make('th', { scope: 'row' }, label), make('td', {}, nats), make('td', {}, doors));
  const targetLabel = make('span');
  const unit = t => make('th', { scope: 'col' }, t);
  body.append(
    make(
      'div',
      { class: 'lmw-hint' },
      'observed',
      make('span', {}, 'drag a bar: the others make room; a mark shows how often the word really comes'),
    ),
    ...rows.map(r => r.row),
    make('div', { class: 'lmw-row lmw-heat' }, make('span', { class: 'lmw-word' }, 'temperature'), heat, degree),
    make(
      'table',
      { class: 'lmw-table' },
      make('thead', {}, make('tr', {}, make('td', {}), unit('nats'), unit('doors'))),
      make(
        'tbody',
        {},
        line(targetLabel, of.surprise, of.surprise_perplexity, 'lmw-target'),
        line('the model’s own entropy', of.entropy, of.entropy_perplexity, ''),
        line('in the long run: cross-entropy', of.cross_entropy, of.perplexity, 'lmw-sum'),
      ),
    ),
    make('div', { class: 'lmw-stack', 'aria-hidden': 'true' }, floor, extra),
    make(
      'div',
      { class: 'lmw-legend' },
      make('span', { class: 'lmw-key-floor' }, 'entropy of the language ', of.floor),
      make('span', { class: 'lmw-key-extra' }, 'divergence (KL) ', of.kl),
    ),
  );

  return run(() => {
    const p = shown();
    const q = model.get('true_probs');
    const target = words.indexOf(model.get('target'));
    const surprise = crossEntropy(
      words.map((_, i) => Number(i === target)),
      p,
    );
    const own = entropy(p);
    const least = entropy(q);
    const kl = klDivergence(q, p);
    const cost = crossEntropy(q, p);
    put(of.surprise, surprise);
    put(of.surprise_perplexity, perplexity(surprise, 1));
    put(of.entropy, own);
    put(of.entropy_perplexity, perplexity(own, 1));
    put(of.cross_entropy, cost);
    put(of.perplexity, perplexity(cost, 1));
    put(of.floor, least);
    put(of.kl, kl);
    rows.forEach((r, i) => {
      place(r.bar, p[i], `${percent(p[i])}; it really comes in ${percent(q[i])}`);
      r.bar.dataset.value = p[i];
      r.fill.style.width = `${100 * p[i]}%`;
      r.tick.style.left = `${100 * q[i]}%`;
      r.share.textContent = percent(p[i]);
      r.radio.checked = i === target;
      r.row.classList.toggle('lmw-it', i === target);
    });
    place(heat, T(), `${T().toFixed(2)}`);
    degree.textContent = T().toFixed(2);
    targetLabel.textContent = `surprisal at “${words[target]}”`;
    const full = Math.max(3, Number.isFinite(cost) ? cost : 0);
    floor.style.width = `${(100 * least) / full}%`;
    extra.style.width = Number.isFinite(cost) ? `${(100 * kl) / full}%` : `${100 - (100 * least) / full}%`;
    extra.classList.toggle('lmw-infinite', !Number.isFinite(cost));
    told.textContent =
      `The model gave “${words[target]}” ${percent(p[target])}, a surprisal of ${show(surprise)} nats. ` +
      (Number.isFinite(cost)
        ? `Over many texts it would pay ${show(cost)} nats a word, ${show(perplexity(cost, 1))} doors, ` +
          `of which ${show(kl)} nats for predicting the wrong probabilities.`
        : 'Over many texts the cost is infinite: a word that does occur has probability zero.');
  });
}
export default { render };
