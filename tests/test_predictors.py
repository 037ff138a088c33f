"Predictors that score and generate, and the models that travel with the course."

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lmcourse.data.text import Corpus, CorpusError, corpus_available, load_corpus
from lmcourse.data.tokens import TokenSplit, WordTokenizer, build_vocab, gpt2_available, tokenize_corpus, train_bpe
from lmcourse.errors import LMCourseError
from lmcourse.files import load_safetensors, read_json
from lmcourse.inference import predictors as G
from lmcourse.inference.generate import token_nats
from lmcourse.inference.predictors import (
    MAX_TOKENS,
    NeuralPredictor,
    NgramPredictor,
    PredictorError,
    encode_with_offsets,
    export_model,
    load_all_pretrained,
    load_pretrained,
    measurements,
    predictor_from_run,
)
from lmcourse.measure.perplexity import bits_per_byte, perplexity
from lmcourse.models.ngram import KneserNey, NgramError, Uniform, evaluate_ngram, from_state_dict, state_dict
from lmcourse.models.tied_rnn import TiedRNNConfig
from lmcourse.models.transformer import TransformerConfig
from lmcourse.training.checkpoint import load_named_weights
from lmcourse.training.recipes import get_recipe, override, recipe_from_dict, tiny
from lmcourse.training.trainer import evaluate, load_model, load_run, train

ROWS = [
    ' The cat sat on the mat . \n',
    '',
    ' The dog — “naïve” — sat , too . \n',
    ' = Cats = \n',
    'the end without a space\n',
    '日本 and\ttabs \n',
] * 30
TEXTS = ['The cat sat on the mat .', 'The', ' ', 'naïve 日本 🙂\nsecond line\n', 'a\n\n\nb', '\ttab', 'dog' * 40]


@pytest.fixture(scope='module')
def cats():
    return Corpus('wikitext-cats', dict(train=ROWS, validation=ROWS[:40], test=ROWS[40:60]))


@pytest.fixture(scope='module', params=['word', 'bpe:300', 'whitespace'])
def data(request, cats, tmp_path_factory):
    return tokenize_corpus(cats, request.param, min_count=1, cache=tmp_path_factory.mktemp('cache'))


def counting(data, order=2):
    return NgramPredictor(
        f'order {order}',
        data.tokenizer,
        KneserNey(order).fit(data.train.ids, data.vocab_size, data.tokenizer.bos_id),
        evaluate_ngram(KneserNey(order).fit(data.train.ids, data.vocab_size, data.tokenizer.bos_id), data.validation),
    )


def network(data, config=None):
    if config is None:
        config = TiedRNNConfig(embedding_dim=12, hidden_size=20, num_layers=2, num_sampled=0, zipf_bias_init=False)
    torch.manual_seed(1)
    model = config.build(data.vocab_size)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.4)
    return NeuralPredictor(
        'network',
        data.tokenizer,
        model,
        evaluate_ngram(KneserNey(1).fit(data.train.ids, data.vocab_size, data.tokenizer.bos_id), data.validation),
    )


# tokenizing and scoring


def test_a_text_is_cut_as_its_corpus_is(data, cats):
    "Row for row as encode_rows, and each token's characters are the token."
    text = ''.join(cats['train'])
    ids, offsets = encode_with_offsets(data.tokenizer, text)
    assert ids == data.tokenizer.encode_rows([r for r in cats['train'] if r]).tolist()
    assert (
        len(offsets) == len(ids)
        and all(0 <= a <= b <= len(text) for a, b in offsets)
        and all(x[1] <= y[1] for x, y in zip(offsets, offsets[1:]))
    )
    for piece, (a, b) in zip(data.tokenizer.convert_ids_to_tokens(ids), offsets):
        if '\\x' not in piece and piece not in ('<eos>', '<unk>'):
            assert text[a:b] == piece


@pytest.mark.skipif(not gpt2_available(), reason="GPT-2's tokenizer is not on this machine")
def test_gpt2_cuts_as_its_corpus(cats):
    from lmcourse.data.tokens import load_tokenizer

    t = load_tokenizer('gpt2')
    assert encode_with_offsets(t, ''.join(cats['train']))[0] == t.encode_rows([r for r in cats['train'] if r]).tolist()


