"""The architectures of the course, each once, small: what is entered here is held to the contract (test_contract.py),
and read, trained, adapted, resumed and put on a device like all others (test_context.py, test_generate.py,
test_adapt.py, test_train.py, test_resume.py, test_devices.py)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from lmcourse.models import recurrent, semantic_blocks, transformer
from lmcourse.models.awd_lstm import AWDLSTMConfig
from lmcourse.models.base import LanguageModel, ModelConfig
from lmcourse.models.recurrent import RecurrentConfig, num_cell_parameters
from lmcourse.models.semantic_blocks import SemanticBlocksConfig
from lmcourse.models.tied_rnn import TiedRNNConfig
from lmcourse.models.transformer import TransformerConfig

V = 40  # types of the tests' vocabulary


class Architecture(NamedTuple):
    "A small configuration, and the closed form of its number of parameters."

    config: ModelConfig  # at most 16 wide, and a context of at most 16, if it has one
    formula: Callable | None = None  # (config, V) -> the number of parameters; None: there is no closed form


def breakdown(module):
    "The formula of a module that has `parameter_breakdown`."
    return lambda config, vocab_size: sum(module.parameter_breakdown(config, vocab_size).values())


def tied(config, vocab_size):
    "One matrix for embedding and head, a bias, and recurrent layers of which the last is as wide as the embedding."
    widths = [config.embedding_dim, *[config.hidden_size] * (config.num_layers - 1), config.embedding_dim]
    cells = sum(num_cell_parameters(config.cell, i, h) for i, h in zip(widths, widths[1:]))
    return vocab_size * (config.embedding_dim + 1) + cells


ARCHITECTURES = {
    'elman': Architecture(RecurrentConfig('elman', 8, 12, 1), breakdown(recurrent)),
    'lstm': Architecture(RecurrentConfig('lstm', 8, 12, 2, io_dropout=0.5), breakdown(recurrent)),
    'gru': Architecture(RecurrentConfig('gru', 8, 8, 1, tie_weights=True), breakdown(recurrent)),
    'lstm, tied': Architecture(TiedRNNConfig('lstm', 8, 12), tied),
    'gru, tied': Architecture(TiedRNNConfig('gru', 8, 12), tied),
    'awd-lstm': Architecture(AWDLSTMConfig(embedding_dim=8, hidden_size=12), tied),
    'decoder': Architecture(TransformerConfig(16, 2, 32, 2, 16, 0.3), breakdown(transformer)),
    'decoder, rotary': Architecture(
        TransformerConfig(16, 2, 32, 2, 16, positions='rotary', norm='rms', activation='swiglu'),
        breakdown(transformer),
    ),
    'semantic blocks': Architecture(SemanticBlocksConfig(4, 2, 2, 4, 32, 2, 16, 0.3), breakdown(semantic_blocks)),
    'semantic blocks, scrambled': Architecture(
        SemanticBlocksConfig(6, 2, 2, 6, 32, 1, 16, layout='scrambled'), breakdown(semantic_blocks)
    ),
}


class Window(LanguageModel):
    "A model with a context and no state: the mean of what stands in its window so far."

    context_length = 16

    def __init__(self):
        super().__init__()
        self.embedding, self.lm_head = nn.Embedding(V, 8), nn.Linear(8, V)

    def forward(self, x_BT, state=None):
        e = self.embedding(x_BT)
        return e.cumsum(1) / torch.arange(1, x_BT.shape[1] + 1, device=x_BT.device)[:, None], None


CONFIGS = {name: a.config for name, a in ARCHITECTURES.items()}
FORMULAS = {name: a.formula for name, a in ARCHITECTURES.items() if a.formula}
MODELS = {name: lambda config=config: config.build(V) for name, config in CONFIGS.items()} | {'window': Window}
