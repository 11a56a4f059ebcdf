"""Stand-in networks: smooth functions of latents, time and label that count their calls."""

import torch


class Network:
    """m = slope * (a rough function of x) + a wave of time and label, [B, C, H, W]."""

    def __init__(self, slope=1.0):
        self.slope, self.calls = slope, 0

    def __call__(self, x, timestep, label=None):
        self.calls += 1
        time = timestep.float()[:, None, None, None] / 1000
        label = 0.0 if label is None else label[:, None, None, None]
        place = torch.linspace(0, 3, x.shape[-1])
        wave = torch.sin(3 * time + place + label) * torch.cos(2 * time * place)
        rough = torch.tanh(2 * x.roll(1, -1) + x.roll(1, -2)) * (1.2 - time) + x * time
        return 0.5 * wave + 0.5 * self.slope * rough


class Straight(Network):
    """A network linear in x: what a search assumes of one."""

    def __call__(self, x, timestep, label=None):
        blind = Network(0.0)(torch.zeros_like(x), timestep, label)
        self.calls += 1
        return blind + self.slope * x


class Interrupted(Network):
    """Raises `error` at call number `at`."""

    def __init__(self, at, error):
        super().__init__()
        self.at, self.error = at, error

    def __call__(self, *arguments, **keywords):
        if self.calls == self.at:
            raise self.error
        return super().__call__(*arguments, **keywords)
