// What all widgets share: elements, numbers as people read them, and a frame with undo, reset and a sentence for the eye and the ear.

export function make(tag, attributes = {}, ...children) {
  const svg = ['svg', 'path', 'rect', 'line', 'text', 'g'].includes(tag);
  const node = svg ? document.createElementNS('http://www.w3.org/2000/svg', tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null) node.setAttribute(name, value === true ? '' : value);
  }
  if (['input', 'button'].includes(tag)) node.setAttribute('data-lm-suppress-shortcuts', 'true');    // JupyterLab would take the arrow keys
  node.append(...children);
  return node;
}

// Three digits or so: 1.99, 43.2, 148; then thousands with commas. A nought that rounding left below nought is a nought.
export function show(x) {
  if (!Number.isFinite(x)) return '∞';
  if (Math.abs(x) < 0.005) x = 0;
  if (x >= 1e6) return x.toExponential(2).replace(/e\+(\d+)/, (_, n) => ' × 10' + [...n].map(d => '⁰¹²³⁴⁵⁶⁷⁸⁹'[d]).join(''));
  return x.toLocaleString('en-GB', x < 9.995 ? { minimumFractionDigits: 2, maximumFractionDigits: 2 } :
                                   x < 99.95 ? { minimumFractionDigits: 1, maximumFractionDigits: 1 } : { maximumFractionDigits: 0 });
}

export const percent = p => p > 0 && p < 0.01 ? '<1%' : `${Math.round(100 * p)}%`;

// A number on the page: written for people, with all its digits in data-value.
export const number = name => make('output', { class: 'lmw-number', 'data-name': name });
export function put(node, value) { node.textContent = show(value); node.dataset.value = value; }

// A labelled number, with a word on its unit beneath.
export function figure(label, node, unit, kind = '') {
  return make('div', { class: `lmw-figure ${kind}` }, make('span', { class: 'lmw-label' }, label), node, make('span', { class: 'lmw-unit' }, unit));
}

export const button = (text, onclick, more = {}) => make('button', { type: 'button', class: 'lmw-button', onclick, ...more }, text);

let count = 0;
// Native radio buttons as a row of choices; `chosen` is told the value.
export function choice(legend, options, chosen) {
  const name = `lmw-choice-${++count}`;
  const inputs = Object.entries(options).map(([value, text]) => {
    const input = make('input', { type: 'radio', name, value, onchange: () => chosen(value) });
    return [input, make('label', { class: 'lmw-choice' }, input, make('span', {}, text))];
  });
  const field = make('fieldset', { class: 'lmw-choices' }, make('legend', {}, legend), ...inputs.map(([, label]) => label));
  return { field, set: value => inputs.forEach(([input]) => { input.checked = input.value === value; }) };
}

// A native slider; `moved` is told the number.
export function slider(label, { min, max, step, name }, moved) {
  const input = make('input', { type: 'range', class: 'lmw-slider', min, max, step, 'data-name': name, 'aria-label': label });
  input.addEventListener('input', () => moved(Number(input.value)));
  return input;
}
// The slider's place, and what a screen reader says of it; a slider under the pointer is left where the hand holds it.
export function place(input, value, text) {
  if (Number(input.value) !== value) input.value = value;
  input.style.setProperty('--at', (Number(input.value) - input.min) / (input.max - input.min));
  input.setAttribute('aria-valuetext', text);
}

// Title, undo and reset, the widget's own parts, what to notice, and the state in a sentence.
// `keys` names the traits that the hand may change. Gives edit(values) for one change of a gesture, and run(draw) to start.
export function frame({ model, el }, { kind, title, notice, keys }) {
  const past = [], state = () => Object.fromEntries(keys.map(k => [k, model.get(k)]));
  let moving = false;
  const write = values => { for (const [k, v] of Object.entries(values)) model.set(k, v); model.save_changes(); };
  const edit = values => { if (!moving) { past.push(state()); moving = true; } write(values); };
  const done = () => {
    moving = false;
    if (past.length && JSON.stringify(past.at(-1)) === JSON.stringify(state())) past.pop();
    undo.disabled = !past.length;
  };
  const undo = button('Undo', () => { moving = false; if (past.length) write(past.pop()); undo.disabled = !past.length; }, { 'data-name': 'undo', disabled: true });
  const reset = button('Reset', () => { edit(model.get('start')); done(); }, { 'data-name': 'reset' });
  const body = make('div', { class: 'lmw-body' }), told = make('p', { class: 'lmw-told', role: 'status', 'aria-live': 'polite' });
  const root = make('section', { class: `lmw lmw-${kind}`, 'aria-label': title, onchange: done },
    make('header', { class: 'lmw-head' }, make('span', { class: 'lmw-title' }, title), make('span', { class: 'lmw-tools' }, undo, reset)),
    body, told, make('p', { class: 'lmw-notice' }, make('b', {}, 'Notice: '), notice));
  el.append(root);
  const run = draw => {
    let asked = false;
    const later = () => { if (!asked) { asked = true; queueMicrotask(() => { asked = false; draw(); }); } };
    for (const k of keys) model.on(`change:${k}`, later);
    const seen = new ResizeObserver(later);
    seen.observe(root);
    draw();
    return () => { seen.disconnect(); for (const k of keys) model.off(`change:${k}`, later); };
  };
  return { root, body, told, edit, done, run };
}
