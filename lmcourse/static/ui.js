// What all widgets share: elements, numbers as people read them, and a frame with undo, reset and a sentence on the
// state, which a screen reader reads out.

export function make(tag, attributes = {}, ...children) {
  const svg = ['svg', 'path', 'rect', 'line', 'text', 'g', 'circle', 'polyline'].includes(tag);
  const node = svg ? document.createElementNS('http://www.w3.org/2000/svg', tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null) node.setAttribute(name, value === true ? '' : value);
  }
  // otherwise JupyterLab would take the arrow keys
  if (['input', 'button', 'select', 'textarea'].includes(tag)) node.setAttribute('data-lm-suppress-shortcuts', 'true');
  node.append(...children);
  return node;
}

// About three digits: 1.99, 43.2, 148; then thousands with commas. What rounds to zero is shown as zero, with no sign.
export function show(x) {
  if (!Number.isFinite(x)) return '∞';
  if (Math.abs(x) < 0.005) x = 0;
  if (x >= 1e6)
    return x.toExponential(2).replace(/e\+(\d+)/, (_, n) => ' × 10' + [...n].map(d => '⁰¹²³⁴⁵⁶⁷⁸⁹'[d]).join(''));
  return x.toLocaleString(
    'en-GB',
    x < 9.995
      ? { minimumFractionDigits: 2, maximumFractionDigits: 2 }
      : x < 99.95
        ? { minimumFractionDigits: 1, maximumFractionDigits: 1 }
        : { maximumFractionDigits: 0 },
  );
}

export const percent = p => (p > 0 && p < 0.01 ? '<1%' : `${Math.round(100 * p)}%`);

// A number on the page: written for people, with all its digits in data-value.
export const number = name => make('output', { class: 'lmw-number', 'data-name': name });
export function put(node, value) {
  node.textContent = show(value);
  node.dataset.value = value;
}
// The same for a number that there may not be: then the node shows a dash, and has no name.
export function offer(node, name, value) {
  if (value === undefined) {
    node.textContent = '–';
    delete node.dataset.name;
    delete node.dataset.value;
  } else {
    node.dataset.name = name;
    put(node, value);
  }
}

// A labelled number, with a word on its unit beneath.
export function figure(label, node, unit, kind = '') {
  return make(
    'div',
    { class: `lmw-figure ${kind}` },
    make('span', { class: 'lmw-label' }, label),
    node,
    make('span', { class: 'lmw-unit' }, unit),
  );
}

export const button = (text, onclick, more = {}) =>
  make('button', { type: 'button', class: 'lmw-button', onclick, ...more }, text);

// A name that no other widget of the page has: each brings its own copy of this script, so counting would give the same
// numbers twice.
export const unique = kind => `lmw-${kind}-${Math.random().toString(36).slice(2)}`;

// Native radio buttons as a row of choices; `chosen` is told the value.
export function choice(legend, options, chosen) {
  const name = unique('choice');
  const inputs = Object.entries(options).map(([value, text]) => {
    const input = make('input', { type: 'radio', name, value, onchange: () => chosen(value) });
    return [input, make('label', { class: 'lmw-choice' }, input, make('span', {}, text))];
  });
  const field = make(
    'fieldset',
    { class: 'lmw-choices' },
    make('legend', {}, legend),
    ...inputs.map(([, label]) => label),
  );
  return {
    field,
    set: value =>
      inputs.forEach(([input]) => {
        input.checked = input.value === value;
      }),
  };
}

