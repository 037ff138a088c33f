"Guessers that read and write, the models that travel with the course, and the three widgets without a page."
import asyncio, io, json, math, os, random, re, subprocess, sys, warnings
from pathlib import Path
import numpy as np
import pytest, torch
from lmcourse import playground as P
from lmcourse.loss import LMCourseError
from lmcourse.ngram import Additive, KneserNey, NgramError, Uniform, from_arrays, score, to_arrays
from lmcourse.perplexity import Measurement, bits_per_byte, perplexity
from lmcourse.playground import (LONGEST, CountingGuesser, Guesser, LiveRun, NetworkGuesser, PlaygroundError, Reading, Rungs, Surprise, cut, guesser_from_run, guessers, load_guesser,
                                 measurements, passport, plot_surprise, shade, ship)
from lmcourse.recipes import get_recipe, override, tiny
from lmcourse.record import load_tensors
from lmcourse.recurrent import RecurrentLM
from lmcourse.text import Corpus, have_corpus, load_corpus
from lmcourse.tokens import TokenSplit, Tokenizer, WordTokenizer, count_words, have_gpt2, tokenize_corpus, train_bpe, train_whitespace
from lmcourse.train import evaluate, train
from lmcourse.tuned import Tuned
from lmcourse.widgets import WidgetError

ROWS = [' The cat sat on the mat . \n', '', ' The dog — “naïve” — sat , too . \n', ' = Cats = \n', 'the end without a space\n', '日本 and\ttabs \n'] * 30
TEXTS = ['The cat sat on the mat .', 'The', ' ', 'naïve 日本 🙂\nsecond line\n', 'a\n\n\nb', '\ttab', 'dog' * 40]

@pytest.fixture(scope='module')
def cats(): return Corpus('wikitext-cats', dict(train=ROWS, validation=ROWS[:40], test=ROWS[40:60]))

@pytest.fixture(scope='module', params=['word', 'bpe:300', 'whitespace'])
def data(request, cats, tmp_path_factory): return tokenize_corpus(cats, request.param, min_count=1, cache=tmp_path_factory.mktemp('cache'))

def counting(data, order=2): return CountingGuesser(f'order {order}', data.tokenizer, KneserNey(order).fit(data.train.ids, data.types, data.tokenizer.first_id), score(KneserNey(order).fit(data.train.ids, data.types, data.tokenizer.first_id), data.validation))
def network(data, config=Tuned(embedding=12, hidden=20, layers=2, others=0, zipf=False)):
    torch.manual_seed(1)
    model = config.build(data.types)
    with torch.no_grad():
        for p in model.parameters(): p.normal_(0, .4)
    return NetworkGuesser('network', data.tokenizer, model, score(KneserNey(1).fit(data.train.ids, data.types, data.tokenizer.first_id), data.validation))

# cutting and reading

def test_a_text_is_cut_as_its_corpus_is(data, cats):
    "Row for row as encode_rows, and each token's characters are the token."
    text = ''.join(cats['train'])
    ids, spans = cut(data.tokenizer, text)
    assert ids == data.tokenizer.encode_rows([r for r in cats['train'] if r]).tolist()
    assert len(spans) == len(ids) and all(0 <= a <= b <= len(text) for a, b in spans) and all(x[1] <= y[1] for x, y in zip(spans, spans[1:]))
    for piece, (a, b) in zip(data.tokenizer.tokens(ids), spans):
        if '\\x' not in piece and piece not in ('<eos>', '<unk>'): assert text[a:b] == piece

@pytest.mark.skipif(not have_gpt2(), reason="GPT-2's tokenizer is not on this machine")
def test_gpt2_cuts_as_its_corpus(cats):
    from lmcourse.tokens import load_tokenizer
    t = load_tokenizer('gpt2')
    assert cut(t, ''.join(cats['train']))[0] == t.encode_rows([r for r in cats['train'] if r]).tolist()

