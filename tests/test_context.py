"Texts longer than the context: one rule for the windows, and the same nats whoever reads them."

from dataclasses import replace

import numpy as np
import pytest
import torch
from architectures import MODELS, V

from lmcourse.data.batches import StatefulBatches, WindowBatches
from lmcourse.data.tokens import tokenize_corpus
from lmcourse.inference.generate import token_nats
from lmcourse.inference.predictors import NeuralPredictor
from lmcourse.models.context import ContextReader, StreamingEvaluator, window_start
from lmcourse.training.trainer import evaluate

IDS = np.random.default_rng(0).integers(2, V, 70)


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    return MODELS[request.param]().eval()


@torch.no_grad()
def anew(model, text):
    "The hidden state after each token, everything in its window read from a state of nothing."
    windows = [text[window_start(end, model.context_length) : end] for end in range(1, len(text) + 1)]
    return torch.stack([model(torch.tensor([window]))[0][0, -1] for window in windows])


@pytest.mark.parametrize('context', [None, 1, 2, 3, 8, 64])
def test_the_window_of_generation(context):
    "It holds the newest token, never too many, grows by one, and shrinks to half when it is full."
    seen = [t - window_start(t, context) for t in range(1, 400)]
    if context is None:
        assert seen == list(range(1, 400))
        return
    half = max(1, context // 2)
    assert max(seen) == context
    assert seen[:context] == list(range(1, context + 1))
    assert all(b == a + 1 or (a, b) == (context, half) for a, b in zip(seen, seen[1:]))


@pytest.mark.parametrize('context', [1, 2, 3, 8, 15])
def test_window_batches_score_a_token_in_the_window_that_the_rule_names(context):
    for stride in range(1, context + 1):
        batches = WindowBatches(np.arange(1, 61), context, 4, 0, stride, shuffle=False, score_once=True)
        rows = [row for x_BT, y_BT in batches for row in zip(x_BT[:, 0].tolist(), y_BT.tolist())]
        found = [(t, start) for start, y_T in rows for t in y_T if t != -100]
        assert found == [(t, window_start(t, context, stride)) for t in range(1, 61)]


@pytest.mark.parametrize('size', [1, 5, 16, 128])
def test_a_text_in_blocks_is_the_text_read_anew_for_each_token(model, size):
    text = [1, *IDS.tolist()]
    blocks = list(ContextReader(model).blocks(text, size))
    assert all(block.shape[:2] <= (1, size) for block in blocks)
    torch.testing.assert_close(torch.cat(blocks, 1)[0], anew(model, text), rtol=1e-4, atol=1e-5)


def test_rows_that_grow_together_are_each_read_as_if_alone(model):
    texts = [[1, *IDS.tolist()], [1, *IDS[::-1].tolist()]]
    reader = ContextReader(model)
    found_BTD = torch.cat([reader.read(texts, end) for end in range(1, 71)], 1)
    for row_TD, text in zip(found_BTD, texts):
        torch.testing.assert_close(row_TD, anew(model, text[:70]), rtol=1e-4, atol=1e-5)


def test_a_reader_begins_late_in_the_window_of_the_token_that_is_asked_for(model):
    text = [1, *IDS.tolist()]
    torch.testing.assert_close(ContextReader(model).read([text], 61)[0, 0], anew(model, text)[60], rtol=1e-4, atol=1e-5)


def test_one_text_has_the_same_nats_in_every_place_that_scores_it(model):
    "Its tokens alone, its measurement, a predictor's blocks, and a session that is given a token at a time."
    split = replace(tokenize_corpus('markov').validation, ids=IDS)
    context = model.context_length
    want = token_nats(model, IDS, 1)
    stride = window_start(context + 1, context) if context else None
    m = evaluate(model, split, 1, eval_batch_size=1, seq_len=context or 20, stride=stride)
    assert m.nats == pytest.approx(sum(want), rel=1e-5)
    predictor = NeuralPredictor('any', tokenize_corpus('markov').tokenizer, model)
    predictor.before = 1
    rows = np.concatenate(list(predictor.log_probs(IDS.tolist())))
    assert (-rows[range(70), IDS]).tolist() == pytest.approx(want, abs=1e-4)
    step = predictor.start_session()
    assert [-step(i)[j] for i, j in zip([1, *IDS.tolist()], IDS)] == pytest.approx(want, abs=1e-4)


def test_processes_that_share_the_rows_add_up_to_one(model):
    batches = (
        StatefulBatches(IDS, 3, 16, 1) if model.stateful else WindowBatches(IDS, 16, 3, 1, 9, False, score_once=True)
    )
    streams = 3 if model.stateful else 1
    whole_N, correct = StreamingEvaluator(model).score(batches, streams)
    parts = [StreamingEvaluator(model).score(batches, streams, slice(k, None, 4)) for k in range(4)]
    # networks compute in single precision, and another batch rounds otherwise
    torch.testing.assert_close(sum(nats_N for nats_N, _ in parts), whole_N, rtol=1e-5, atol=1e-6)
    assert sum(right for _, right in parts) == correct
    assert len(whole_N) == 70


def test_a_state_that_is_not_carried_is_nothing_at_each_window():
    torch.manual_seed(0)
    model = MODELS['lstm']().train()
    windows = WindowBatches(IDS, 16, 3, 1, shuffle=False)
    nats_N, _ = StreamingEvaluator(model, state_carried=False).score(windows)
    assert model.training
    alone = [
        StreamingEvaluator(model).score([(x[None], y[None])])[0] for x_BT, y_BT in windows for x, y in zip(x_BT, y_BT)
    ]
    torch.testing.assert_close(nats_N, torch.cat(alone), rtol=1e-5, atol=1e-6)
