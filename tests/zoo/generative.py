"""Models that generate."""

import torch
from torch import nn
from torch.nn import functional as F

from zoo.kind import Kind, Task
from zoo.representation import unlabelled


class Variational(Task):
    def __init__(self, size):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.ELU())
        self.latent, self.decoder = nn.Linear(8, 2 * size), nn.Linear(size, 6)

    def training_step(self, batch, batch_idx):
        (inputs,) = batch
        mean, spread = self.latent(self.encoder(inputs)).chunk(2, dim=1)
        code = mean + torch.randn_like(mean) * (spread / 2).exp()
        divergence = 0.5 * (mean.square() + spread.exp() - 1 - spread).sum(1).mean()
        reconstruction = F.mse_loss(self.decoder(code), inputs)
        self.log_dict({"divergence": divergence, "reconstruction": reconstruction})
        return reconstruction + 0.1 * divergence


class Adversarial(Task):
    """Two optimizers by hand; what is transferred are the features of the critic."""

    def __init__(self, size):
        super().__init__()
        self.automatic_optimization = False
        self.size, self.generator = (
            size,
            nn.Sequential(nn.Linear(size, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 6)),
        )
        self.features, self.verdict = nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(0.2)), nn.Linear(8, 1)

    def configure_optimizers(self):
        critic = [*self.features.parameters(), *self.verdict.parameters()]
        return torch.optim.Adam(self.generator.parameters(), 1e-2), torch.optim.Adam(critic, 1e-2)

    def made(self, inputs):
        return self.generator(torch.randn(len(inputs), self.size))

    def critic_loss(self, batch):
        (inputs,) = batch
        real, fake = (self.verdict(self.features(part)) for part in (inputs, self.made(inputs).detach()))
        return F.softplus(-real).mean() + F.softplus(fake).mean()

    def training_step(self, batch, batch_idx):
        generator, critic = self.optimizers()
        losses = -self.verdict(self.features(self.made(batch[0]))).mean(), self.critic_loss
        generator.zero_grad()
        self.manual_backward(losses[0])
        generator.step()
        critic.zero_grad()
        self.manual_backward(losses[1](batch))
        critic.step()


KINDS = [
    Kind("Variational auto-encoder", Variational, unlabelled(6), ("latent.", "decoder.")),
    Kind(
        "GAN under manual optimization, `loss_fn`",
        Adversarial,
        unlabelled(6),
        head=("generator.", "verdict."),
        loss_fn=lambda module, batch: module.critic_loss(batch),
    ),
]