@pytest.mark.parametrize('order', [0, 1, 2, 4])
def test_a_counting_reading_is_the_score(order, data, cats):
    "What each token costs sums to what `score` says of the same text."
    model = (KneserNey(order) if order else Uniform()).fit(data.train.ids, data.types, data.tokenizer.first_id)
    g = CountingGuesser('g', data.tokenizer, model, score(model, data.validation))
    reading = g.read(text := ''.join(cats['validation'])[:400], top=3)
    ids, _ = cut(data.tokenizer, g.line(text))
    assert reading.nats_N == pytest.approx(model.nats(ids, g.before), rel=1e-12) and reading.nats == pytest.approx(model.nats(ids, g.before).sum(), rel=1e-12)
    assert reading.perplexity == perplexity(reading.nats, len(ids))
    if order: assert [t[0][1] for t in reading.top] == pytest.approx([model.next_probs([g.before, *ids[:i]][-order:]).max() for i in range(len(ids))], rel=1e-12)
    else: assert not any(reading.top)

@pytest.mark.parametrize('config', [Tuned(embedding=12, hidden=20, layers=2, others=0), Tuned('gru', 12, 20, 1, zipf=False)])
def test_a_networks_reading_is_the_evaluation(config, data, cats):
    "And what each token costs a network sums to what `evaluate` says of the same text, in one lane."
    g, text = network(data, config), ''.join(cats['train'])
    ids, _ = cut(data.tokenizer, g.line(text)); split = TokenSplit('validation', np.array(ids), len(text.encode()), 1, 0, 'x', 'cats', data.tokenizer)
    m, reading = evaluate(g.model, split, g.before, lanes=1), g.read(text)
    assert reading.tokens > 256, 'more than are read in one go'
    assert reading.nats == pytest.approx(m.nats, rel=1e-5) and reading.perplexity == pytest.approx(m.perplexity, rel=1e-4)
    if not reading.unknown: assert reading.bits_per_byte == pytest.approx(m.bits_per_byte, rel=1e-4)
    assert (np.array(reading.rank_N) == 1).mean() == pytest.approx(m.accuracy, abs=.01)

@pytest.mark.parametrize('make', [counting, network, lambda d: network(d, get_recipe('lstm-b').model.tiny())])
@pytest.mark.parametrize('text', TEXTS)
def test_reading_and_writing_expect_the_same(make, text, data):
    "All at once and one at a time, on one token, other scripts, empty lines; probabilities sum to one and the surprise is that of the token that came."
    g = make(data)
    ids, _ = cut(data.tokenizer, g.line(text))
    if not ids:
        with pytest.raises(PlaygroundError, match='nothing to read'): g.read(text)
        return
    rows = np.concatenate(list(g.log_probs(ids))); hear = g.listen()
    assert rows.shape == (len(ids), data.types) and np.exp(rows).sum(1) == pytest.approx(1, abs=1e-9)
    for i, row_V in zip([g.before, *ids[:-1]], rows): assert hear(i) == pytest.approx(row_V, abs=1e-4)
    r = g.read(text, top=4)
    assert r.nats_N == pytest.approx(-rows[np.arange(len(ids)), ids]) and len(r.pieces) == len(r.spans) == r.tokens == len(ids)
    for k, t in enumerate(r.top):
        assert len(t) == 4 and all(a[1] >= b[1] for a, b in zip(t, t[1:])) and t[0][1] == pytest.approx(np.exp(rows[k].max()))
        if r.rank_N[k] == 1: assert np.exp(-r.nats_N[k]) == pytest.approx(t[0][1])

def test_writing(data):
    for g in (counting(data), network(data)):
        assert g.write('The cat', 12, seed=3) == g.write('The cat', 12, seed=3) != g.write('The cat', 12, seed=4)
        hear, ids = g.listen(), [g.before, *cut(data.tokenizer, g.line('The cat'))[0]]
        for i in ids: log_V = hear(i)
        best = []
        for _ in range(5): best.append(int(log_V.argmax())); log_V = hear(best[-1])
        assert g.write('The cat', 5, temperature=0) == data.tokenizer.decode(best) == g.write('The cat', 5, temperature=1e-6), 'cold enough, only the likeliest is left'
        assert isinstance(g.write(n=3), str) and isinstance(g.write('日本 🙂', 8, temperature=50.), str)
        for bad in (-1, math.nan, math.inf):
            with pytest.raises(PlaygroundError, match='0 or more'): g.write(temperature=bad)

def test_drawn_as_often_as_expected(data):
    "Over many seeds the first token written comes with its probability."
    g = counting(data); hear = g.listen(); p_V = np.exp(hear(g.before)); n = 2000
    rng, seen = np.random.default_rng(0), np.zeros(data.types)
    for _ in range(n): seen[P._draw(np.log(p_V), 1., rng)] += 1
    top = p_V.argsort()[-3:]
    assert np.all(np.abs(seen[top] - n * p_V[top]) < 5 * np.sqrt(n * p_V[top]))

