"The figure of a text's price, and the three widgets of the playground without a page."

import asyncio
import json
import math
import re
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from test_predictors import cats, data, own  # noqa: F401  (fixtures)

from lmcourse.data.text import load_corpus
from lmcourse.data.tokens import TokenSplit
from lmcourse.inference.predictors import (
    NeuralPredictor,
    NgramPredictor,
    encode_with_offsets,
    load_pretrained,
    measurements,
    predictor_from_run,
)
from lmcourse.interactive import playground as P
from lmcourse.interactive.playground import LiveRun, Rungs, Surprise, plot_surprise, shade
from lmcourse.interactive.widgets import WidgetError
from lmcourse.measure.perplexity import bits_per_byte
from lmcourse.models.ngram import AdditiveNgram, evaluate_ngram
from lmcourse.training.trainer import Trainer, TrainingError, evaluate

# Surprise


def test_surprise_reads_a_new_text():
    w = Surprise()
    text = 'Le café était fermé.\nzwei Zeilen'
    w.text = text
    assert set(w.scored) == {*P.SENTENCES, text}
    r = load_pretrained().score(text)
    n = w.readouts()
    assert (
        n['perplexity'] == pytest.approx(r.perplexity, rel=1e-12)
        and n['nats'] == pytest.approx(r.nats, rel=1e-12)
        and n['bits_per_byte'] == pytest.approx(bits_per_byte(r.nats, len(text.encode())), rel=1e-12)
    )
    assert n['perplexity_compared'] == pytest.approx(load_pretrained('lstm').score(text).perplexity, rel=1e-12)
    assert n['so_far'] == pytest.approx(math.exp(r.nats_N[0])) and '⏎' in w.scored[text]['transformer']['pieces']
    w.token_index = 2000
    assert w.readouts()['token'] == r.num_tokens and w.readouts()['so_far'] == pytest.approx(r.perplexity)
    w.compare_to = ''
    assert not any(k.endswith('_compared') for k in w.readouts())
    w.reset()
    assert w.state() == w.initial_state and set(w.scored) == {*P.SENTENCES, text}
    json.dumps(w.scored, allow_nan=False)


def test_the_sum_of_the_tokens_is_the_perplexity_shown():
    "For the networks against `evaluate`, for the counts against `evaluate_ngram`, on the text as it is shown."
    w = Surprise()
    for name in w.names:
        g = w.predictors[name]
        w.model = name
        for text in P.SENTENCES:
            w.text = text
            ids, _ = encode_with_offsets(g.tokenizer, g.line(text))
            split = TokenSplit('validation', np.array(ids), len(text.encode()), 1, 0, 'x', 'x', g.tokenizer)
            m = (
                evaluate_ngram(g.model, split)
                if isinstance(g, NgramPredictor)
                else evaluate(g.model, split, g.before, eval_batch_size=1)
            )
            want = g.model.nats(ids, g.before).sum() if isinstance(g, NgramPredictor) else m.nats
            assert w.readouts()['nats'] == pytest.approx(want, rel=1e-5) and w.perplexity == pytest.approx(
                math.exp(want / len(ids)), rel=1e-4
            )


def test_other_tokenizers_compare_in_bits_per_byte_alone(own):
    w = Surprise(
        [load_pretrained('lstm'), predictor_from_run(own)],
        [''.join(load_corpus('markov')['validation'][:2]), 'The film'],
        model='lstm',
        compare_to='mine',
    )
    n = w.readouts()
    assert (
        not w.comparable
        and 'perplexity_compared' not in n
        and 'so_far_compared' not in n
        and n['bits_per_byte_compared'] > 0
        and n['perplexity'] > 0
    )
    w.text = 'The film'
    assert 'bits_per_byte_compared' not in w.readouts(), 'unknown words hide what was written'
    w.token_index = 1
    r, b = (w.scored[w.text][k] for k in ('lstm', 'mine'))
    assert w.readouts()['surprise_compared'] == b['nats'][1] and r['ends'][1] == b['ends'][1] == 8


def test_infinite_surprise_is_told_in_json(data):
    g = NgramPredictor(
        'by heart', data.tokenizer, AdditiveNgram(2, 0.0).fit(data.train.ids, data.vocab_size, data.tokenizer.bos_id)
    )
    w = Surprise([g], ['The cat sat', 'sat The sat'], compare_to='')
    json.dumps(w.scored, allow_nan=False)
    w.text = 'sat The sat'
    assert w.perplexity == math.inf


