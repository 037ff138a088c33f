"CONTRIBUTING.md, followed step by step in a copy of the checkout; and everything that it names is there."

import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from conftest import BIN, ROOT

GUIDE = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')
LESSON = [
    (
        'markdown',
        '# A layer over the last tokens\n\n> In five minutes you will build a model that looks at three tokens.',
    ),
    ('code', '#| default_exp models.last_tokens'),
    (
        'code',
        '''#| export
from dataclasses import dataclass, replace

import torch
from torch import nn

from lmcourse.models.base import LanguageModel, ModelConfig, check_range


@dataclass(frozen=True)
class LastTokensConfig(ModelConfig):
    "A layer over the vectors of the last n tokens."

    n: int = 3  # tokens that a prediction looks at
    width: int = 64  # D

    def __post_init__(self):
        check_range(self, at_least=dict(n=2, width=1))

    def build(self, vocab_size: int) -> 'LastTokensLM':
        return LastTokensLM(vocab_size, self)

    def tiny(self) -> 'LastTokensConfig':
        "Width 16 at most."
        return replace(self, width=min(self.width, 16))


class LastTokensLM(LanguageModel):
    "It carries the vectors of the last n - 1 tokens from call to call."

    stateful = True

    def __init__(self, vocab_size: int, config: LastTokensConfig):
        super().__init__()
        self.n = config.n
        self.embedding = nn.Embedding(vocab_size, config.width)
        self.mix = nn.Linear(config.width * config.n, config.width)
        self.lm_head = nn.Linear(config.width, vocab_size)

    def forward(self, x_BT: torch.Tensor, state=None):
        "Hidden states, and what the next call needs."
        new_BTD = self.embedding(x_BT)
        if state is None:
            state = torch.zeros_like(new_BTD[:, :1]).repeat(1, self.n - 1, 1)
        all_BSD = torch.cat([state, new_BTD], 1)
        return self.mix(all_BSD.unfold(1, self.n, 1).flatten(2)).tanh(), all_BSD[:, 1 - self.n :]


def parameter_breakdown(
    config: LastTokensConfig,  # widths
    vocab_size: int,  # V
) -> dict:
    "The parameters in closed form."
    D = config.width
    return dict(embedding=vocab_size * D, mix=config.n * D * D + D, head=vocab_size * (D + 1))''',
    ),
]
RECIPE = '''#| export
from lmcourse.models.last_tokens import LastTokensConfig


@recipe
def last_tokens():
    "A layer over the last three tokens, on the bundled corpus."
    return Recipe(
        'last-tokens',
        LastTokensConfig(),
        Data(corpus='stdlib', batching='stateful', seq_len=35, batch_size=16),
        Optim(lr=1e-3),
        Train(epochs=1),
    )'''


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "The checkout without what is made from it."
    to = tmp_path_factory.mktemp('contributing') / 'lmcourse'
    left_out = shutil.ignore_patterns(
        '.git', '.venv', 'build', '_build', '*.egg-info', '__pycache__', 'runs', '.*_cache'
    )
    shutil.copytree(ROOT, to, ignore=left_out)
    return to


def run(copy, *words):
    "A command in the copy, with the copy's package."
    env = dict(os.environ, PYTHONPATH=str(copy), LMCOURSE_CACHE=str(copy / 'cache'))
    for name in ('LMCOURSE_DATA', 'PYTEST_ADDOPTS'):
        env.pop(name, None)
    done = subprocess.run(list(map(str, words)), cwd=copy, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f'{words}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}'
    return done.stdout


def edit(path, old, new):
    "Put `new` in the place of the one `old`."
    text = path.read_text(encoding='utf-8')
    assert text.count(old) == 1, f'{old!r} stands in {path.name} {text.count(old)} times'
    path.write_text(text.replace(old, new), encoding='utf-8')


def notebook(cells):
    "A notebook of these cells."
    make = dict(markdown=nbformat.v4.new_markdown_cell, code=nbformat.v4.new_code_cell)
    return nbformat.v4.new_notebook(cells=[make[kind](source) for kind, source in cells])


def test_an_architecture_a_recipe_and_a_lesson_are_added_as_the_guide_says(copy):
    "The lesson's notebook, one entry in each of the two tables, an export: the contract holds it, and it trains."
    nbformat.write(notebook(LESSON), copy / 'nbs/11a_last_tokens.ipynb')
    edit(
        copy / 'tests/architectures.py',
        'ARCHITECTURES = {\n',
        "ARCHITECTURES = {\n    'last tokens': Architecture(LastTokensConfig(3, 8), breakdown(last_tokens)),\n",
    )
    edit(
        copy / 'tests/architectures.py',
        'from lmcourse.models import recurrent,',
        'from lmcourse.models import last_tokens, recurrent,',
    )
    edit(
        copy / 'tests/architectures.py',
        'from lmcourse.models.base import',
        'from lmcourse.models.last_tokens import LastTokensConfig\nfrom lmcourse.models.base import',
    )
    recipes = nbformat.read(copy / 'nbs/engine/recipes.ipynb', 4)
    recipes.cells.append(nbformat.v4.new_code_cell(RECIPE))
    nbformat.write(recipes, copy / 'nbs/engine/recipes.ipynb')
    edit(
        copy / 'nbs/10_recipes.ipynb',
        '"    \'ladder-gru\':',
        '"    \'last-tokens\': \'lmcourse.experiments.recipes:last_tokens\',\\n",\n    "    \'ladder-gru\':',
    )
    run(copy, BIN / 'nbdev-export')
    assert (copy / 'lmcourse/models/last_tokens.py').exists()
    run(copy, sys.executable, '-m', 'pytest', '-q', '-n0', 'tests/test_contract.py', '-k', 'last')
    assert 'A layer over the last three tokens, on the bundled corpus.' in run(
        copy, sys.executable, '-m', 'lmcourse', 'list'
    )
    said = run(copy, sys.executable, '-m', 'lmcourse', 'run', 'last-tokens', '--tiny', '--out', copy / 'run')
    assert 'validation: perplexity' in said


def test_the_guide_names_only_files_that_are_there():
    "Every path in backticks or in a command, but those with a placeholder."
    paths = set(re.findall(r'(?:tests|nbs|docs|lmcourse)/[\w/.]*\w', GUIDE))
    named = {p for p in paths if not re.search(r'X|NAME|STEM', p)}
    missing = [p for p in named if not any((ROOT / f'{p}{end}').exists() for end in ('', '.ipynb'))]
    assert len(named) > 15
    assert missing == []


@pytest.mark.parametrize('table, file', re.findall(r'`([A-Z_]{4,})`\s+(?:of|in) `(tests/\w+\.py)`', GUIDE))
def test_the_guide_names_only_tables_that_are_there(table, file):
    "In the file that it says."
    assert re.search(rf'^{table}\b.* = ', (ROOT / file).read_text(encoding='utf-8'), re.M)