def test_a_line_of_wikitext(cats, tmp_path):
    "It stands after a line's end as the corpus writes it, and begins with a space; other corpora's lines do not."
    data = tokenize_corpus(cats, train_bpe(cats['train'], 300), cache=tmp_path)
    g = counting(data)
    assert data.tokenizer.tokens([g.before]) == [' \n'] and g.read('The cat').pieces[0] == ' The' == g.read(' The cat').pieces[0] and g.line(' x') == ' x' and g.line('') == ''
    assert g.read('The cat').spans[0] == (0, 3) and g.read('The cat').nats == g.read(' The cat').nats
    assert g.read('The cat').bits_per_byte == bits_per_byte(g.read('The cat').nats, 7)
    other = CountingGuesser('other', data.tokenizer, g.model)
    assert data.tokenizer.tokens([other.before]) == ['\n'] and other.read('The cat').pieces[0] != ' The' and 'never measured' in repr(other)

def test_too_much_and_nothing(data):
    g = counting(data)
    for text in ('', '   ' if data.tokenizer.name != 'bpe:300' else ''):
        with pytest.raises(PlaygroundError, match='nothing to read'): g.read(text)
    with pytest.raises(PlaygroundError, match=f'at most {LONGEST:,} are read at once'): g.read('cat ' * (LONGEST + 1))

def test_unknown_words_have_no_bits_per_byte(cats):
    data = tokenize_corpus(cats, WordTokenizer(count_words(cats['train'], 1)))
    r = counting(data).read('The zebra sat')
    assert r.unknown == 1 and r.bits_per_byte is None and r.pieces == ['The', '<unk>', 'sat'] and counting(data).read('The cat\n').pieces[-1] == '<eos>'

# counts in a file

@pytest.mark.parametrize('order', [1, 2, 3, 5])
@pytest.mark.parametrize('types, text', [(7, [2]), (3, [0, 1, 2] * 40), (50, np.random.default_rng(0).integers(0, 50, 3000)), (70_000, np.random.default_rng(1).integers(0, 70_000, 3000))])
def test_counts_go_through_a_file_exactly(order, types, text, tmp_path):
    model = KneserNey(order).fit(text, types, first_id=1)
    np.savez_compressed(tmp_path/'x.npz', **to_arrays(model))
    with np.load(tmp_path/'x.npz') as kept: again = from_arrays(kept)
    new = np.random.default_rng(2).integers(0, types, 500)
    assert np.array_equal(again.nats(new), model.nats(new)) and np.array_equal(again.guesses(new), model.guesses(new)) and np.array_equal(again.next_probs(new[:9]), model.next_probs(new[:9]))
    assert again.parameters == model.parameters and (again.order, again.types, again.first_id) == (model.order, model.types, 1)
    for a, b in zip(again.levels, model.levels): assert a.keys.dtype == b.keys.dtype and np.array_equal(a.keys, b.keys) and np.array_equal(a.counts, b.counts) and np.array_equal(a.spare_C, b.spare_C)

def test_counts_that_do_not_belong_are_refused():
    a = to_arrays(KneserNey(2).fit([0, 1, 2, 1], 3, 0))
    for bad, says in (({}, 'no `about`'), ({'about': np.array([1, 2])}, 'no `about`'), ({k: v for k, v in a.items() if k != 'counts2'}, 'length 2 are missing'), (a | {'counts2': a['counts2'][1:]}, 'do not fit'),
                      (a | {'steps2': a['steps2'] + 5}, 'do not fit'), (a | {'about': np.array([0, 3, 0])}, 'an order is 1 or more'), (a | {'steps1': a['steps1'][:0], 'counts1': a['counts1'][:0]}, 'do not fit')):
        with pytest.raises(NgramError, match=says): from_arrays(bad)
    with pytest.raises(NgramError, match='counted nothing'): to_arrays(KneserNey(2))

# the models that travel with the course

