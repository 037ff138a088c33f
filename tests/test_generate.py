"""Generation: each rule against a case worked out by hand, one text for a prompt and a seed whatever is beside it and
however it is read, and a context that is never overrun."""

import math
from contextlib import closing
from itertools import islice

import numpy as np
import pytest
import torch
from architectures import MODELS, V
from torch import nn

from lmcourse.data.tokens import WordTokenizer, train_bpe, train_whitespace
from lmcourse.inference.generate import (
    GenerateError,
    Generation,
    SamplingConfig,
    distinct_1,
    generate,
    generate_ids,
    generate_stream,
    greedy,
    min_p,
    prompt_ids,
    repetition_penalty,
    sample_from_logits,
    seq_rep_n,
    temperature,
    token_nats,
    top_k,
    top_p,
)
from lmcourse.models.context import window_start
from lmcourse.models.recurrent import RecurrentConfig
from lmcourse.models.transformer import TransformerConfig

DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU here'))]
INF = math.inf
P = torch.tensor([0.15, 0.40, 0.01, 0.25, 0.10, 0.05, 0.03, 0.01], dtype=torch.float64)
kept = lambda x: x.isfinite().nonzero().flatten().tolist()

MODELS = MODELS | {
    'rotary': (
        lambda: TransformerConfig(
            16, 2, 32, 2, 15, positions='rotary', norm='rms', activation='swiglu', qk_norm=True
        ).build(V)
    ),
    'one': lambda: TransformerConfig(16, 2, 32, 1, 1).build(V),
}
HOW = [
    SamplingConfig(0),
    SamplingConfig(),
    SamplingConfig(0.8, top_p=0.9, penalty=1.3),
    SamplingConfig(1.2, top_k=20, min_p=0.1),
]
PROMPTS = [[5, 6, 7], [], list(range(2, 32)), [9] * 8]  # the third is longer than any context here


def built(name, device='cpu'):
    "A model with predictions far from even, so that nothing hangs on how a sum is rounded."
    torch.manual_seed(0)
    model = MODELS[name]().to(device)
    with torch.no_grad():
        model.lm_head.weight.mul_(3)
        model.lm_head.bias.copy_(torch.randn(V))
    return model.train()


def take(n, *args, **kwargs):
    with closing(generate_ids(*args, **kwargs)) as steps:
        return list(islice(steps, n))


def texts(model, prompts, n, how, seed):
    "n tokens for each prompt: (ids, nats)."
    rows = [[] for _ in prompts]
    with closing(generate_ids(model, prompts, 1, how, seed)) as steps:
        while any(len(row) < n for row in rows):
            for row, one in zip(rows, next(steps)):
                row += [one] * bool(one)
    return [tuple(map(list, zip(*row[:n]))) for row in rows]


# the rules


def test_a_throw_hits_as_often_as_the_word_is_wide():
    u = (torch.arange(1000) + 0.5) / 1000
    assert sample_from_logits(P.log().expand(1000, -1), u).bincount(minlength=8).tolist() == pytest.approx(
        (P * 1000).tolist(), abs=1.01
    )
    for low in (0.0, 1 - 2**-53):  # the ends of the bar belong to words that are possible
        assert sample_from_logits(
            torch.tensor([-INF, 1.0, 1.0, -INF]), torch.tensor(low, dtype=torch.float64)
        ).item() == (1 if low == 0 else 2)
    wide = torch.randn(3, 50_000, generator=torch.Generator().manual_seed(0))
    assert sample_from_logits(top_k(wide, 2), torch.full((3,), 1 - 2**-53, dtype=torch.float64)).tolist() == [
        max(kept(x)) for x in top_k(wide, 2)
    ]


def test_temperature_by_hand():
    for t in (0.5, 1, 2, 0.1):
        torch.testing.assert_close(temperature(P.log() + 7, t).softmax(0), P ** (1 / t) / (P ** (1 / t)).sum())
    assert kept(temperature(P.log(), 0)) == [1] and kept(temperature(torch.tensor([1.0, 3, 3]), 0)) == [1] == [
        greedy(torch.tensor([1.0, 3, 3])).item()
    ]
    assert (
        temperature(P.log(), 1e-300).softmax(0).tolist() == temperature(P.log(), 0).softmax(0).tolist()
        and temperature(P.log(), 1e9).softmax(0).std() < 1e-6
    )