@pytest.mark.parametrize('order', [0, 1, 2, 4])
def test_a_counting_reading_is_the_score(order, data, cats):
    "What each token costs sums to what `evaluate_ngram` says of the same text."
    model = (KneserNey(order) if order else Uniform()).fit(data.train.ids, data.vocab_size, data.tokenizer.bos_id)
    g = NgramPredictor('g', data.tokenizer, model, evaluate_ngram(model, data.validation))
    scored = g.score(text := ''.join(cats['validation'])[:400], top=3)
    ids, _ = encode_with_offsets(data.tokenizer, g.line(text))
    assert scored.nats_N == pytest.approx(model.nats(ids, g.before), rel=1e-12) and scored.nats == pytest.approx(
        model.nats(ids, g.before).sum(), rel=1e-12
    )
    assert scored.perplexity == perplexity(scored.nats, len(ids))
    if order:
        assert [t[0][1] for t in scored.top] == pytest.approx(
            [model.next_probs([g.before, *ids[:i]][-order:]).max() for i in range(len(ids))], rel=1e-12
        )
    else:
        assert not any(scored.top)


@pytest.mark.parametrize(
    'config',
    [
        TiedRNNConfig(embedding_dim=12, hidden_size=20, num_layers=2, num_sampled=0),
        TiedRNNConfig('gru', 12, 20, 1, zipf_bias_init=False),
    ],
)
def test_a_networks_reading_is_the_evaluation(config, data, cats):
    "And what each token costs a network sums to what `evaluate` says of the same text, in one lane."
    g, text = network(data, config), ''.join(cats['train'])
    ids, _ = encode_with_offsets(data.tokenizer, g.line(text))
    split = TokenSplit('validation', np.array(ids), len(text.encode()), 1, 0, 'x', 'cats', data.tokenizer)
    m, scored = evaluate(g.model, split, g.before, eval_batch_size=1), g.score(text)
    assert scored.num_tokens > 256, 'more than are scored in one go'
    assert scored.nats == pytest.approx(m.nats, rel=1e-5) and scored.perplexity == pytest.approx(m.perplexity, rel=1e-4)
    if not scored.num_unk and data.tokenizer.keeps_text:
        assert scored.bits_per_byte == pytest.approx(m.bits_per_byte, rel=1e-4)
    assert (np.array(scored.rank_N) == 1).mean() == pytest.approx(m.accuracy, abs=0.01)


@pytest.mark.parametrize('make', [counting, network, lambda d: network(d, get_recipe('lstm-b').model.tiny())])
@pytest.mark.parametrize('text', TEXTS)
def test_scoring_and_generating_expect_the_same(make, text, data):
    """All at once and one at a time, on one token, other scripts, empty lines; probabilities sum to one and the
    surprise is that of the token that came."""
    g = make(data)
    ids, _ = encode_with_offsets(data.tokenizer, g.line(text))
    if not ids:
        with pytest.raises(PredictorError, match='nothing to score'):
            g.score(text)
        return
    rows = np.concatenate(list(g.log_probs(ids)))
    step = g.start_session()
    assert rows.shape == (len(ids), data.vocab_size) and np.exp(rows).sum(1) == pytest.approx(1, abs=1e-9)
    for i, row_V in zip([g.before, *ids[:-1]], rows):
        assert step(i) == pytest.approx(row_V, abs=1e-4)
    r = g.score(text, top=4)
    assert r.nats_N == pytest.approx(-rows[np.arange(len(ids)), ids]) and len(r.pieces) == len(
        r.offsets
    ) == r.num_tokens == len(ids)
    for k, t in enumerate(r.top):
        assert (
            len(t) == 4
            and all(a[1] >= b[1] for a, b in zip(t, t[1:]))
            and t[0][1] == pytest.approx(np.exp(rows[k].max()))
        )
        if r.rank_N[k] == 1:
            assert np.exp(-r.nats_N[k]) == pytest.approx(t[0][1])