// A native slider; `moved` is told the number.
export function slider(label, { min, max, step, name }, moved) {
  const input = make('input', {
    type: 'range',
    class: 'lmw-slider',
    min,
    max,
    step,
    'data-name': name,
    'aria-label': label,
  });
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
// `keys` names the traits that the reader may change. Gives edit(values) for one change of a gesture, and
// run(draw, others) to start, where `others` names further traits that the picture depends on.
export function frame({ model, el }, { kind, title, notice, keys }) {
  const past = [];
  const state = () => Object.fromEntries(keys.map(k => [k, model.get(k)]));
  let moving = false;
  const write = values => {
    for (const [k, v] of Object.entries(values)) model.set(k, v);
    model.save_changes();
  };
  const edit = values => {
    if (!moving) {
      past.push(state());
      moving = true;
    }
    write(values);
  };
  const done = () => {
    moving = false;
    if (past.length && JSON.stringify(past.at(-1)) === JSON.stringify(state())) past.pop();
    undo.disabled = !past.length;
  };
  const undo = button(
    'Undo',
    () => {
      moving = false;
      if (past.length) write(past.pop());
      undo.disabled = !past.length;
    },
    { 'data-name': 'undo', disabled: true },
  );
  const reset = button(
    'Reset',
    () => {
      edit(model.get('initial_state'));
      done();
    },
    { 'data-name': 'reset' },
  );
  const body = make('div', { class: 'lmw-body' });
  const told = make('p', { class: 'lmw-told', role: 'status', 'aria-live': 'polite' });
  const root = make(
    'section',
    { class: `lmw lmw-${kind}`, 'aria-label': title, onchange: done },
    make(
      'header',
      { class: 'lmw-head' },
      make('span', { class: 'lmw-title' }, title),
      make('span', { class: 'lmw-tools' }, undo, reset),
    ),
    body,
    told,
    make('p', { class: 'lmw-notice' }, make('b', {}, 'Notice: '), notice),
  );
  el.append(root);
  const run = (draw, others = []) => {
    let asked = false;
    const later = () => {
      if (!asked) {
        asked = true;
        queueMicrotask(() => {
          asked = false;
          draw();
        });
      }
    };
    for (const k of [...keys, ...others]) model.on(`change:${k}`, later);
    const seen = new ResizeObserver(later);
    seen.observe(root);
    draw();
    return () => {
      seen.disconnect();
      for (const k of [...keys, ...others]) model.off(`change:${k}`, later);
    };
  };
  return { root, body, told, edit, done, run };
}

// Whether a kernel is there: Python answers a ping with the same word. Ask again at each drawing; draw when `pong`
// changes.
export function pingKernel(model) {
  const word = Math.random().toString(36).slice(2);
  model.set('ping', word);
  model.save_changes();
  return () => model.get('pong') === word;
}

// A native list to choose from; `chosen` is told the text. What is not in the list shows as its last entry.
export function menu(label, options, other, chosen) {
  const node = make(
    'select',
    {
      class: 'lmw-menu',
      'aria-label': label,
      'data-name': 'texts',
      onchange: () => {
        if (node.selectedIndex < options.length) chosen(options[node.selectedIndex]);
      },
    },
    ...options.map(text => make('option', {}, text)),
    make('option', { hidden: true }, other),
  );
  return {
    node,
    set: text => {
      const i = options.indexOf(text);
      node.selectedIndex = i < 0 ? options.length : i;
    },
  };
}

// A field for a text of one's own, and a button; Enter does the same. `given` is told the text, once it is neither
// empty nor too long.
export function writing(maxChars, given) {
  const needs =
    'A text of your own needs a model behind this page, as in JupyterLab; the prepared ones work everywhere.';
  const field = make('textarea', {
    class: 'lmw-writing',
    rows: 2,
    'data-name': 'typed',
    'aria-label': 'A text of your own',
    spellcheck: 'false',
    disabled: true,
  });
  const why = make('p', { class: 'lmw-why', role: 'alert' });
  let was;
  const send = () => {
    const text = field.value.toWellFormed?.() ?? field.value;
    const letters = [...text].length;
    why.hidden = Boolean(text.trim()) && letters <= maxChars;
    if (why.hidden) given(text);
    else
      why.textContent = text.trim()
        ? `At most ${maxChars} characters can be looked at one by one, ` +
          `this text has ${letters.toLocaleString('en-GB')}: take a piece of it.`
        : 'Type a word at least.';
  };
  const submit = button('Score', send, { 'data-name': 'score', disabled: true });
  field.addEventListener('keydown', e => {
    if (e.key === 'Enter' && !e.shiftKey) {
      e.preventDefault();
      send();
    }
  });
  return {
    parts: [make('div', { class: 'lmw-typed' }, field, submit), why],
    set(text, live) {
      if (text !== was) field.value = was = text; // what is being typed stays until another text is scored
      if (!live) {
        why.textContent = needs;
        why.hidden = false;
      } else if (why.textContent === needs) {
        why.textContent = '';
        why.hidden = true;
      }
      field.disabled = submit.disabled = !live;
    },
  };
}

// Tokens in a row, the darker the dearer; with `chosen` they can be picked by a click or by the arrow keys.
export function strip(label, shade, chosen) {
  const id = unique('strip');
  const node = make('div', {
    class: 'lmw-strip',
    ...(chosen
      ? { role: 'listbox', tabindex: 0, 'aria-orientation': 'horizontal', 'data-lm-suppress-shortcuts': 'true' }
      : { role: 'img' }),
  });
  let spans = [];
  let at = 0;
  let shown = '';
  if (chosen) {
    node.addEventListener('click', e => {
      const i = spans.indexOf(e.target.closest('.lmw-token'));
      if (i >= 0) chosen(i);
    });
    node.addEventListener('keydown', e => {
      const to = {
        ArrowLeft: at - 1,
        ArrowRight: at + 1,
        ArrowUp: at - 1,
        ArrowDown: at + 1,
        Home: 0,
        End: spans.length - 1,
      }[e.key];
      if (to === undefined) return;
      e.preventDefault();
      e.stopPropagation();
      chosen(Math.max(0, Math.min(spans.length - 1, to)));
    });
  }
  return {
    node,
    set(pieces, nats, now) {
      const key = JSON.stringify([pieces, nats]);
      if (key !== shown) {
        shown = key;
        spans = pieces.map((p, i) =>
          make(
            'span',
            {
              class: 'lmw-token',
              'data-shade': shade(nats[i]),
              title: `${show(nats[i])} nats`,
              ...(chosen ? { role: 'option', id: `${id}-${i}`, 'aria-label': `${p}: ${show(nats[i])} nats` } : {}),
            },
            p,
          ),
        );
        node.replaceChildren(...spans);
        node.setAttribute(
          'aria-label',
          chosen ? label : `${label}: ` + pieces.map((p, i) => `${p.trim()} ${show(nats[i])}`).join(', '),
        );
      }
      if (!chosen) return;
      at = now;
      spans.forEach((s, i) => {
        s.setAttribute('aria-selected', i === at);
      });
      node.setAttribute('aria-activedescendant', `${id}-${at}`);
    },
  };
}
export const shades = () =>
  make(
    'div',
    { class: 'lmw-shades', 'aria-hidden': 'true' },
    'nats ',
    ...[0, 1, 2, 3, 4, 5, 6, 7].map(k => make('span', { class: 'lmw-token', 'data-shade': k }, k < 7 ? k : '7 +')),
  );
