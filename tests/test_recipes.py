"Recipes: found by name, changed, run twice in a notebook, and read back from files that somebody else wrote."
import dataclasses, importlib, json, subprocess, sys
import pytest
from lmcourse import recipes as R
from lmcourse.recipes import Data, Recipe, RecipeError, get_recipe, override, recipe, recipe_from_dict, recipe_names
from lmcourse.recurrent import Recurrent


def test_the_table_names_every_recipe_and_where_it_is():
    for module in set(R.RECIPES.values()): importlib.import_module(module)
    defined = {name: f.__module__ for name, (f, _) in R._registry.items() if f.__module__.startswith('lmcourse.')}
    assert R.RECIPES == defined
    assert set(recipe_names()) >= set(defined)


@pytest.mark.parametrize('module', ['train', 'recipes', 'record'])
def test_one_import_is_enough(module):
    code = f"import lmcourse.{module}; from lmcourse.recipes import get_recipe; print(get_recipe('lstm-small').model.cell, get_recipe('awd-tiny').optim.optimizer)"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout == 'lstm nt-asgd\n'


def test_every_recipe_comes_back_from_its_file():
    for name in R.RECIPES:
        r = get_recipe(name)
        assert recipe_from_dict(json.loads(json.dumps(r.to_dict()))) == r


def test_a_recipe_of_ones_own_comes_back():
    own = Recipe('my-own', Recurrent(hidden=16, embedding=16))
    assert recipe_from_dict(json.loads(json.dumps(own.to_dict()))) == own


def test_a_cell_can_be_run_again():
    def mine(): return Recipe('again-and-again', Recurrent())
    mine.__name__ = 'again_and_again'
    recipe(mine)
    recipe(mine)
    assert get_recipe('again-and-again').summary == 'again-and-again', 'no docstring, so its name'
    R._registry.pop('again-and-again')


def test_a_recipe_of_the_course_is_not_replaced_by_another_module():
    def lstm_a(): return Recipe('lstm-a', Recurrent())
    with pytest.raises(RecipeError, match='two recipes are called'): recipe(lstm_a)


@pytest.mark.parametrize('field, value', [('optim.lr', 'inf'), ('optim.clip', 'inf'), ('optim.clip', 'nan'), ('optim.final', float('inf')), ('model.dropout', 'nan'),
                                          ('model.hidden', '1e308'), ('data.length', '1e308'), ('optim.accumulate', '1e308'), ('model.layers', 10**9), ('train.seed', 2**63),
                                          ('train.seed', '99999999999999999999'), ('train.max_minutes', 'inf')])
def test_what_no_experiment_means_is_refused(field, value):
    with pytest.raises(RecipeError): override(get_recipe('lstm-a'), {field: value})


@pytest.mark.parametrize('seed', [9007199254740993, '9007199254740993', 2**63 - 1])
def test_a_seed_keeps_its_value(seed):
    assert override(get_recipe('lstm-a'), {'train.seed': seed}).train.seed == int(seed)


@pytest.mark.parametrize('change', [{'architecture': 'os:system'}, {'architecture': 'lmcourse.recurrent:RecurrentLM'}, {'architecture': 'lmcourse.recurrent:lstm_a'}, {'architecture': 3},
                                    {'architecture': 'antigravity:x'}, {'name': '../x'}, {'name': '$\\href{a}{b}$'}, {'model': {'layers': 10**9}}, {'model': {'heads': 2}},
                                    {'model': None}, {'model': {'hidden': [1]}}, {'data': {'length': 'x'}}, {'optim': 3}])
def test_a_strangers_configuration_is_a_sentence(change):
    with pytest.raises(RecipeError): recipe_from_dict(get_recipe('lstm-a').to_dict() | change)
    assert 'antigravity' not in sys.modules