def test_generating(data):
    for g in (counting(data), network(data)):
        assert (
            g.generate('The cat', 12, seed=3) == g.generate('The cat', 12, seed=3) != g.generate('The cat', 12, seed=4)
        )
        step, ids = g.start_session(), [g.before, *encode_with_offsets(data.tokenizer, g.line('The cat'))[0]]
        for i in ids:
            log_V = step(i)
        best = []
        for _ in range(5):
            best.append(int(log_V.argmax()))
            log_V = step(best[-1])
        assert (
            g.generate('The cat', 5, temperature=0)
            == data.tokenizer.decode(best)
            == g.generate('The cat', 5, temperature=1e-6)
        ), 'cold enough, only the likeliest is left'
        assert isinstance(g.generate(n=3), str) and isinstance(g.generate('日本 🙂', 8, temperature=50.0), str)
        for bad in (-1, math.nan, math.inf):
            with pytest.raises(PredictorError, match='0 or more'):
                g.generate(temperature=bad)


def test_drawn_as_often_as_expected(data):
    "Over many seeds the first token written comes with its probability."
    g = counting(data)
    step = g.start_session()
    p_V = np.exp(step(g.before))
    n = 2000
    rng, seen = np.random.default_rng(0), np.zeros(data.vocab_size)
    for _ in range(n):
        seen[int(G.sample_from_logits(G.tempered(torch.from_numpy(np.log(p_V)), 1.0), torch.tensor(rng.random())))] += 1
    top = p_V.argsort()[-3:]
    assert np.all(np.abs(seen[top] - n * p_V[top]) < 5 * np.sqrt(n * p_V[top]))


def test_a_line_of_wikitext(cats, tmp_path):
    "It stands after a line's end as the corpus writes it, and begins with a space; other corpora's lines do not."
    data = tokenize_corpus(cats, train_bpe(cats['train'], 300), cache=tmp_path)
    g = counting(data)
    assert (
        data.tokenizer.convert_ids_to_tokens([g.before]) == [' \n']
        and g.score('The cat').pieces[0] == ' The' == g.score(' The cat').pieces[0]
        and g.line(' x') == ' x'
        and g.line('') == ''
    )
    assert g.score('The cat').offsets[0] == (0, 3) and g.score('The cat').nats == g.score(' The cat').nats
    assert g.score('The cat').bits_per_byte == bits_per_byte(g.score('The cat').nats, 7)
    other = NgramPredictor('other', data.tokenizer, g.model)
    assert (
        data.tokenizer.convert_ids_to_tokens([other.before]) == ['\n']
        and other.score('The cat').pieces[0] != ' The'
        and 'never measured' in repr(other)
    )


def test_too_much_and_nothing(data):
    g = counting(data)
    for text in ('', '   ' if data.tokenizer.name != 'bpe:300' else ''):
        with pytest.raises(PredictorError, match='nothing to score'):
            g.score(text)
    with pytest.raises(PredictorError, match=f'at most {MAX_TOKENS:,} are scored at once'):
        g.score('cat ' * (MAX_TOKENS + 1))


def test_unknown_words_have_no_bits_per_byte(cats):
    data = tokenize_corpus(cats, WordTokenizer(build_vocab(cats['train'], 1)))
    r = counting(data).score('The zebra sat')
    assert (
        r.num_unk == 1
        and r.bits_per_byte is None
        and r.pieces == ['The', '<unk>', 'sat']
        and counting(data).score('The cat\n').pieces[-1] == '<eos>'
    )


# counts in a file


@pytest.mark.parametrize('order', [1, 2, 3, 5])
@pytest.mark.parametrize(
    'vocab_size, text',
    [
        (7, [2]),
        (3, [0, 1, 2] * 40),
        (50, np.random.default_rng(0).integers(0, 50, 3000)),
        (70_000, np.random.default_rng(1).integers(0, 70_000, 3000)),
    ],
)
def test_counts_go_through_a_file_exactly(order, vocab_size, text, tmp_path):
    model = KneserNey(order).fit(text, vocab_size, bos_id=1)
    np.savez_compressed(tmp_path / 'x.npz', **state_dict(model))
    with np.load(tmp_path / 'x.npz') as kept:
        again = from_state_dict(kept)
    new = np.random.default_rng(2).integers(0, vocab_size, 500)
    assert (
        np.array_equal(again.nats(new), model.nats(new))
        and np.array_equal(again.guesses(new), model.guesses(new))
        and np.array_equal(again.next_probs(new[:9]), model.next_probs(new[:9]))
    )
    assert again.parameters == model.parameters and (again.order, again.vocab_size, again.bos_id) == (
        model.order,
        model.vocab_size,
        1,
    )
    for a, b in zip(again.levels, model.levels):
        assert (
            a.keys.dtype == b.keys.dtype
            and np.array_equal(a.keys, b.keys)
            and np.array_equal(a.counts, b.counts)
            and np.array_equal(a.spare_C, b.spare_C)
        )