@pytest.mark.parametrize(
    'rule, value, stay',
    [
        (top_k, 1, [1]),
        (top_k, 3, [0, 1, 3]),
        (top_k, 7, list(range(8))),
        (top_k, 100, list(range(8))),
        (top_p, 0.39, [1]),
        (top_p, 0.41, [1, 3]),
        (top_p, 0.66, [0, 1, 3]),
        (top_p, 0.85, [0, 1, 3, 4]),
        (top_p, 1e-9, [1]),
        (top_p, 1, list(range(8))),
        (min_p, 1, [1]),
        (min_p, 0.3, [0, 1, 3]),
        (min_p, 0.1, [0, 1, 3, 4, 5]),
        (min_p, 1e-9, list(range(8))),
    ],
)
def test_what_stays(rule, value, stay):
    """Top-k keeps what is equal to the last; what stays keeps its proportions; rows of a batch do not mix; the order of
    the types is of no importance."""
    x, order = rule(P.log() + 2, value), torch.randperm(8, generator=torch.Generator().manual_seed(1))
    assert kept(x) == stay
    torch.testing.assert_close(x.softmax(0)[stay], P[stay] / P[stay].sum())
    both = torch.stack([P.log(), P.log()[order], torch.zeros(8, dtype=torch.float64)])
    for row, alone in zip(rule(both, value), both):
        assert torch.equal(row, rule(alone, value))


def test_equals_are_treated_alike_where_they_can_be():
    even = torch.zeros(6)
    assert (
        kept(top_k(even, 2)) == kept(min_p(even, 1)) == list(range(6))
        and kept(top_p(even, 0.5)) == [0, 1, 2]
        and kept(temperature(even, 0)) == [0]
    )


def test_the_penalty_divides_what_is_positive_and_multiplies_what_is_negative():
    x = torch.tensor([2.0, 1.0, -1.0, -INF, 0.0])
    assert (
        repetition_penalty(x, [2, 0, 3, 0, 4], 2.0).tolist() == [1, 1, -2, -INF, 0]
        and repetition_penalty(x, [], 9.0).tolist() == repetition_penalty(x, [0, 2], 1.0).tolist() == x.tolist()
    )
    assert repetition_penalty(x, [0], 0.5).tolist()[:2] == [4, 1] and x.tolist()[0] == 2


def test_rules_follow_one_another():
    "Penalty, temperature, top-k, top-p, min-p; another order gives another answer."
    x = P.log()[None] + 2
    got = SamplingConfig(2.0, 5, 0.7, 0.5, 1.5)(x, [[1, 1, 3]])[0]
    want = min_p(top_p(top_k(temperature(repetition_penalty(x[0], [1, 3], 1.5), 2.0), 5), 0.7), 0.5)
    torch.testing.assert_close(got, want)
    assert kept(top_p(temperature(x[0], 2), 0.5)) != kept(temperature(top_p(x[0], 0.5), 2))
    assert torch.equal(SamplingConfig()(x, [[]]).softmax(-1), temperature(x, 1.0).softmax(-1)) and kept(
        SamplingConfig(0, 3, 0.5, 0.1, 1.0)(x, [[]])[0]
    ) == [1]
    assert [
        str(s)
        for s in (
            SamplingConfig(),
            SamplingConfig(0),
            SamplingConfig(0.7, top_p=0.9),
            SamplingConfig(top_k=40),
            SamplingConfig(0, penalty=1.2),
        )
    ] == ['temperature 1', 'greedy', 'temperature 0.7, top-p 0.9', 'top-k 40', 'greedy, penalty 1.2']


@pytest.mark.parametrize(
    'wrong, told',
    [
        (dict(temperature=-1), '0 or more'),
        (dict(temperature=INF), '0 or more'),
        (dict(temperature=math.nan), '0 or more'),
        (dict(top_k=0), 'at least one'),
        (dict(top_k=-3), 'at least one'),
        (dict(top_p=0), r'\(0, 1\], got 0'),
        (dict(top_p=1.01), r'\(0, 1\]'),
        (dict(min_p=0), r'\(0, 1\]'),
        (dict(min_p=2), r'\(0, 1\]'),
        (dict(penalty=0), 'above 0'),
        (dict(penalty=math.nan), 'above 0'),
    ],
)
def test_numbers_that_no_rule_can_follow(wrong, told):
    with pytest.raises(GenerateError, match=told) as e:
        SamplingConfig(**wrong)
    assert '\n' not in str(e.value)