def test_the_files_are_small_and_say_what_they_are():
    size = {p.name: p.stat().st_size for p in P._MODELS.iterdir()}
    assert size['lstm.safetensors'] + size['tokenizer.json'] < 2_000_000 and size['counts.npz'] < 700_000, size
    card = (P._MODELS/'README.md').read_text(encoding='utf-8')
    for said in ('Attribution-ShareAlike', 'not good for', 'Passport', 'lmcourse run playground-lstm', 'wikitext-2-raw'): assert said in card
    for name, m in measurements().items():
        assert f'{m["validation"]["perplexity"]:.2f}' in card or f'{m["validation"]["perplexity"]:,.0f}' in card, name
    tensors, about = load_tensors(P._MODELS/'lstm.safetensors')
    assert {t.dtype for t in tensors.values()} == {torch.float16} and sum(t.numel() for t in tensors.values()) == measurements()['lstm']['parameters'] < 970_000
    assert (P.files('lmcourse')/'records'/about['record']/'summary.json').is_file(), 'the record of the run is published'

def test_the_record_is_of_the_run_that_is_shipped():
    "What was lost in rounding is next to nothing, and the passports are of the same text."
    _, about = load_tensors(P._MODELS/'lstm.safetensors')
    summary = json.loads((P.files('lmcourse')/'records'/about['record']/'summary.json').read_text(encoding='utf-8'))
    for split in ('validation', 'test'):
        was, now = summary[split], measurements()['lstm'][split]
        assert now['perplexity'] == pytest.approx(was['perplexity'], rel=2e-3) and {k: now[k] for k in ('tokens', 'bytes', 'fingerprint', 'tokenizer', 'types', 'lanes')} == {k: was[k] for k in ('tokens', 'bytes', 'fingerprint', 'tokenizer', 'types', 'lanes')}

def test_the_measured_ladder():
    m = measurements()
    assert list(m) == list(P.RUNGS) or set(m) >= set(P.RUNGS)
    assert [m[n]['validation']['perplexity'] for n in ('uniform', 'unigram', 'bigram')] == sorted((m[n]['validation']['perplexity'] for n in ('uniform', 'unigram', 'bigram')), reverse=True)
    assert m['uniform']['validation']['perplexity'] == pytest.approx(2048) and m['lstm']['validation']['perplexity'] < m['bigram']['validation']['perplexity']
    for n in m: assert all(m[n][s]['unknown'] == 0 and m[n][s]['types'] == 2048 for s in ('validation', 'test'))

@pytest.mark.parametrize('name', ['uniform', 'unigram', 'bigram', 'trigram', '5-gram', 'lstm'])
@pytest.mark.skipif(not os.environ.get('LMCOURSE_DATA') or not have_corpus('wikitext-2-raw'), reason='LMCOURSE_DATA does not name a folder with WikiText-2 raw')
def test_the_files_score_what_was_measured(name, tmp_path):
    "On the first 20,000 validation tokens, against the nats that were stored when the model was shipped."
    g = load_guesser(name)
    data = tokenize_corpus('wikitext-2-raw', g.tokenizer); check = measurements()[name]['check']
    split = P._first(data.validation, check['tokens'])
    assert len(split.ids) == 20_000 and data.validation.fingerprint == measurements()[name]['validation']['fingerprint']
    nats = score(g.model, split).nats if isinstance(g, CountingGuesser) else evaluate(g.model, split, g.tokenizer.first_id, lanes=10, length=70).nats
    assert nats == pytest.approx(check['nats'], rel=1e-5 if name == 'lstm' else 1e-12)

def test_which_rungs_there_are(monkeypatch):
    assert [g.name for g in guessers()] == ['uniform', 'unigram', 'bigram', 'lstm'] and [g.name for g in guessers('lstm', 'unigram')] == ['lstm', 'unigram']
    assert load_guesser('lstm') is load_guesser('lstm') and load_guesser().name == 'lstm'
    with pytest.raises(PlaygroundError, match="no rung 'gpt', only uniform, unigram, bigram, trigram, 5-gram, lstm"): load_guesser('gpt')
    monkeypatch.setattr(P, 'have_corpus', lambda name: False)
    with pytest.raises(PlaygroundError, match='too large to travel, and wikitext-2-raw'): load_guesser.__wrapped__('5-gram')
    monkeypatch.setattr(P, '_MODELS', Path('/nowhere'))
    with pytest.raises(PlaygroundError, match='install the package again'): load_guesser.__wrapped__('bigram')
    with pytest.raises(LMCourseError, match='no|cannot'): load_guesser.__wrapped__('lstm')

