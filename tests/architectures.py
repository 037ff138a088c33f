"One small model of each architecture of the course, with V types, for tests that every one of them must pass."

import torch
from torch import nn

from lmcourse.models.awd_lstm import AWDLSTMConfig
from lmcourse.models.base import LanguageModel
from lmcourse.models.recurrent import RecurrentConfig
from lmcourse.models.semantic_blocks import SemanticBlocksConfig
from lmcourse.models.tied_rnn import TiedRNNConfig
from lmcourse.models.transformer import TransformerConfig

V = 40


class Window(LanguageModel):
    "A model with a context and no state: the mean of what stands in its window so far."

    context_length = 16

    def __init__(self):
        super().__init__()
        self.embedding, self.lm_head = nn.Embedding(V, 8), nn.Linear(8, V)

    def forward(self, x_BT, state=None):
        e = self.embedding(x_BT)
        return e.cumsum(1) / torch.arange(1, x_BT.shape[1] + 1, device=x_BT.device)[:, None], None


MODELS = {
    'elman': lambda: RecurrentConfig('elman', 8, 12, 1).build(V),
    'lstm': lambda: RecurrentConfig('lstm', 8, 12, 2, io_dropout=0.5).build(V),
    'gru, tied': lambda: TiedRNNConfig('gru', 8, 12).build(V),
    'awd-lstm': lambda: AWDLSTMConfig(embedding_dim=8, hidden_size=12).build(V),
    'window': Window,
    'decoder': lambda: TransformerConfig(16, 2, 32, 2, 16, 0.3).build(V),
    'semantic blocks': lambda: SemanticBlocksConfig(4, 2, 2, 4, 32, 2, 16, 0.3).build(V),
}