def test_counts_that_do_not_belong_are_refused():
    a = state_dict(KneserNey(2).fit([0, 1, 2, 1], 3, 0))
    for bad, says in (
        ({}, 'no `about`'),
        ({'about': np.array([1, 2])}, 'no `about`'),
        ({k: v for k, v in a.items() if k != 'counts2'}, 'length 2 are missing'),
        (a | {'counts2': a['counts2'][1:]}, 'do not fit'),
        (a | {'steps2': a['steps2'] + 5}, 'do not fit'),
        (a | {'about': np.array([0, 3, 0])}, 'an order is 1 or more'),
        (a | {'steps1': a['steps1'][:0], 'counts1': a['counts1'][:0]}, 'do not fit'),
    ):
        with pytest.raises(NgramError, match=says):
            from_state_dict(bad)
    with pytest.raises(NgramError, match='counted nothing'):
        state_dict(KneserNey(2))


# the models that travel with the course


def test_the_files_are_small_and_say_what_they_are():
    size = {p.name: p.stat().st_size for p in G._MODELS.iterdir()}
    assert (
        sum(size.values()) < 4_500_000
        and size['counts.npz'] < 700_000
        and all(size[f'{n}.safetensors'] < 1_950_000 for n in G._NETWORKS)
    ), size
    card = (G._MODELS / 'README.md').read_text(encoding='utf-8')
    for said in (
        'Attribution-ShareAlike',
        'not good for',
        'Passport',
        'lmcourse run playground-lstm',
        'lmcourse run playground-transformer',
        'in windows of 256',
        'in 10 lanes',
        'wikitext-2-raw',
    ):
        assert said in card
    for name, m in measurements().items():
        assert f'{m["validation"]["perplexity"]:.2f}' in card or f'{m["validation"]["perplexity"]:,.0f}' in card, name


@pytest.mark.parametrize('name', G._NETWORKS)
def test_the_record_is_of_the_run_that_is_shipped(name):
    "It is published; what was lost in rounding is next to nothing, and the passports are of the same text."
    tensors, about = load_safetensors(G._MODELS / f'{name}.safetensors')
    assert {t.dtype for t in tensors.values()} == {torch.float16} and sum(
        t.numel() for t in tensors.values()
    ) == measurements()[name]['num_parameters'] < 970_000
    summary = json.loads(
        (G.files('lmcourse') / 'records' / about['record'] / 'summary.json').read_text(encoding='utf-8')
    )
    for split in ('validation', 'test'):
        was, now = summary[split], measurements()[name][split]
        assert now['perplexity'] == pytest.approx(was['perplexity'], rel=2e-3)
        for k in (
            'num_tokens',
            'num_bytes',
            'fingerprint',
            'tokenizer',
            'vocab_size',
            'eval_batch_size',
            'state_carried',
            'context_length',
            'stride',
        ):
            assert now[k] == was[k], k


def test_the_measured_ladder():
    m = measurements()
    assert list(m) == list(G.PRETRAINED)
    assert [m[n]['validation']['perplexity'] for n in ('uniform', 'unigram', 'bigram')] == sorted(
        (m[n]['validation']['perplexity'] for n in ('uniform', 'unigram', 'bigram')), reverse=True
    )
    assert m['uniform']['validation']['perplexity'] == pytest.approx(2048) and all(
        m[n]['validation']['perplexity'] < m['bigram']['validation']['perplexity'] for n in G._NETWORKS
    )
    for n in m:
        assert all(m[n][s]['num_unk'] == 0 and m[n][s]['vocab_size'] == 2048 for s in ('validation', 'test'))