@pytest.mark.parametrize(
    'make, says',
    [
        (lambda: Surprise(texts=[]), 'at least one prepared text'),
        (lambda: Surprise(texts=['  ']), 'at least one word'),
        (lambda: Surprise(texts=['x' * 601]), 'at most 600 characters'),
        (lambda: Surprise(texts=['\ud800']), 'lone surrogate'),
        (lambda: Surprise(model='gpt'), "no predictor 'gpt', only uniform"),
        (lambda: Surprise(compare_to='gpt'), "no predictor 'gpt'"),
        (lambda: Surprise(model=''), 'no predictor'),
        (lambda: Surprise([load_pretrained('lstm')] * 2), 'a name of its own'),
        (lambda: Rungs(rung='gpt'), "no rung 'gpt'"),
        (lambda: Rungs(texts=[]), 'at least one prepared text'),
        (lambda: LiveRun(corpus='poems'), "no corpus for a live run 'poems', only markov, stdlib"),
        (lambda: LiveRun(width=3), 'a width lies from 4 to 128'),
        (lambda: LiveRun(lr=0.0), 'a learning rate lies from'),
    ],
)
def test_bad_states_are_refused_in_a_sentence(make, says):
    with pytest.raises(WidgetError, match=says):
        make()


def test_a_refused_text_changes_nothing():
    w = Surprise()
    for bad in ('', ' \n', 'x' * 601):
        with pytest.raises(WidgetError):
            w.text = bad
    with pytest.raises(WidgetError):
        w.set_state(dict(token_index=-1))
    assert w.state() == w.initial_state
    w.text = 'x' * 600
    w.text = '🙂' * 600
    assert len(w.scored[w.text]['lstm']['nats']) > 1000 and len(json.dumps(w.get_state())) < 3e6


@pytest.mark.parametrize('widget', (Surprise, Rungs))
def test_a_text_whose_scores_are_on_their_way_is_read(widget):
    "JupyterLab handles the page's messages in a thread of its own: a cell may come between a text and its scores."
    w, wanted = widget(), widget()
    wanted.text = text = 'The cat sat on the mat .'
    with w.hold_trait_notifications():
        w.text = text
        assert text not in w.scored and w.readouts() == wanted.readouts()
    assert text in w.scored and w.readouts() == wanted.readouts()


def test_prepared_states_are_small_enough_for_a_page():
    assert (
        len(json.dumps(Surprise().get_state('scored'))) < 120_000
        and len(json.dumps(Rungs().get_state(['scored', 'written']))) < 60_000
    )


def test_somebody_is_at_home():
    for w in (Surprise(), Rungs(), LiveRun()):
        w.set_state(dict(ping='abc'))
        assert w.pong == 'abc'


# the ladder


def test_rungs_stand_in_order_and_write():
    w = Rungs()
    n = w.readouts()
    names = list(w.ladder)
    assert [n[f'perplexity-{k}'] for k in names] == sorted(
        (n[f'perplexity-{k}'] for k in names), reverse=True
    ) and w.rung == names[-1]
    for k in names:
        assert n[f'perplexity-{k}'] == pytest.approx(measurements()[k]['validation']['perplexity']) and n[
            f'bits_per_byte-{k}'
        ] == pytest.approx(measurements()[k]['validation']['bits_per_byte'])
    for k in names:
        w.rung = k
        r = load_pretrained(k).score(w.text)
        assert (
            w.readouts()['here'] == pytest.approx(r.perplexity)
            and w.readouts()['here_bits'] == pytest.approx(r.bits_per_byte)
            and w.sample == load_pretrained(k).generate(w.text, 40, 0)
        )
    w.seed = 17
    w.temperature = 0.749
    assert w.temperature == 0.7 and w.sample == load_pretrained(w.rung).generate(w.text, 40, 17, 0.7)
    w.text = 'A new one'
    assert w.sample == load_pretrained(w.rung).generate('A new one', 40, 17, 0.7)
    before = len(w.written)
    w.reset()
    assert w.seed == 0 and w.text == P.SENTENCES[0] and len(w.written) == before
    for bad in (dict(seed=-1), dict(temperature=0.0), dict(temperature=3.0), dict(rung='gpt'), dict(text='')):
        with pytest.raises(WidgetError):
            w.set_state(bad)


