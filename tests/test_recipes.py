"""Recipes: found by name wherever one is, back from any run's folder, and refused with a sentence where they ask for
what cannot be."""

import ast
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from lmcourse.models.base import ConfigError, ModelConfig
from lmcourse.models.recurrent import RecurrentConfig
from lmcourse.training import recipes as R
from lmcourse.training.recipes import (
    Data,
    Optim,
    Recipe,
    Train,
    get_recipe,
    override,
    recipe,
    recipe_from_dict,
)

PACKAGE = Path(R.__file__).parents[1]


@dataclass(frozen=True)
class Own(ModelConfig):
    "A model of one's own."

    width: int = 8
    rate: float = 0.5

    def build(self, vocab_size):
        return torch.nn.Sequential(torch.nn.Embedding(vocab_size, self.width), torch.nn.Linear(self.width, vocab_size))

    def tiny(self):
        return self


def stored(r):
    return json.loads(json.dumps(r.to_dict()))


def fresh(program, cwd):
    "A program run in a process of its own."
    return subprocess.run([sys.executable, '-c', program], cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(R, '_registry', dict(R._registry))
    return R._registry


# names


def test_the_table_is_what_the_modules_define():
    def is_recipe(d):
        return getattr(d.func if isinstance(d, ast.Call) else d, 'id', None) == 'recipe'

    defined = {}
    for path in PACKAGE.rglob('*.py'):
        module = '.'.join(['lmcourse', *path.relative_to(PACKAGE).with_suffix('').parts])
        for node in ast.parse(path.read_text(encoding='utf-8')).body:
            if isinstance(node, ast.FunctionDef) and any(map(is_recipe, node.decorator_list)):
                defined[node.name.replace('_', '-')] = f'{module}:{node.name}'
    assert R.RECIPES == defined


def test_every_recipe_of_the_table_is_found_and_comes_back_from_its_file():
    for name in R.RECIPES:
        r = get_recipe(name)
        assert r.name == name and r.summary
        assert recipe_from_dict(stored(r)) == r
        assert recipe_from_dict(stored(R.tiny(r))) == R.tiny(r)


def test_a_summary_is_the_first_sentence_of_the_docstring(registry):
    "Over as many lines as it has; `lmcourse list` shows it, in a table's cell."

    @R.recipe
    def my_long():
        """A sentence that goes on at 3.5 times
        the width. A second one.

        A second paragraph."""
        return Recipe('my-long', RecurrentConfig())

    assert get_recipe('my-long').summary == 'A sentence that goes on at 3.5 times the width.'
    for name in R.RECIPES:
        summary = get_recipe(name).summary
        assert summary.endswith('.'), f'the docstring of {name} begins with a sentence, and a full stop'
        assert '\n' not in summary
        assert '|' not in summary


def test_a_recipe_is_found_by_its_name_after_importing_training_alone(tmp_path):
    r = fresh(
        "from lmcourse.training.trainer import train\nfrom lmcourse.training.recipes import"
        " get_recipe\nprint(get_recipe('lstm-small').name, get_recipe('awd-lstm').optim.optimizer)",
        tmp_path,
    )
    assert r.stdout.split() == ['lstm-small', 'nt-asgd'], r.stderr[-500:]


def test_a_run_of_ones_own_recipe_loads_in_a_fresh_process(tmp_path):
    own = Recipe(
        'my-own',
        RecurrentConfig(hidden_size=16, embedding_dim=16),
        Data(corpus='stdlib'),
        Optim(optimizer='nt-asgd'),
        Train(max_steps=1),
        summary='mine',
        reported_perplexity=99.0,
    )
    (tmp_path / 'config.json').write_text(json.dumps(own.to_dict()))
    r = fresh(
        "import json\nfrom lmcourse.training.recipes import"
        " recipe_from_dict\nprint(recipe_from_dict(json.load(open('config.json'))))",
        tmp_path,
    )
    assert r.stdout.strip() == repr(own), r.stderr[-500:]


def test_a_configuration_without_the_models_class_loads_through_the_table():
    old = stored(get_recipe('lstm-a'))
    del old['model']['class']
    assert recipe_from_dict(old) == get_recipe('lstm-a')


@pytest.mark.parametrize(
    'path',
    [
        'os:system',
        'antigravity:fly',
        'lmcourse.nothing:X',
        'lmcourse.__main__:x',
        'lmcourse.models.recurrent:lstm_a',
        'lmcourse.training.recipes:Data',
        'lmcourse.models.recurrent',
        ':',
        '',
        '.:.',
        '../x:y',
        7,
        None,
        ['a'],
        'x' * 100_000,
    ],
)
def test_a_class_that_is_no_model_is_refused_and_nothing_foreign_is_imported(path):
    d = stored(get_recipe('lstm-a'))
    d['model']['class'], d['name'] = path, 'my-own'
    before = set(sys.modules)
    with pytest.raises(ConfigError):
        recipe_from_dict(d)
    assert all(name.startswith('lmcourse') for name in set(sys.modules) - before)


# cells run again


def test_a_cell_of_a_recipe_can_be_run_twice_and_the_newer_one_counts(registry):
    space = {'__name__': '__main__', 'Recipe': Recipe, 'Own': Own, 'recipe': recipe}
    for width in (8, 9):
        exec(f'@recipe\ndef my_cell(): return Recipe("my-cell", Own({width}))', space)
    assert get_recipe('my-cell').model.width == 9


def test_two_modules_cannot_share_a_name(registry):
    for module in ('a', 'b'):
        code = '@recipe\ndef my_clash(): return Recipe("my-clash", Own())'
        space = {'__name__': module, 'Recipe': Recipe, 'Own': Own, 'recipe': recipe}
        if module == 'a':
            exec(code, space)
        else:
            with pytest.raises(ConfigError, match="two recipes are called 'my-clash'"):
                exec(code, space)


def test_what_stands_in_a_notebook_is_kept_when_its_module_is_imported_later(registry):
    code = '@recipe\ndef my_lesson(): return Recipe("my-lesson", Own({}))'
    exec(code.format(5), {'__name__': '__main__', 'Recipe': Recipe, 'Own': Own, 'recipe': recipe})
    exec(code.format(6), {'__name__': 'lmcourse.lesson', 'Recipe': Recipe, 'Own': Own, 'recipe': recipe})
    assert get_recipe('my-lesson').model.width == 5


def test_a_recipe_without_a_docstring_has_no_summary(registry):
    @recipe
    def my_quiet():
        return Recipe('my-quiet', Own())

    assert get_recipe('my-quiet').summary == ''


def test_recipes_are_found_where_python_leaves_docstrings_out(tmp_path):
    r = subprocess.run(
        [
            sys.executable,
            '-OO',
            '-c',
            "from lmcourse.training.recipes import get_recipe\nprint(get_recipe('lstm-a').name)",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert r.stdout.strip() == 'lstm-a', r.stderr[-500:]


# numbers


@pytest.mark.parametrize(
    'field',
    [
        'optim.lr',
        'optim.max_grad_norm',
        'optim.min_lr_ratio',
        'optim.weight_decay',
        'optim.betas',
        'train.max_minutes',
        'model.rate',
    ],
)
@pytest.mark.parametrize('value', [math.inf, math.nan, '-inf', 'nan', '1e999'])
def test_a_setting_that_is_not_finite_is_refused(field, value):
    given = (
        (value, 0.9)
        if field == 'optim.betas' and not isinstance(value, str)
        else f'{value},.9'
        if field == 'optim.betas'
        else value
    )
    with pytest.raises(ConfigError, match=f'{field} wants .*finite number'):
        override(Recipe('x', Own()), {field: given})


def test_a_recipe_made_in_python_with_an_infinite_setting_is_refused():
    with pytest.raises(ConfigError, match='optim.max_grad_norm is inf'):
        Recipe('x', Own(), optim=Optim(max_grad_norm=math.inf))
    with pytest.raises(ConfigError, match='model.rate is nan'):
        Recipe('x', Own(rate=math.nan))


def test_a_clip_of_zero_stays():
    assert override(Recipe('x', Own()), {'optim.max_grad_norm': '0'}).optim.max_grad_norm == 0


@pytest.mark.parametrize('number', [2**53 + 1, 2**63 - 1])
@pytest.mark.parametrize('kind', [str, int])
def test_a_large_whole_number_keeps_all_its_digits(number, kind):
    r = override(Recipe('x', Own()), {'train.seed': kind(number)})
    assert r.train.seed == number
    assert recipe_from_dict(stored(r)).train.seed == number


@pytest.mark.parametrize(
    'change',
    [
        {'train.seed': '99999999999999999999'},
        {'train.seed': -1},
        {'data.seq_len': '1e308'},
        {'data.batch_size': 10**12},
        {'data.stride': '1e15'},
        {'optim.grad_accum_steps': '1e308'},
        {'model.width': '1e308'},
        {'model.width': 10**9},
        {'train.epochs': '9' * 5000},
        {'train.epochs': True},
    ],
)
def test_a_size_that_cannot_be_meant_is_refused_in_a_short_sentence(change):
    start = Recipe('x', Own(), Data(batching='windows'))
    with pytest.raises(ConfigError) as e:
        override(start, change)
    assert len(str(e.value)) < 300 and next(iter(change)) in str(e.value)


@pytest.mark.parametrize(
    'change', [{'num_layers': 10**9}, {'hidden_size': 10**12}, {'hidden_size': 10**7, 'num_layers': 1000}]
)
def test_a_strangers_configuration_that_asks_for_too_much_is_refused_before_memory_is_taken(change, monkeypatch):
    d = stored(get_recipe('lstm-a'))
    d['model'] |= change
    with pytest.raises(ConfigError, match='at most'):
        recipe_from_dict(d)


HOSTILE = [None, [], 7, 'x', {}, {'a': 1}, [[[]]], -1, 1e308, True, 10**400, '$\\href{x}{y}$', '../../x']


@pytest.mark.parametrize(
    'key',
    [
        'name',
        'model',
        'data',
        'optim',
        'train',
        'summary',
        'reported_perplexity',
        'tiny',
        'data.corpus',
        'data.batch_size',
        'optim.betas',
        'optim.optimizer',
        'data.seq_len_schedule',
        'train.eval_batch_size',
        'train.seed',
        'model.hidden_size',
        'model.num_layers',
        'model.cell',
    ],
)
def test_a_hostile_configuration_is_a_recipe_or_a_sentence(key):
    for value in HOSTILE:
        d = stored(get_recipe('lstm-a'))
        section, _, field = key.rpartition('.')
        (d[section] if section else d)[field] = value
        try:
            assert isinstance(recipe_from_dict(d), Recipe)
        except ConfigError as e:
            assert len(str(e)) < 600


def test_a_configuration_that_is_no_object_is_refused():
    for value in HOSTILE:
        with pytest.raises(ConfigError):
            recipe_from_dict(value)


@pytest.mark.parametrize('name', ['', '.', '..', '../x', '/tmp/x', 'a b', 'x' * 101, '$\\href{a}{b}$', 'a\nb', None, 7])
def test_a_name_that_cannot_stand_in_a_path_is_refused(name):
    with pytest.raises(ConfigError, match='name of a folder'):
        Recipe(name, Own())