def test_shipping(tmp_path, cats):
    "A run is rounded, measured as it is rounded, and can be loaded from what was written."
    folder = tmp_path/'text'; folder.mkdir()
    for split, name in (('train', 'train.txt'), ('validation', 'valid.txt'), ('test', 'test.txt')): (folder/name).write_text(''.join(cats[split]), encoding='utf-8')
    r = override(tiny(get_recipe('playground-lstm'), str(folder)), {'data.tokenizer': 'bpe:300', 'train.max_steps': 3, 'data.batch': 4})
    run = train(r, tmp_path/'run', show=False)
    found = ship(run.path, tmp_path/'out')
    assert {p.name for p in (tmp_path/'out').iterdir()} == {'lstm.safetensors', 'counts.npz', 'tokenizer.json', 'measurements.json', 'README.md'}
    exact, shipped = guesser_from_run(run.path), load_tensors(tmp_path/'out'/'lstm.safetensors')
    assert shipped[1]['record'] == 'run' and all(torch.equal(t.float(), p.half().float()) for t, p in zip(shipped[0].values(), dict(sorted(exact.model.named_parameters())).values()) if t.shape == p.shape)
    rounded = NetworkGuesser('rounded', exact.tokenizer, r.model.build(exact.tokenizer.types)); P.load_weights(rounded.model, {k: t.float() for k, t in shipped[0].items()})
    data = tokenize_corpus(str(folder), exact.tokenizer)
    assert found['lstm']['validation']['perplexity'] == evaluate(rounded.model, data.validation, exact.tokenizer.first_id, lanes=10, length=70).perplexity != evaluate(exact.model, data.validation, exact.tokenizer.first_id, lanes=10, length=70).perplexity
    assert found['bigram']['test']['perplexity'] == score(KneserNey(2).fit(data.train.ids, data.types, exact.tokenizer.first_id), data.test).perplexity
    assert str(folder) not in (tmp_path/'out'/'README.md').read_text() + (tmp_path/'out'/'measurements.json').read_text()

@pytest.fixture(scope='module')
def own(tmp_path_factory):
    "A run of the reader's own: whole words, another corpus."
    r = override(tiny(get_recipe('ladder-lstm'), 'markov'), {'train.max_steps': 10})
    return train(r, tmp_path_factory.mktemp('runs')/'mine', show=False).path

def test_a_run_of_ones_own(own):
    g = guesser_from_run(own)
    assert g.name == 'mine' and g.tokenizer.name == 'word' and g.measured.corpus == 'markov' and guesser_from_run(own, 'other').name == 'other'
    text = ''.join(load_corpus('markov')['validation'][:3])
    assert g.read(text).unknown == 0 and g.read('The film').unknown == 2 and g.write(text, 5)
    with pytest.raises(LMCourseError, match='holds no run'): guesser_from_run(own.parent)

# Surprise

def test_surprise_reads_a_new_text():
    w = Surprise(); text = 'Le café était fermé.\nzwei Zeilen'
    w.text = text
    assert set(w.readings) == {*P.SENTENCES, text}
    r = load_guesser('lstm').read(text); n = w.numbers()
    assert n['perplexity'] == pytest.approx(r.perplexity, rel=1e-12) and n['nats'] == pytest.approx(r.nats, rel=1e-12) and n['bits_per_byte'] == pytest.approx(bits_per_byte(r.nats, len(text.encode())), rel=1e-12)
    assert n['perplexity_against'] == pytest.approx(load_guesser('bigram').read(text).perplexity, rel=1e-12)
    assert n['so_far'] == pytest.approx(math.exp(r.nats_N[0])) and '⏎' in w.readings[text]['lstm']['pieces']
    w.at = 2000
    assert w.numbers()['token'] == r.tokens and w.numbers()['so_far'] == pytest.approx(r.perplexity)
    w.against = ''
    assert not any(k.endswith('_against') for k in w.numbers())
    w.reset()
    assert w.state() == w.start and set(w.readings) == {*P.SENTENCES, text}
    json.dumps(w.readings, allow_nan=False)

def test_the_sum_of_the_tokens_is_the_perplexity_shown():
    "For the network against `evaluate`, for the counts against `score`, on the text as it is shown."
    w = Surprise()
    for name in ('lstm', 'bigram', 'unigram', 'uniform'):
        g = w.guessers[name]; w.model = name
        for text in P.SENTENCES:
            w.text = text; ids, _ = cut(g.tokenizer, g.line(text))
            split = TokenSplit('validation', np.array(ids), len(text.encode()), 1, 0, 'x', 'x', g.tokenizer)
            m = score(g.model, split) if isinstance(g, CountingGuesser) else evaluate(g.model, split, g.before, lanes=1)
            want = g.model.nats(ids, g.before).sum() if isinstance(g, CountingGuesser) else m.nats
            assert w.numbers()['nats'] == pytest.approx(want, rel=1e-5) and w.perplexity == pytest.approx(math.exp(want / len(ids)), rel=1e-4)