def test_rungs_of_different_texts_are_no_ladder(own):
    with pytest.raises(WidgetError, match='measured on one text'):
        Rungs([load_pretrained('lstm'), predictor_from_run(own)])
    with pytest.raises(WidgetError, match='never measured'):
        Rungs(
            [
                load_pretrained('lstm'),
                NeuralPredictor('x', load_pretrained('lstm').tokenizer, load_pretrained('lstm').model),
            ]
        )


# a live run


def test_a_live_run_learns_and_is_the_same_each_time():
    a, b = LiveRun(width=16, lr=1e-2), LiveRun(width=16, lr=1e-2)
    first = a.perplexity
    a.advance(120)
    b.advance(40)
    b.advance(80)
    assert (
        a.curve == b.curve and a.curve['step'] == 120 and [len(a.curve[k]) for k in ('train', 'validation')] == [12, 3]
    )
    assert (
        a.readouts()['source'] < a.perplexity < a.readouts()['unigram'] < first
        and a.readouts()['num_tokens'] == 100 * 560
    )
    assert a.readouts()['source'] == pytest.approx(4.7, abs=0.05) and set(a.readouts()) == {
        'perplexity',
        'train',
        'step',
        'num_tokens',
        'lr',
        'unigram',
        'source',
    }
    assert a.perplexity == pytest.approx(
        evaluate(a._run.trainer.model, a._run.trainer.data.validation, a._run.trainer.data.tokenizer.bos_id).perplexity,
        rel=0.2,
    )
    assert not a.running and json.dumps(a.get_state(['curve', 'earlier', 'reference_lines']), allow_nan=False)


def test_training_is_the_courses_own_step():
    "The weights after some steps are those of `train_step` on the recipe's batches."
    w = LiveRun(width=12, lr=5e-3)
    w.advance(7)
    t = Trainer(P.live_recipe('markov', 12, 5e-3), Path(tempfile.mkdtemp()) / 'run', show=False)
    for _, group in zip(range(7), t.steps()):
        t.train_step(group)
    assert all(torch.equal(a, b) for a, b in zip(w._run.trainer.model.parameters(), t.model.parameters()))


def test_the_rate_can_be_changed_on_the_way_and_the_width_only_anew():
    w = LiveRun(width=8, lr=1e-3)
    w.advance(20)
    w.lr = 1e-2
    w.lr = 2e-2
    w.advance(10)
    assert w._run.trainer.optimizer.param_groups[0]['lr'] == 2e-2 and w.curve['lr_changes'] == [
        [0, 1e-3],
        [20 * 560, 2e-2],
    ]
    w.width = 16
    w.advance(20)
    assert w.curve['width'] == 8 and w._run.trainer.model.embedding.weight.shape[1] == 8
    old = w.curve['validation']
    w.restart()
    assert (
        w.curve['width'] == 16
        and w.curve['step'] == 0
        and w.earlier == [dict(corpus='markov', width=8, points=old)]
        and w.curve['lr_changes'] == [[0, 2e-2]]
    )
    w.restart()
    assert len(w.earlier) == 1, 'a run of no steps leaves no curve'
    for _ in range(5):
        w.advance(1)
        w.restart()
    assert len(w.earlier) == 4
    w.corpus = 'stdlib'
    w.restart()
    assert not w.earlier, 'a curve on another text says nothing here'


def test_what_is_no_number_stops_the_run_with_a_sentence():
    w = LiveRun(width=8)
    w.advance(10)
    with torch.no_grad():
        w._run.trainer.model.lm_head.weight[0, 0] = math.nan
    w.advance(100)
    assert (
        w.curve['step'] == 10
        and not w.running
        and 'stopped being a number at step' in w.error
        and 'restart it' in w.error
    )
    with pytest.raises(TrainingError, match='stopped being a number'):
        w.advance(1)
    with pytest.raises(TrainingError, match='stopped being a number'):
        w.start()
    json.dumps(w.get_state('curve'), allow_nan=False)
    w.restart()
    w.advance(5)
    assert not w.error and w.curve['step'] == 5


def test_it_ends_by_itself(monkeypatch):
    monkeypatch.setattr(P, 'MAX_STEPS', 12)
    w = LiveRun(width=4)
    w.advance(100)
    assert w.curve['step'] == 12
    with pytest.raises(TrainingError, match='has made its 12 steps'):
        w.advance(1)