# the loop


@torch.no_grad()
def slowly(model, prompt, n, how, seed):
    "What `generate_ids` should give for one prompt: everything in the window read anew for each token."
    text, rng, out, device = [1, *prompt], torch.Generator().manual_seed(seed), [], model.lm_head.weight.device
    for _ in range(n):
        x = text[window_start(len(text), model.context_length) :]
        logits = model.lm_head(model.eval()(torch.tensor([x], device=device), None)[0])[:, -1].float().cpu()
        i = sample_from_logits(how(logits, [text[1:]]), torch.rand(1, generator=rng, dtype=torch.float64)).item()
        out.append((i, -float(logits[0].double().log_softmax(-1)[i])))
        text.append(i)
    return tuple(map(list, zip(*out)))


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('how', HOW, ids=str)
@pytest.mark.parametrize('name', MODELS)
def test_one_text_however_it_is_read(name, how, device):
    """Prompts of different lengths together, one by one, and with nothing kept: the same tokens and surprises; and the
    surprises are those of somebody who reads the text."""
    model, seeds = built(name, device), [3, 4, 5, 6]
    together = texts(model, PROMPTS, 45, how, seeds)
    assert model.training
    for prompt, seed, (ids, nats) in zip(PROMPTS, seeds, together):
        [(alone, _)] = texts(model, [prompt], 45, how, seed)
        anew, costs = slowly(model, prompt, 45, how, seed)
        assert ids == alone == anew and nats == pytest.approx(costs, abs=1e-4)
        assert token_nats(model, prompt + ids, 1)[len(prompt) :] == pytest.approx(nats, abs=1e-4)
    assert len(set(map(str, together))) > 1


def test_the_same_seed_whoever_is_beside():
    model = built('lstm')
    a, b, c = (texts(model, ps, 20, SamplingConfig(), 7)[0][0] for ps in ([[3]], [[3], [4, 4], []], [[3], [3]]))
    assert a == b == c and texts(model, [[3]], 20, SamplingConfig(), 8)[0][0] != a
    same, other = texts(model, [[3], [3]], 20, SamplingConfig(), [7, 8])
    assert same[0] == a != other[0]
    torch.manual_seed(99)
    torch.rand(5)
    assert texts(model, [[3]], 20, SamplingConfig(), 7)[0][0] == a  # nobody else's random numbers


class Told(nn.Module):
    "A model that notes what it is given to read."

    def __init__(self, model):
        super().__init__()
        self.model, self.lm_head, self.context_length, self.read = model, model.lm_head, model.context_length, []

    def forward(self, x_BT, state=None):
        self.read.append((x_BT.tolist(), state is not None))
        assert not self.model.training
        return self.model(x_BT, state)


def test_what_is_read():
    "The shortest prompt's length at once, then token by token; the others are fed their prompts; nothing twice."
    model = Told(built('lstm'))
    prompts = [[11, 12], [21, 22, 23, 24]]
    steps = take(4, model, prompts, 1, SamplingConfig(), 0)
    a = [s[0][0] for s in steps]
    assert [s[1] is None for s in steps] == [True, True, False, False]
    assert model.read == [
        ([[1, 11, 12], [1, 21, 22]], False),
        ([[a[0]], [23]], True),
        ([[a[1]], [24]], True),
        ([[a[2]], [steps[2][1][0]]], True),
    ]