def test_other_cuts_compare_in_bits_per_byte_alone(own):
    w = Surprise([load_guesser('lstm'), guesser_from_run(own)], [''.join(load_corpus('markov')['validation'][:2]), 'The film'], model='lstm', against='mine')
    n = w.numbers()
    assert not w.comparable and 'perplexity_against' not in n and 'so_far_against' not in n and n['bits_per_byte_against'] > 0 and n['perplexity'] > 0
    w.text = 'The film'
    assert 'bits_per_byte_against' not in w.numbers(), 'unknown words hide what was written'
    w.at = 1
    r, b = (w.readings[w.text][k] for k in ('lstm', 'mine'))
    assert w.numbers()['surprise_against'] == b['nats'][1] and r['ends'][1] == b['ends'][1] == 8

def test_infinite_surprise_is_told_in_json(data):
    g = CountingGuesser('by heart', data.tokenizer, Additive(2, 0.).fit(data.train.ids, data.types, data.tokenizer.first_id))
    w = Surprise([g], ['The cat sat', 'sat The sat'], against='')
    json.dumps(w.readings, allow_nan=False)
    w.text = 'sat The sat'
    assert w.perplexity == math.inf

@pytest.mark.parametrize('make, says', [
    (lambda: Surprise(texts=[]), 'at least one prepared text'), (lambda: Surprise(texts=['  ']), 'at least one word'), (lambda: Surprise(texts=['x' * 601]), 'at most 600 characters'), (lambda: Surprise(texts=['\ud800']), 'lone surrogate'),
    (lambda: Surprise(model='gpt'), "no guesser 'gpt', only uniform"), (lambda: Surprise(against='gpt'), "no guesser 'gpt'"), (lambda: Surprise(model=''), 'no guesser'), (lambda: Surprise([load_guesser('lstm')] * 2), 'a name of its own'),
    (lambda: Rungs(rung='gpt'), "no rung 'gpt'"), (lambda: Rungs(texts=[]), 'at least one prepared text'), (lambda: LiveRun(corpus='poems'), "no corpus for a live run 'poems', only markov, stdlib"),
    (lambda: LiveRun(width=3), 'a width lies from 4 to 128'), (lambda: LiveRun(lr=0.), 'a learning rate lies from')])
def test_bad_states_are_refused_in_a_sentence(make, says):
    with pytest.raises(WidgetError, match=says): make()

def test_a_refused_text_changes_nothing():
    w = Surprise()
    for bad in ('', ' \n', 'x' * 601):
        with pytest.raises(WidgetError): w.text = bad
    with pytest.raises(WidgetError): w.set_state(dict(at=-1))
    assert w.state() == w.start
    w.text = 'x' * 600; w.text = '🙂' * 600
    assert len(w.readings[w.text]['lstm']['nats']) > 1000 and len(json.dumps(w.get_state())) < 3e6

def test_prepared_states_are_small_enough_for_a_page():
    assert len(json.dumps(Surprise().get_state('readings'))) < 120_000 and len(json.dumps(Rungs().get_state(['readings', 'written']))) < 60_000

def test_somebody_is_at_home():
    for w in (Surprise(), Rungs(), LiveRun()):
        w.set_state(dict(knock='abc'))
        assert w.heard == 'abc'

# the ladder

def test_rungs_stand_in_order_and_write():
    w = Rungs(); n = w.numbers()
    names = list(w.ladder)
    assert [n[f'perplexity-{k}'] for k in names] == sorted((n[f'perplexity-{k}'] for k in names), reverse=True) and w.rung == names[-1]
    for k in names: assert n[f'perplexity-{k}'] == pytest.approx(measurements()[k]['validation']['perplexity']) and n[f'bits_per_byte-{k}'] == pytest.approx(measurements()[k]['validation']['bits_per_byte'])
    for k in names:
        w.rung = k; r = load_guesser(k).read(w.text)
        assert w.numbers()['here'] == pytest.approx(r.perplexity) and w.numbers()['here_bits'] == pytest.approx(r.bits_per_byte) and w.sample == load_guesser(k).write(w.text, 40, 0)
    w.seed = 17; w.temperature = .749
    assert w.temperature == .7 and w.sample == load_guesser(w.rung).write(w.text, 40, 17, .7)
    w.text = 'A new one'
    assert w.sample == load_guesser(w.rung).write('A new one', 40, 17, .7)
    before = len(w.written); w.reset()
    assert w.seed == 0 and w.text == P.SENTENCES[0] and len(w.written) == before
    for bad in (dict(seed=-1), dict(temperature=0.), dict(temperature=3.), dict(rung='gpt'), dict(text='')):
        with pytest.raises(WidgetError): w.set_state(bad)

