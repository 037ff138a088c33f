"Runs that are stopped at awkward moments, resumed with other wishes, or broken: what was measured stays true."

import math
import json
from dataclasses import replace
import pytest, torch
import lmcourse.recurrent
from lmcourse.recipes import RecipeError, get_recipe, override, recipe_from_dict, tiny
from lmcourse.record import Run
from lmcourse.tokens import tokenize_corpus
from lmcourse.loss import LMCourseError
from lmcourse.train import Diverged, Trainer, TrainingError, evaluate, fit, pick_device, resume, train
from architectures import MODELS, V


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('LMCOURSE_CACHE', str(tmp_path / 'cache'))


def twin(**changes):
    return override(
        tiny(get_recipe('lstm-a'), corpus='markov'),
        {'data.batches': 'lanes'} | {f'train.{k}': v for k, v in changes.items()},
    )


def rows(run):
    return [(m['step'], m['train_nats']) for m in run.metrics() if 'train_nats' in m]


def test_a_stop_between_two_rows_of_the_curve_loses_nothing(tmp_path):
    whole = train(twin(max_steps=20), tmp_path / 'whole', show=False)
    trainer = Trainer(twin(max_steps=20), tmp_path / 'parts', show=False)
    import lmcourse.train as T

    before = T.why_stop
    try:
        T.why_stop = lambda t, asked: 'interrupted' if t.step == 14 else before(t, asked)
        assert fit(trainer).summary['stopped'] == 'interrupted'
    finally:
        T.why_stop = before
    parts = fit(resume(tmp_path / 'parts', show=False))
    assert rows(parts) == rows(whole) and parts.summary['test'] == whole.summary['test']


def test_what_a_resume_changes_is_kept(tmp_path):
    train(twin(max_steps=10), tmp_path / 'run', show=False)
    fit(resume(tmp_path / 'run', show=False, max_steps=15))
    assert (
        Run.open(tmp_path / 'run').config['train']['max_steps'] == 15
        and Run.open(tmp_path / 'run').summary['steps'] == 15
    )


def test_a_text_that_changed_is_not_gone_on_with(tmp_path):
    text = tmp_path / 'mine.txt'
    lines = [f'the cat {i % 9} sat on the mat {i % 7}\n' for i in range(400)]
    text.write_text(''.join(lines))
    train(override(twin(max_steps=3), {'data.corpus': str(text)}), tmp_path / 'run', show=False)
    kept = (tmp_path / 'run' / 'tokenizer.json').read_bytes()
    text.write_text(''.join(lines).replace('cat', 'dog'))
    with pytest.raises(TrainingError, match='has changed'):
        resume(tmp_path / 'run', show=False)
    assert (tmp_path / 'run' / 'tokenizer.json').read_bytes() == kept


def test_a_diverged_run_says_so_and_keeps_what_it_had(tmp_path):
    r = override(
        twin(max_steps=40, evaluate_every=10),
        {'optim.lr': 1e36, 'optim.clip': 0, 'optim.warmup': 0, 'train.log_every': 5},
    )
    with pytest.raises(Diverged, match='stopped being a number'):
        train(r, tmp_path / 'run', show=False)
    s = Run.open(tmp_path / 'run').summary
    assert s['stopped'] == 'diverged' and not s['finished']


def test_patience_stops_a_run_that_gets_no_better(tmp_path, monkeypatch):
    import lmcourse.train as T

    real, calls = T.evaluate, []

    def worse(*a, **k):
        calls.append(1)
        return replace(real(*a, **k), nats_per_token=1.0 + len(calls), perplexity=math.exp(1.0 + len(calls)))

    monkeypatch.setattr(T, 'evaluate', worse)
    s = train(twin(max_steps=40, evaluate_every=4, patience=2), tmp_path / 'run', show=False).summary
    assert (s['stopped'], s['steps']) == ('patience', 12)


def test_a_configuration_of_another_version_is_told():
    d = get_recipe('lstm-a').to_dict()
    with pytest.raises(RecipeError, match='another version'):
        recipe_from_dict(d | {'model': d['model'] | {'heads': 4}})
    with pytest.raises(RecipeError, match='no recipe'):
        recipe_from_dict({k: v for k, v in d.items() if k != 'name'})


def test_no_numbers_on_meta():
    with pytest.raises(TrainingError, match='holds no numbers'):
        pick_device('meta')


def test_windows_that_overlap_score_each_token_once_with_more_before_it():
    data = tokenize_corpus('markov')
    split = replace(data.validation, ids=data.validation.ids[:403] % V)
    torch.manual_seed(0)
    model = MODELS['decoder']().eval()
    found = evaluate(model, split, 1, length=16, stride=5)
    assert (found.tokens, found.context, found.stride, found.carried) == (403, 16, 5, False)
    ids, nats = [1, *split.ids.tolist()], 0.0
    for i in range(403):  # by hand: the window that is the first to reach the token
        start = 0 if i < 16 else 5 * -(-(i - 15) // 5)
        nats -= float(model.logits(torch.tensor([ids[start : i + 1]]))[0][0, -1].log_softmax(-1)[split.ids[i]].detach())
    assert found.nats == pytest.approx(nats, rel=1e-5)
    assert (
        evaluate(model, split, 1, length=16).nats == evaluate(model, split, 1, length=16, stride=16).nats != found.nats
    )
    with pytest.raises(TrainingError, match='carries its state'):
        evaluate(MODELS['lstm'](), split, 1, stride=5)
    with pytest.raises(LMCourseError, match='leaves out tokens'):
        evaluate(model, split, 1, length=16, stride=17)
    lost = evaluate(MODELS['lstm'](), split, 1, carried=False, length=16, stride=5)
    assert (lost.tokens, lost.stride) == (403, 5)
