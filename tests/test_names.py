"What the package is called from outside: the field's words, and none of those that it had before."

import ast
import pytest
from conftest import ROOT, stage

MODULES = sorted(
    '.'.join(p.relative_to(ROOT / 'lmcourse').with_suffix('').parts)
    for p in (ROOT / 'lmcourse').rglob('*.py')
    if not p.name.startswith('_')
)
GONE = {
    'measure.cross_entropy': 'Tally',
    'measure.perplexity': 'obstacles bootstrap_interval',
    'measure.fused_loss': 'bf16_pays fused_nats',
    'measure.sampled_softmax': 'candidates',
    'data.text': 'prose leakage drop_repeats divide stationary entropy_floor read_rows have_corpus',
    'data.tokens': 'count_words PieceTokenizer NAMES have_gpt2',
    'data.batches': 'Lanes Windows',
    'models.ngram': 'CountingModel Grams Discounted Additive score',
    'models.recurrent': 'Recurrent cell_parameters model_parameters',
    'models.tied_rnn': 'Tuned TunedLM AWAY LATE many_passes zipf',
    'models.awd_lstm': 'AWD AWDLM WordDrop slowness_penalty activation_penalty varied PARTS',
    'models.transformer': 'Transformer turns turned Attention parts moved orthogonal OPTIONS',
    'training.runs': 'plain append_row read_rows save_tensors load_tensors record thin table DiskFull rungs',
    'training.recipes': 'LENGTHS parameters',
    'training.trainer': 'look gradient descend scored rounds cut_elsewhere lr_at groups weights load_weights save resume'
    ' why_stop finish clock watched Progress stop_when_asked detach',
    'training.distributed': 'share place team own_device told seed_at TeamTrainer TeamError follow fit_team traffic',
    'experiments.ladder': 'climb counting_rungs',
    'experiments.ablation': 'one_factor one_run effects CHANGES tenth by_heart step_seconds',
    'experiments.scaling': 'flops training_flops sized measured planned run_all good isoflop Law predicted foretold',
    'experiments.bench': 'timed stored peak_memory PARTS',
    'inference.adapt': 'Reader stream recall reader_of',
    'inference.generate': 'Sampling draw draws stream Writing repetition distinct surprise',
    'inference.predictors': 'Guesser CountingGuesser NetworkGuesser cut Reading passport LONGEST ship load_guesser RUNGS',
    'interactive.widgets': '_within _shares _bundle',
    'interactive.playground': 'Listening Reads SteppedRun LONGEST_TYPED LONGEST_RUN',
}
FIELDS_GONE = set(
    (
        'types first_id carries carried claimed as_noted evaluate_every around zipf scaled often others'
        ' guesser guessers'
    ).split()
)


def exported(module):
    "The names that a module defines."
    body = ast.parse(stage.module_path(module).read_text(encoding='utf-8')).body
    names = {n.name for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    return names | {t.id for n in body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}


@pytest.mark.parametrize('module', GONE)
def test_no_old_name_is_exported(module):
    assert exported(module).isdisjoint(GONE[module].split())


@pytest.mark.parametrize('module', MODULES)
def test_no_old_name_is_a_field_or_a_parameter(module):
    tree = ast.parse(stage.module_path(module).read_text(encoding='utf-8'))
    names = {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
    names |= {n.target.id for n in ast.walk(tree) if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    assert names.isdisjoint(FIELDS_GONE)