@pytest.mark.parametrize('name, context', [('decoder', 16), ('rotary', 15), ('one', 1)])
def test_a_context_is_never_overrun(name, context):
    "The model itself refuses more than it can hold; and it is read anew only when it is full."
    model = Told(built(name))
    texts(model, [list(range(2, 32))], 60, SamplingConfig(), 0)
    anew = [len(x[0]) for x, kept in model.read if not kept]
    half = max(1, context // 2)
    assert (
        max(anew) <= context
        and anew[1:] == [half] * (len(anew) - 1)
        and sum(len(x[0]) for x, _ in model.read) <= context + 60 + len(anew) * half
    )
    short = Told(built(name))
    texts(short, [[]], context, SamplingConfig(), 0)
    assert sum(len(x[0]) for x, _ in short.read) == context  # with room enough nothing is read twice


def test_a_text_begins_after_its_first_id():
    model = Told(built('lstm'))
    take(1, model, [[]], 1)
    assert model.read == [([[1]], False)]
    one, two = (take(1, built('lstm'), [[]], first, SamplingConfig(0))[0][0][1] for first in (1, 2))
    assert one != two


def test_a_writer_that_is_left_puts_the_model_back():
    model = built('lstm')
    steps = generate_ids(model, [[]], 1)
    next(steps)
    assert not model.training
    steps.close()
    assert model.training
    with pytest.raises(IndexError):
        take(1, model, [[V + 3]], 1)
    assert model.training and torch.is_grad_enabled()


@pytest.mark.parametrize('name', ['chinchilla-1', 'chinchilla-4', 'lstm-tuned', 'awd-lstm', 'gru-b'])
def test_recipes_write(name):
    from lmcourse.training.recipes import get_recipe, tiny

    torch.manual_seed(0)
    model = tiny(get_recipe(name)).model.build(V)
    [(ids, nats)] = texts(model, [[3, 4]], 100, SamplingConfig(top_p=0.9), 0)
    assert len(ids) == 100 and all(0 <= i < V for i in ids) and all(n > 0 for n in nats)


# in words

ROWS = [
    'the cat sat on the mat , and the dog sat on the cat .\n',
    'a naïve café in Łódź – “quite” so .\n',
    'the mat was on the floor .\n',
] * 4
WORDS = WordTokenizer(['<unk>', '<eos>', *dict.fromkeys(' '.join(ROWS).split())])


@pytest.fixture(scope='module')
def tokenizers():
    return {'word': WORDS, 'whitespace': train_whitespace(ROWS, 1), 'bpe': train_bpe(ROWS, 270)}


def lm(tokenizer):
    torch.manual_seed(0)
    return RecurrentConfig('lstm', 16, 16, 1).build(tokenizer.vocab_size)


@pytest.mark.parametrize('kind', ['word', 'whitespace', 'bpe'])
def test_texts_grow_and_are_never_taken_back(kind, tokenizers):
    "One token more at each step; what was shown stays, but for letters of which some bytes are missing."
    t, before, counts = tokenizers[kind], '', []
    for rows in generate_stream(lm(t), t, 'the cat', 60, SamplingConfig(), 1):
        [w] = rows
        counts.append(w.num_tokens)
        shown = w.text.rstrip('\ufffd')
        assert shown.startswith(before) and w.text.startswith('the cat')
        before = shown
    assert counts == list(range(1, 61)) and w.perplexity == pytest.approx(math.exp(sum(w.nats) / 60))
    if kind != 'bpe':
        assert w.text.split()[:3] == ['the', 'cat', *t.convert_ids_to_tokens(w.ids[:1])] or w.ids[0] == t.bos_id


def test_words_meet_as_they_should(tokenizers):
    w, b = WORDS, tokenizers['bpe']
    end = w.bos_id
    text = lambda t, prompt, ids: Generation(t, prompt, ids).text
    cat = w.encode('cat sat')
    assert [text(w, p, cat) for p in ('the', 'the ', '', 'the\n')] == [
        'the cat sat',
        'the cat sat',
        'cat sat',
        'the\ncat sat',
    ]
    assert (
        text(w, 'the', [end, *cat]) == 'the\ncat sat'
        and text(w, 'the', []) == 'the'
        and text(b, 'the', b.encode(' cat')) == 'the cat'
        and text(b, 'the c', b.encode('at')) == 'the cat'
    )
    assert text(tokenizers['whitespace'], 'the', tokenizers['whitespace'].encode('cat sat')) == 'the cat sat'
    assert (
        prompt_ids(w, 'the cat\nsat\n') == [*w.encode('the cat'), end, *w.encode('sat'), end]
        and prompt_ids(w, '') == prompt_ids(b, '') == []
        and prompt_ids(w, '\n') == [end]
    )
    for p in ('the cat\nsat', 'a naïve café\n\n', ' Łódź'):
        assert b.decode(prompt_ids(b, p)) == p


def test_unknown_words_are_said(tokenizers):
    unknown = lambda t, p: Generation(t, p).unknown_words
    assert (
        unknown(WORDS, 'the xyzzy sat\non Mars') == ['xyzzy', 'Mars']
        and unknown(WORDS, 'the <unk> cat') == []
        and unknown(tokenizers['bpe'], 'xyzzy ☃') == []
        and 'xyzzy' in unknown(tokenizers['whitespace'], 'the xyzzy')
    )
    [w] = generate(lm(WORDS), WORDS, 'xyzzy', 3)
    assert w.text.startswith('xyzzy ') and w.unknown_words == ['xyzzy']


def test_an_end_ends_a_text():
    "Each row by itself, the end included; without being asked nothing ends."
    model, end = lm(WORDS), WORDS.bos_id
    with torch.no_grad():
        model.lm_head.bias[end] += 2
    rows = generate(model, WORDS, ['the', 'the cat sat', '', 'a'], 200, seed=range(4), end=end)
    assert (
        all(w.ids.count(end) == 1 and w.ids[-1] == end and w.num_tokens == len(w.nats) for w in rows)
        and len({w.num_tokens for w in rows}) > 1
    )
    long = generate(model, WORDS, ['the', 'the cat sat', '', 'a'], 200, seed=range(4))
    assert [w.num_tokens for w in long] == [200] * 4 and all(l.ids[: w.num_tokens] == w.ids for l, w in zip(long, rows))


def test_a_stream_waits_for_nobody():
    model = Told(lm(WORDS))
    words = generate_stream(model, WORDS, 'the cat', 1000)
    [w] = next(words)
    assert w.num_tokens == 1 and len(model.read) == 1
    words.close()
    assert len(model.read) == 1


@pytest.mark.parametrize(
    'wrong, told',
    [
        (dict(tokens=0), 'at least one token'),
        (dict(prompts=[]), 'no prompt'),
        (dict(prompts=['a', 'b'], seed=[1, 2, 3]), '3 seeds for 2 prompts'),
        (dict(seed=-1), 'from 0 on'),
        (dict(seed=2**64), 'from 0 on'),
    ],
)
def test_texts_that_cannot_be_written(wrong, told):
    with pytest.raises(GenerateError, match=told) as e:
        generate(lm(WORDS), WORDS, **wrong)
    assert '\n' not in str(e.value)


# what a text is worth


def test_repetition_and_types_by_hand():
    assert (
        seq_rep_n(list('abcdabcd')) == 1 / 5
        and seq_rep_n(list('aaaaaa')) == 2 / 3
        and seq_rep_n(list('abcdef')) == 0
        and seq_rep_n('a b a b'.split(), 2) == 1 / 3
        and seq_rep_n([1, 1], 1) == 1 / 2
    )
    assert distinct_1(list('abab')) == 1 / 2
    with pytest.raises(GenerateError, match='a text of 3 tokens has no 4-grams'):
        seq_rep_n([1, 2, 3])


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('name', MODELS)
def test_surprise_scores_each_token_once(name, device):
    model, ids = built(name, device), np.random.default_rng(0).integers(2, V, 70)
    nats = token_nats(model, ids, 1)
    assert len(nats) == 70 and model.training and token_nats(model, [], 1) == []
    with torch.no_grad():
        for at in (0, 1, 15, 16, 17, 40, 69):
            text = [1, *ids[:at].tolist()]
            x = torch.tensor([text[window_start(len(text), model.context_length) :]], device=device)
            want = -model.lm_head(model.eval()(x, None)[0][0, -1]).float().log_softmax(-1)[ids[at]]
            assert nats[at] == pytest.approx(float(want), abs=1e-4)


def test_greedy_is_never_more_surprised_than_a_throw():
    "At one place, the likeliest costs least; a cut costs less on the average than none."
    model = built('decoder')
    mean = {
        str(how): np.mean([n for _, nats in texts(model, [[]] * 30, 40, how, range(30)) for n in nats])
        for how in (SamplingConfig(0), SamplingConfig(top_p=0.7), SamplingConfig(), SamplingConfig(3.0))
    }
    a, b, c, d = mean.values()
    assert a < b < c < d


def test_scores_that_are_not_numbers_draw_nothing():
    "What a diverged model says has no likeliest token; an id outside the vocabulary is never drawn."
    with pytest.raises(GenerateError, match='not numbers'):
        sample_from_logits(torch.tensor([[0.0, math.nan, 1.0]]), torch.tensor([0.5]))
    assert int(sample_from_logits(torch.zeros(1, 3), torch.tensor([1.0]))) == 2