@pytest.mark.parametrize('name', G.PRETRAINED)
@pytest.mark.skipif(
    not os.environ.get('LMCOURSE_DATA') or not corpus_available('wikitext-2-raw'),
    reason='LMCOURSE_DATA does not name a folder with WikiText-2 raw',
)
def test_the_files_score_what_was_measured(name, tmp_path):
    "On the first 20,000 validation tokens, against the nats that were stored when the model was shipped."
    g = load_pretrained(name)
    data = tokenize_corpus('wikitext-2-raw', g.tokenizer)
    check = measurements()[name]['check']
    split = G._first(data.validation, check['num_tokens'])
    assert len(split.ids) == 20_000 and data.validation.fingerprint == measurements()[name]['validation']['fingerprint']
    assert G._scored(g, split).nats == pytest.approx(check['nats'], rel=1e-5 if name in G._NETWORKS else 1e-12)


def test_which_rungs_there_are(monkeypatch):
    assert [g.name for g in load_all_pretrained()] == ['uniform', 'unigram', 'bigram', 'lstm', 'transformer'] and [
        g.name for g in load_all_pretrained('lstm', 'unigram')
    ] == ['lstm', 'unigram']
    assert load_pretrained('lstm') is load_pretrained('lstm') and load_pretrained().name == 'transformer'
    with pytest.raises(
        PredictorError, match="no rung 'gpt', only uniform, unigram, bigram, trigram, 5-gram, lstm, transformer"
    ):
        load_pretrained('gpt')
    monkeypatch.setattr(G, 'corpus_available', lambda name: False)
    with pytest.raises(PredictorError, match='too large to travel, and wikitext-2-raw'):
        load_pretrained.__wrapped__('5-gram')
    monkeypatch.setattr(G, '_MODELS', Path('/nowhere'))
    with pytest.raises(PredictorError, match='install the package again'):
        load_pretrained.__wrapped__('bigram')
    with pytest.raises(LMCourseError, match='no|cannot'):
        load_pretrained.__wrapped__('lstm')


@pytest.fixture(scope='module')
def small(tmp_path_factory, cats):
    "A text, and runs of a few steps on its pieces, by architecture."
    folder = tmp_path_factory.mktemp('shipping')
    (folder / 'text').mkdir()
    for split, name in (('train', 'train.txt'), ('validation', 'valid.txt'), ('test', 'test.txt')):
        (folder / 'text' / name).write_text(''.join(cats[split]), encoding='utf-8')

    def run(name, **changes):
        r = override(
            tiny(get_recipe(f'playground-{name}'), str(folder / 'text')),
            {'data.tokenizer': 'bpe:300', 'train.max_steps': 3, 'data.batch_size': 4} | changes,
        )
        return r, train(r, folder / f'{name}{len(changes)}', show=False)

    return folder / 'text', {
        'lstm': run('lstm'),
        'transformer': run('transformer'),
        'other': run('transformer', **{'data.tokenizer': 'bpe:310'}),
    }


def test_shipping(tmp_path, small):
    "A run is rounded, measured as it is rounded, and can be loaded from what was written."
    folder, (r, run) = small[0], small[1]['lstm']
    found = export_model(run.path, out=tmp_path / 'out')
    assert {p.name for p in (tmp_path / 'out').iterdir()} == {
        'lstm.safetensors',
        'counts.npz',
        'tokenizer.json',
        'measurements.json',
        'README.md',
    }
    exact, shipped = predictor_from_run(run.path), load_safetensors(tmp_path / 'out' / 'lstm.safetensors')
    assert shipped[1]['record'] == 'lstm0' and all(
        torch.equal(t.float(), p.half().float())
        for t, p in zip(shipped[0].values(), dict(sorted(exact.model.named_parameters())).values())
        if t.shape == p.shape
    )
    rounded = NeuralPredictor('rounded', exact.tokenizer, r.model.build(exact.tokenizer.vocab_size))
    load_named_weights(rounded.model, {k: t.float() for k, t in shipped[0].items()})
    data = tokenize_corpus(str(folder), exact.tokenizer)
    assert (
        found['lstm']['validation']['perplexity']
        == evaluate(rounded.model, data.validation, exact.tokenizer.bos_id, eval_batch_size=10, seq_len=70).perplexity
        != evaluate(exact.model, data.validation, exact.tokenizer.bos_id, eval_batch_size=10, seq_len=70).perplexity
    )
    assert (
        found['bigram']['test']['perplexity']
        == evaluate_ngram(
            KneserNey(2).fit(data.train.ids, data.vocab_size, exact.tokenizer.bos_id), data.test
        ).perplexity
    )
    assert (
        str(folder)
        not in (tmp_path / 'out' / 'README.md').read_text() + (tmp_path / 'out' / 'measurements.json').read_text()
    )