def test_rungs_of_different_texts_are_no_ladder(own):
    with pytest.raises(WidgetError, match='measured on one text'): Rungs([load_guesser('lstm'), guesser_from_run(own)])
    with pytest.raises(WidgetError, match='never measured'): Rungs([load_guesser('lstm'), NetworkGuesser('x', load_guesser('lstm').tokenizer, load_guesser('lstm').model)])

# a live run

def test_a_live_run_learns_and_is_the_same_each_time():
    a, b = LiveRun(width=16, lr=1e-2), LiveRun(width=16, lr=1e-2)
    first = a.perplexity
    a.advance(120); b.advance(40); b.advance(80)
    assert a.curve == b.curve and a.curve['step'] == 120 and [len(a.curve[k]) for k in ('train', 'validation')] == [12, 3]
    assert a.numbers()['source'] < a.perplexity < a.numbers()['unigram'] < first and a.numbers()['tokens'] == 100 * 560
    assert a.numbers()['source'] == pytest.approx(4.7, abs=.05) and set(a.numbers()) == {'perplexity', 'train', 'step', 'tokens', 'lr', 'unigram', 'source'}
    assert a.perplexity == pytest.approx(evaluate(a._trainer.model, a._trainer.data.validation, a._trainer.data.tokenizer.first_id).perplexity, rel=.2)
    assert not a.running and json.dumps(a.get_state(['curve', 'earlier', 'floors']), allow_nan=False)

def test_training_is_the_courses_own_step():
    "The weights after some steps are those of `train_step` on the recipe's batches."
    from lmcourse.train import Trainer, steps, train_step
    w = LiveRun(width=12, lr=5e-3); w.advance(7)
    import tempfile
    t = Trainer(P.live_recipe('markov', 12, 5e-3), Path(tempfile.mkdtemp())/'run', show=False)
    for _, group in zip(range(7), steps(t)): train_step(t, group)
    assert all(torch.equal(a, b) for a, b in zip(w._trainer.model.parameters(), t.model.parameters()))

def test_the_rate_can_be_changed_on_the_way_and_the_width_only_anew():
    w = LiveRun(width=8, lr=1e-3); w.advance(20)
    w.lr = 1e-2; w.lr = 2e-2; w.advance(10)
    assert w._trainer.optimizer.param_groups[0]['lr'] == 2e-2 and w.curve['turns'] == [[0, 1e-3], [20 * 560, 2e-2]]
    w.width = 16; w.advance(20)
    assert w.curve['width'] == 8 and w._trainer.model.embedding.weight.shape[1] == 8
    old = w.curve['validation']; w.anew()
    assert w.curve['width'] == 16 and w.curve['step'] == 0 and w.earlier == [dict(corpus='markov', width=8, points=old)] and w.curve['turns'] == [[0, 2e-2]]
    w.anew(); assert len(w.earlier) == 1, 'a run of no steps leaves no curve'
    for _ in range(5): w.advance(1); w.anew()
    assert len(w.earlier) == 4

def test_what_is_no_number_stops_the_run_with_a_sentence():
    w = LiveRun(width=8); w.advance(10)
    with torch.no_grad(): w._trainer.model.head.weight[0, 0] = math.nan
    w.advance(100)
    assert w.curve['step'] == 10 and not w.running and 'stopped being a number at step' in w.trouble and 'start anew' in w.trouble
    with pytest.raises(PlaygroundError, match='stopped being a number'): w.advance(1)
    with pytest.raises(PlaygroundError, match='stopped being a number'): w.go()
    json.dumps(w.get_state('curve'), allow_nan=False)
    w.anew(); w.advance(5)
    assert not w.trouble and w.curve['step'] == 5

