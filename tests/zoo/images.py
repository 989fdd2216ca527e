"""Images: classes, masks and boxes."""

import torch
from torch import nn
from torch.nn import functional as F

from pge_lightning.reference import Classifier, ImageEncoder
from zoo.kind import SAMPLES, Kind, Task, labelled, loader, seeded


class UNet(Task):
    """One level down and up again, with a skip connection past it."""

    def __init__(self, classes):
        super().__init__()
        self.encoder = nn.ModuleDict({
            "down": nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU()),
            "deep": nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        })
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.head = nn.Conv2d(16, classes, 1)

    def training_step(self, batch, batch_idx):
        images, masks = batch
        shallow = self.encoder["down"](images)
        joined = torch.cat([shallow, self.up(self.encoder["deep"](shallow))], dim=1)
        return F.cross_entropy(self.head(joined), masks, ignore_index=-1)


class Detector(Task):
    """Finds boxes on a grid of cells; targets are a list of dictionaries, with any number of boxes each."""

    def __init__(self, classes):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))
        self.boxes, self.classes = nn.Conv2d(8, 4, 1), nn.Conv2d(8, classes, 1)

    def training_step(self, batch, batch_idx):
        images, targets = batch
        features = self.backbone(torch.stack(images)).relu()
        boxes, classes = self.boxes(features), self.classes(features)
        losses = []
        for number, target in enumerate(targets):
            for box, label in zip(target["boxes"], target["labels"], strict=True):
                column, row = (box[:2] / 4).long().tolist()
                losses.append(F.smooth_l1_loss(boxes[number, :, row, column], box / 16))
                losses.append(F.cross_entropy(classes[number, :, row, column], label))
        losses = torch.stack(losses)
        return {"loss": losses.mean(), "boxes": len(losses)}


class ResidualNet(Task):
    def __init__(self, classes):
        from transformers import ResNetConfig, ResNetForImageClassification

        super().__init__()
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "basic"}
        self.model = ResNetForImageClassification(ResNetConfig(num_channels=1, num_labels=classes, **sizes))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return self.model(pixel_values=images, labels=labels).loss


class VisionTransformer(ResidualNet):
    def __init__(self, classes):
        from transformers import ViTConfig, ViTForImageClassification

        Task.__init__(self)
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        config = ViTConfig(image_size=16, patch_size=8, num_channels=1, num_labels=classes, **sizes)
        self.model = ViTForImageClassification(config)


def pictures(seed, classes):
    return loader(*labelled(seed, classes, 1, 16, 16))


def masks(seed, classes):
    images = torch.randn(SAMPLES, 1, 16, 16, generator=seeded(seed))
    labels = (images[:, 0] * (seed + 1)).long().clamp(-1, classes - 1)
    return loader(images, labels)


def boxes(seed, classes):
    rows = []
    for number, image in enumerate(torch.randn(SAMPLES, 1, 16, 16, generator=seeded(seed))):
        corners = torch.rand(1 + number % 3, 2, generator=seeded(seed * SAMPLES + number)) * 8
        labels = (corners.sum(1).long() + seed) % classes
        rows.append((image, {"boxes": torch.cat([corners, corners + 6], dim=1), "labels": labels}))
    return loader(rows, collate_fn=lambda samples: tuple(zip(*samples, strict=True)))


KINDS = [
    Kind(
        "Image classifier, convolutions",
        lambda classes: Classifier(ImageEncoder(width=4, features=8), classes),
        pictures,
    ),
    Kind(
        "Residual network, `transformers` ResNetForImageClassification", ResidualNet, pictures, ("model.classifier.",)
    ),
    Kind("Vision transformer, `transformers` ViTForImageClassification", VisionTransformer, pictures, ("model.cl",)),
    Kind("U-Net, segmentation with ignored pixels", UNet, masks, ("head.", "up.")),
    Kind("Detector, ragged targets as a list of dictionaries", Detector, boxes, ("boxes.", "classes.")),
]
