// All the arithmetic of the widgets. Probabilities sum to one, surprisal is in nats, and the names are those of
// lmcourse.measure.cross_entropy and lmcourse.measure.perplexity, against which the tests compare every function.

const sum = xs => xs.reduce((a, b) => a + b, 0);
const xlogy = (x, y) => (x === 0 ? 0 : x * Math.log(y));

export function softmax(logits) {
  const largest = Math.max(...logits);
  const exps = logits.map(x => Math.exp(x - largest));
  const total = sum(exps);
  return exps.map(x => x / total);
}

export const entropy = q => -sum(q.map(x => xlogy(x, x)));
export const crossEntropy = (q, p) => -sum(q.map((x, i) => xlogy(x, p[i])));
export const klDivergence = (q, p) => sum(q.map((x, i) => xlogy(x, x) - xlogy(x, p[i])));

export const perplexity = (nats, tokens) => Math.exp(nats / tokens);
export const bitsPerToken = (nats, tokens) => nats / tokens / Math.LN2;
export const bitsPerByte = (nats, bytes) => bitsPerToken(nats, bytes);

// Temperature: logarithms divided by it, softmax again. One changes nothing, less sharpens, more flattens.
export const temper = (p, temperature) => softmax(p.map(x => Math.log(x) / temperature));

// Give word i its probability, and let the others keep their proportions; where they had nothing, they divide the rest
// evenly.
export function withShare(p, i, share) {
  const rest = sum(p.filter((_, j) => j !== i));
  return p.map((x, j) => (j === i ? share : rest > 0 ? (x / rest) * (1 - share) : (1 - share) / (p.length - 1)));
}

// One number out of batches: sum, divide once, exponentiate; or too early, in two ways.
export function averages(tokens, losses) {
  const nats = sum(tokens.map((n, i) => n * losses[i]));
  return {
    perplexity: perplexity(nats, sum(tokens)),
    mean_loss: Math.exp(sum(losses) / losses.length),
    mean_perplexity: sum(losses.map(Math.exp)) / losses.length,
  };
}

// Perplexity of the first token, of the first two, and so on.
export function running(nats) {
  let total = 0;
  return nats.map((x, i) => perplexity((total += x), i + 1));
}

// How dark a token is drawn: one step for each whole nat, the last for seven and more.
export const shade = nats => (nats < 7 ? Math.floor(nats) : 7);
