"One small model of each architecture of the course, with V types, for tests that every one of them must pass."

import torch
from torch import nn
from lmcourse.awd_lstm import AWD
from lmcourse.recurrent import Recurrent
from lmcourse.transformer import Transformer
from lmcourse.tuned import Tuned

V = 40


class Window(nn.Module):
    "A model with a context and no state: the mean of what stands in its window so far."

    carries, context = False, 16

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(V, 8), nn.Linear(8, V)

    def forward(self, x_BT, state=None):
        e = self.embedding(x_BT)
        return e.cumsum(1) / torch.arange(1, x_BT.shape[1] + 1, device=x_BT.device)[:, None], None


MODELS = {
    'elman': lambda: Recurrent('elman', 8, 12, 1).build(V),
    'lstm': lambda: Recurrent('lstm', 8, 12, 2, around=0.5).build(V),
    'gru, tied': lambda: Tuned('gru', 8, 12).build(V),
    'awd-lstm': lambda: AWD(embedding=8, hidden=12).build(V),
    'window': Window,
    'decoder': lambda: Transformer(16, 2, 32, 2, 16, 0.3).build(V),
}
