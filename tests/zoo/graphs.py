"""Graphs as `torch-geometric` makes them."""

import torch
from torch.nn import functional as F

from zoo.kind import BATCH, SAMPLES, Kind, Task, seeded


class GraphClassifier(Task):
    def __init__(self, classes):
        from torch_geometric.nn import GIN

        super().__init__()
        self.encoder = GIN(4, 8, num_layers=2, norm="batch_norm", dropout=0.1)
        self.head = torch.nn.Linear(8, classes)

    def training_step(self, batch, batch_idx):
        from torch_geometric.nn import global_mean_pool

        nodes = self.encoder(batch.x, batch.edge_index)
        loss = F.cross_entropy(self.head(global_mean_pool(nodes, batch.batch)), batch.y)
        self.log("train_loss", loss, batch_size=batch.num_graphs)
        return loss


def graphs(seed, classes):
    from torch_geometric.data import Data
    from torch_geometric.loader import DataLoader

    generator, rows = seeded(seed), []
    for number in range(SAMPLES):
        nodes = 3 + number % 4
        edges = torch.randint(0, nodes, (2, 2 * nodes), generator=generator)
        features = torch.randn(nodes, 4, generator=generator)
        label = (features.sum() * (seed + 1)).long().abs() % classes
        rows.append(Data(x=features, edge_index=edges, y=label[None]))
    return DataLoader(rows, batch_size=BATCH, shuffle=True)


KINDS = [Kind("Graph network, `torch-geometric` GIN and its own loader", GraphClassifier, graphs)]