def test_it_ends_by_itself(monkeypatch):
    monkeypatch.setattr(P, 'LONGEST_RUN', 12)
    w = LiveRun(width=4); w.advance(100)
    assert w.curve['step'] == 12
    with pytest.raises(PlaygroundError, match='has made its 12 steps'): w.advance(1)

def test_start_stop_resume_in_an_event_loop():
    "While it runs other things get their turn; it stops within a slice, goes on where it stood, and a loop that closes takes it along."
    async def session():
        w = LiveRun(width=8); turns = 0
        w.go(); w.go()
        for _ in range(20): await asyncio.sleep(.02); turns += 1
        ran = w.curve['step']
        w.lr = 2e-2
        w.stop(); await w._task
        stood = w.curve['step']
        await asyncio.sleep(.1)
        assert w.curve['step'] == stood >= ran > 0 and turns == 20 and not w.running
        w.wish = 'go 1'; assert w.running
        await asyncio.sleep(.2)
        w.wish = 'stop 2'; await w._task
        assert w.curve['step'] > stood and w.curve['turns'][-1][1] == 2e-2
        w.wish = 'anew 3'; await asyncio.sleep(.1)
        assert w.running and len(w.earlier) == 1 and w.curve['step'] < stood
        w.stop(); w.go(); w.stop(); w.go()
        await asyncio.sleep(.1); one = w._task
        w.close(); await one
        return w
    w = asyncio.run(session())
    assert not w.running
    with pytest.raises(PlaygroundError, match='use advance'): w.go()
    async def left(): w = LiveRun(width=8); w.go(); await asyncio.sleep(.05); return w
    assert asyncio.run(left())._task.cancelled()

def test_trouble_in_the_loop_is_a_sentence(monkeypatch):
    async def session():
        w = LiveRun(width=8)
        with torch.no_grad(): w._trainer.model.head.weight[0, 0] = math.nan
        w.go(); await w._task
        assert 'stopped being a number' in w.trouble and not w.running
        w.wish = 'go 1'
        assert not w.running and 'stopped being a number' in w.trouble
    asyncio.run(session())

def test_its_folder_goes_with_it():
    w = LiveRun(width=4); folder = Path(w._folder.name)
    assert folder.is_dir(); w.anew(); assert not folder.exists(), 'one folder at a time'

def test_on_the_manual_there_is_no_source():
    w = LiveRun(corpus='stdlib', width=8)
    assert set(w.numbers()) == {'perplexity', 'step', 'tokens', 'lr', 'unigram'} and w.perplexity > 1000

# the figure

def test_the_figure(tmp_path):
    import matplotlib; matplotlib.use('Agg')
    from PIL import Image
    text = 'The café — “naïve” — was closed . ' * 6
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        fig = plot_surprise(text + '日本 $x^2$ \t', title='A figure')
        fig.savefig(tmp_path/'x.png', dpi=80)
    image = Image.open(tmp_path/'x.png').convert('RGB')
    assert image.width == 800 and image.height < 900
    patches = [p for p in fig.axes[0].patches]
    assert len(patches) == 4 * load_guesser().read(text + '日本 $x^2$ \t').tokens + 8
    assert max(p.get_x() + p.get_width() for p in patches) <= 800, 'nothing hangs over'
    small = image.quantize(64, dither=Image.Dither.NONE).convert('RGB')
    off = np.abs(np.asarray(image, int) - np.asarray(small, int)).max(-1)
    assert (off > 24).mean() < .01, 'sixty-four colours are enough for it'
    words = [t.get_text() for t in fig.axes[0].texts]
    assert any(re.match(r'lstm: perplexity [\d.,]+, [\d.]+ bits per byte', s) for s in words) and any('wikitext-2-raw validation' in s for s in words)
    matplotlib.pyplot.close('all')

def test_the_figure_of_different_cuts_says_so(own):
    import matplotlib; matplotlib.use('Agg')
    fig = plot_surprise('The film', [load_guesser('lstm'), guesser_from_run(own)])
    words = ' '.join(t.get_text() for t in fig.axes[0].texts)
    assert 'compare the bits per byte' in words and 'lstm: perplexity' not in words and '2 tokens unknown to it' in words
    matplotlib.pyplot.close('all')

def test_shades():
    assert [shade(x) for x in (0, .99, 1, 6.99, 7, 50, math.inf)] == [0, 0, 1, 6, 7, 7, 7]