def elsewhere(f, *args):
    "In a thread of its own, where no other test has left an event loop running."
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(f, *args).result()


def test_start_stop_resume_in_an_event_loop():
    """While it runs other things get their turn; it stops within a slice, goes on where it stood, and a loop that
    closes takes it along."""

    async def session():
        w = LiveRun(width=8)
        turns = 0
        w.start()
        w.start()
        for _ in range(20):
            await asyncio.sleep(0.02)
            turns += 1
        ran = w.curve['step']
        w.lr = 2e-2
        w.stop()
        await w._task
        stood = w.curve['step']
        await asyncio.sleep(0.1)
        assert w.curve['step'] == stood >= ran > 0 and turns == 20 and not w.running
        w.command = 'start 1'
        assert w.running
        await asyncio.sleep(0.2)
        w.command = 'stop 2'
        await w._task
        assert w.curve['step'] > stood and w.curve['lr_changes'][-1][1] == 2e-2
        w.command = 'restart 3'
        await asyncio.sleep(0.1)
        assert w.running and len(w.earlier) == 1 and w.curve['step'] < stood
        w.stop()
        w.start()
        w.stop()
        w.start()
        await asyncio.sleep(0.1)
        one = w._task
        w.close()
        await one
        return w

    w = elsewhere(asyncio.run, session())
    assert not w.running
    with pytest.raises(TrainingError, match='use advance'):
        elsewhere(w.start)

    async def left():
        w = LiveRun(width=8)
        w.start()
        await asyncio.sleep(0.05)
        return w

    assert elsewhere(asyncio.run, left())._task.cancelled()


def test_trouble_in_the_loop_is_a_sentence(monkeypatch):
    async def session():
        w = LiveRun(width=8)
        with torch.no_grad():
            w._run.trainer.model.lm_head.weight[0, 0] = math.nan
        w.start()
        await w._task
        assert 'stopped being a number' in w.error and not w.running
        w.command = 'start 1'
        assert not w.running and 'stopped being a number' in w.error

    elsewhere(asyncio.run, session())


def test_its_folder_goes_with_it():
    w = LiveRun(width=4)
    folder = Path(w._run._folder.name)
    assert folder.is_dir()
    w.restart()
    assert not folder.exists(), 'one folder at a time'


def test_on_the_manual_there_is_no_source():
    w = LiveRun(corpus='stdlib', width=8)
    assert set(w.readouts()) == {'perplexity', 'step', 'num_tokens', 'lr', 'unigram'} and w.perplexity > 1000


# the figure


def test_the_figure(tmp_path):
    import matplotlib

    matplotlib.use('Agg')
    from PIL import Image

    text = 'The café — “naïve” — was closed . ' * 6
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        fig = plot_surprise(text + '日本 $x^2$ \t', title='A figure')
        fig.savefig(tmp_path / 'x.png', dpi=80)
    image = Image.open(tmp_path / 'x.png').convert('RGB')
    assert image.width == 800 and image.height < 1100
    patches = [p for p in fig.axes[0].patches]
    assert len(patches) == 5 * load_pretrained().score(text + '日本 $x^2$ \t').num_tokens + 8
    assert max(p.get_x() + p.get_width() for p in patches) <= 800, 'nothing hangs over'
    small = image.quantize(64, dither=Image.Dither.NONE).convert('RGB')
    off = np.abs(np.asarray(image, int) - np.asarray(small, int)).max(-1)
    assert (off > 24).mean() < 0.01, 'sixty-four colours are enough for it'
    words = [t.get_text() for t in fig.axes[0].texts]
    assert any(re.match(r'lstm: perplexity [\d.,]+, [\d.]+ bits per byte', s) for s in words) and any(
        'wikitext-2-raw validation' in s for s in words
    )
    matplotlib.pyplot.close('all')


def test_the_figure_of_different_tokenizers_says_so(own):
    import matplotlib

    matplotlib.use('Agg')
    fig = plot_surprise('The film', [load_pretrained('lstm'), predictor_from_run(own)])
    words = ' '.join(t.get_text() for t in fig.axes[0].texts)
    assert (
        'compare the bits per byte' in words and 'lstm: perplexity' not in words and '2 tokens unknown to it' in words
    )
    matplotlib.pyplot.close('all')


def test_shades():
    assert [shade(x) for x in (0, 0.99, 1, 6.99, 7, 50, math.inf)] == [0, 0, 1, 6, 7, 7, 7]
