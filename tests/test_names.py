"What the package is called from outside: the field's words, and none of those that it had before; and the glossary."

import ast
import importlib
import inspect
import re

import pytest
from conftest import ROOT, stage
from fastcore.docments import docments

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
    'models.awd_lstm': 'AWD AWDLM WordDrop slowness_penalty activation_penalty varied PARTS Watched',
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


# ---- the glossary

ENTRIES = re.findall(
    r'^- \*\*(.+?)\*\*: (.+) \(\[(.+?)\]\((.+?)\)\)$',
    (ROOT / 'docs' / 'glossary.md').read_text(encoding='utf-8'),
    re.M,
)
STANDARD_TERMS = (
    'negative log-likelihood|maximum likelihood|chain rule of probability|gradient|backward pass|activation function'
    '|self-attention|multi-head attention|causal mask|residual connection|pre-norm|positional embedding'
    '|rotary position embedding|cell state|vanishing gradient|exploding gradient|truncated backpropagation through time'
    '|epoch|learning rate|weight decay|checkpoint|kv cache|nucleus sampling|effective vocabulary size|modified kneser-ney'
    '|nt-asgd|block bootstrap'
)


def bold_terms(path):
    "What stands in bold in a notebook's text, in lower case; code is left out."
    source = '\n\n'.join(c.source for c in stage.Lesson(path).nb.cells if c.cell_type == 'markdown')
    source = re.sub(r'`[^`\n]*`', '', re.sub(r'```.*?```', '', source, flags=re.S))
    return {' '.join(t.split()).rstrip('.').lower() for t in re.findall(r'\*\*(.+?)\*\*', source, re.S)}


BOLD = {lesson.path: bold_terms(lesson.path) for lesson in stage.all_lessons()}


def test_the_glossary_is_alphabetical_and_has_each_term_once():
    terms = [term.lower().strip('`<') for term, *_ in ENTRIES]
    lines = (ROOT / 'docs' / 'glossary.md').read_text(encoding='utf-8').splitlines()
    assert len(ENTRIES) == sum(line.startswith('- ') for line in lines) > 150
    assert terms == sorted(set(terms))


def test_the_glossary_has_the_standard_terms():
    names = {name for term, *_ in ENTRIES for name in term.lower().split(', ')}
    assert set(STANDARD_TERMS.split('|')) - names == set()


@pytest.mark.parametrize('entry', ENTRIES, ids=lambda entry: entry[0])
def test_an_entry_has_at_most_two_sentences_and_links_the_lesson_that_has_its_term_in_bold_first(entry):
    term, text, label, link = entry
    assert text.endswith('.') and len(re.findall(r'[.?](?= [A-Z]|$)', text)) <= 2
    path = (ROOT / 'docs' / link).resolve()
    assert path in BOLD
    assert label == (stage.Lesson(path).number.lstrip('0') or path.stem)
    names = [name for n in term.lower().split(', ') for name in (n, f'{n}s')]
    first = next(path for path, bold in BOLD.items() if bold.intersection(names))
    assert first == path


def test_every_public_function_says_what_each_parameter_is():
    "In a comment beside it, which `help`, the site and an editor show."
    silent = []
    for module in map(importlib.import_module, (f'lmcourse.{name}' for name in MODULES)):
        for name in getattr(module, '__all__', ()):
            f = getattr(module, name)
            if not inspect.isfunction(f) or f.__module__ != module.__name__:
                continue
            said = docments(f)
            silent += [
                f'{module.__name__}.{name}: {p.name}'
                for p in inspect.signature(f).parameters.values()
                if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and not said.get(p.name)
            ]
    assert silent == []