def test_a_second_network_beside_the_first(tmp_path, small):
    """What was measured of the others stays, the card tells of both, and what was measured on other tokens is refused
    with nothing changed."""
    _, runs = small
    out = tmp_path / 'out'
    before = export_model(runs['lstm'][1].path, out=out)
    both = export_model(runs['transformer'][1].path, 'transformer', out)
    assert list(both) == [*before, 'transformer'] and {k: both[k] for k in before} == before == {
        k: v for k, v in read_json(out / 'measurements.json').items() if k != 'transformer'
    }
    assert [both['transformer'][s]['context_length'] for s in ('validation', 'test')] == [
        runs['transformer'][0].model.context_length
    ] * 2 and not both['transformer']['test']['state_carried']
    model = runs['transformer'][0].model.build(300)
    load_named_weights(model, {k: t.float() for k, t in load_safetensors(out / 'transformer.safetensors')[0].items()})
    data = load_run(runs['transformer'][1].path, 'cpu')[1]
    assert (
        both['transformer']['test']['perplexity']
        == evaluate(model, data.test, data.tokenizer.bos_id, seq_len=model.context_length).perplexity
    )
    card = (out / 'README.md').read_text(encoding='utf-8')
    for r, run in (runs['lstm'], runs['transformer']):
        assert f'`lmcourse run {r.name}`' in card and f'record `{run.name}`' in card
    kept = {p.name: p.read_bytes() for p in out.iterdir()}
    with pytest.raises(PredictorError, match='measured on other tokens .* name an empty folder'):
        export_model(runs['other'][1].path, 'transformer', out)
    with pytest.raises(PredictorError, match="one of the rungs lstm or transformer, got 'bigram'"):
        export_model(runs['lstm'][1].path, 'bigram', out)
    assert kept == {p.name: p.read_bytes() for p in out.iterdir()}
    again = export_model(runs['transformer'][1].path, 'transformer', tmp_path / 'again')
    export_model(runs['lstm'][1].path, 'lstm', tmp_path / 'again')
    assert (
        list(again) == [n for n in both if n != 'lstm'] and read_json(tmp_path / 'again' / 'measurements.json') == both
    ), 'whichever comes first'
    assert (tmp_path / 'again' / 'README.md').read_text(encoding='utf-8') == card


@pytest.fixture(scope='module')
def own(tmp_path_factory):
    "A run of the reader's own: whole words, another corpus."
    r = override(tiny(get_recipe('ladder-lstm'), 'markov'), {'train.max_steps': 10})
    return train(r, tmp_path_factory.mktemp('runs') / 'mine', show=False).path


def test_a_run_of_ones_own(own):
    g = predictor_from_run(own)
    assert (
        g.name == 'mine'
        and g.tokenizer.name == 'word'
        and g.measured.corpus == 'markov'
        and predictor_from_run(own, 'other').name == 'other'
    )
    text = ''.join(load_corpus('markov')['validation'][:3])
    assert g.score(text).num_unk == 0 and g.score('The film').num_unk == 2 and g.generate(text, 5)
    with pytest.raises(LMCourseError, match='holds no run'):
        predictor_from_run(own.parent)


