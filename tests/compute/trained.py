"""A network of 43 weights, trained for a hundred steps, with a checkpoint every ten: what bases are tested on."""

from pathlib import Path

import torch
from torch import nn

from polca.core.checkpoints import Checkpoints
from polca.core.losses import TokenLosses


def cross_entropy(model, batch):
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


class Trained:
    """`store` of its checkpoints, `losses` in float64 and `losses_32` in float32, of the trained weights.

    `part` are losses of the first nine of the sixty examples.
    """

    def __init__(self, folder: Path):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double().eval()
        self.folder = folder
        self.data = {"x": torch.randn(60, 4).double(), "y": torch.randint(0, 3, (60,))}
        self.losses = TokenLosses(net, [self.data], loss=cross_entropy)
        self.store = Checkpoints(folder / "checkpoints")
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.02)
        for step in range(101):
            if step % 10 == 0:
                self.store.save(step, net)
            optimizer.zero_grad()
            cross_entropy(net, self.data).mean().backward()
            optimizer.step()
        self.losses_32 = TokenLosses(self.network(torch.float32), [self.batch(torch.float32)], loss=cross_entropy)
        few = {name: value[:9] for name, value in self.batch(torch.float32).items()}
        self.part = TokenLosses(self.losses_32.model, [few], loss=cross_entropy)

    def network(self, dtype):
        "A copy of the trained network."
        net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype).eval()
        net.load_state_dict(self.losses.model.state_dict())
        return net

    def batch(self, dtype):
        return {"x": self.data["x"].to(dtype), "y": self.data["y"]}