def test_a_model_needs_no_corpus(tmp_path):
    "A run comes back from its folder alone, after its text is gone; only scoring it asks for the text."
    text = tmp_path / 'mine.txt'
    text.write_text(''.join(f'the cat {i % 9} sat on the mat {i % 7}\n' for i in range(400)))
    run = train(
        override(tiny(get_recipe('ladder-lstm'), str(text)), {'train.max_steps': 3}), tmp_path / 'run', show=False
    )
    data = load_run(run.path, 'cpu')[1]
    text.unlink()
    model, tokenizer, r = load_model(run.path, 'cpu')
    best = run.load('best')[0]
    assert (
        r == recipe_from_dict(run.config)
        and tokenizer.to_dict() == data.tokenizer.to_dict()
        and all(torch.equal(p, best[k]) for k, p in model.named_parameters())
    )
    assert (
        evaluate(
            model, data.validation, tokenizer.bos_id, eval_batch_size=r.train.eval_batch_size, seq_len=r.data.seq_len
        ).perplexity
        == run.summary['validation']['perplexity']
    )
    assert predictor_from_run(run.path).score('the cat sat').num_unk == 0
    with pytest.raises(CorpusError):
        load_run(run.path, 'cpu')


def test_the_card_is_what_its_numbers_make():
    assert (G._MODELS / 'README.md').read_text(encoding='utf-8') == G._card(measurements(), G._MODELS)


def test_a_card_says_of_a_text_only_what_is_known():
    "Another text is not called Wikipedia's, and words have no bytes where some of them are unknown."
    found = json.loads(json.dumps(measurements()))
    for f in found.values():
        for s in ('validation', 'test'):
            f[s] |= dict(corpus='mine.txt', tokenizer='word', num_bytes=None, bits_per_byte=None)
    card = G._card(found, G._MODELS)
    assert 'Wikipedia' not in card.replace('wikitext', '') and 'ShareAlike' not in card
    assert 'The train split of mine.txt: what it is, and under which licence' in card
    assert 'types of the tokenizer word' in card and 'bytes, fingerprint' not in card


def test_no_widget_comes_along():
    "A server that has the models needs no anywidget for them."
    code = (
        "import sys; sys.modules['anywidget'] = None\nfrom lmcourse.inference.predictors import"
        " load_pretrained\nprint(load_pretrained('bigram').score('The film').num_tokens, 'lmcourse.interactive.widgets' in sys.modules)"
    )
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert r.stdout.split() == ['2', 'False'], r.stderr


@pytest.mark.parametrize('context', [8, 15, 300])
def test_a_context_that_is_full_is_scored_as_it_is_in_generation(context):
    torch.manual_seed(0)
    words = tokenize_corpus('stdlib').tokenizer
    model = TransformerConfig(16, 2, 32, 2, context, 0.0, positions='rotary').build(words.vocab_size)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    g = NeuralPredictor('small', words, model)
    ids = torch.randint(words.vocab_size, (200,)).tolist()
    want = token_nats(model, ids, g.before)
    rows = [row_V for block in g.log_probs(ids) for row_V in block]
    assert [-row_V[i] for i, row_V in zip(ids, rows, strict=True)] == pytest.approx(want, abs=1e-4)
    step = g.start_session()
    assert [-step(i)[j] for i, j in zip([g.before, *ids], ids)] == pytest.approx(want, abs=1e-4)


def test_a_run_is_not_measured_on_another_text_than_its_own():
    "What lies at the corpus's path may have changed since the run was trained."
    from types import SimpleNamespace as Some

    from lmcourse.inference.predictors import _same_text

    run = Some(name='mine', summary=dict(validation=dict(fingerprint='aa'), test=dict(fingerprint='bb')))
    _same_text(run, Some(corpus='c', validation=Some(fingerprint='aa'), test=Some(fingerprint='bb')))
    with pytest.raises(PredictorError, match='another test text'):
        _same_text(run, Some(corpus='c', validation=Some(fingerprint='aa'), test=Some(fingerprint='cc')))


def test_a_tokenizer_that_loses_text_has_no_bits_per_byte():
    from lmcourse.inference.predictors import ScoredText
    from lmcourse.interactive.playground import _payload, _readouts

    r = ScoredText(
        'a b', ['a', 'b'], [(0, 1), (2, 3)], np.ones(2), np.ones(2, dtype=int), [[], []], 9, 0, keeps_text=False
    )
    assert r.bits_per_byte is None
    assert 'bits_per_byte' not in _readouts(_payload(r), 0)
    assert ScoredText('a b', *[r.pieces, r.offsets, r.nats_N, r.rank_N, r.top], 9, 0).bits_per_byte is not None
