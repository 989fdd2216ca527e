"""Small encoders for images, series and text, quick on a CPU."""

from torch import Tensor, nn
from typing_extensions import override

__all__ = ["ImageEncoder", "SeriesEncoder", "TextEncoder"]


class ImageEncoder(nn.Module):
    """Four convolutions with batch norm, then the mean over the image.

    Maps float images ``[batch, channels, height, width]``, 16x16 pixels or more, to ``[batch, features]``.

    Args:
        channels: Channels of the images.
        width: Channels after the first convolution.
        features: Length of the feature vector.
    """

    def __init__(self, channels: int = 1, width: int = 16, features: int = 64) -> None:
        super().__init__()
        self.features = features
        self.layers = nn.Sequential(
            _block2d(channels, width, stride=2),
            _block2d(width, 2 * width, stride=2),
            _block2d(2 * width, 2 * width, stride=1),
            _block2d(2 * width, features, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )

    @override
    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped


class SeriesEncoder(nn.Module):
    """Three convolutions with batch norm, then the mean over time.

    Maps float series ``[batch, channels, length]`` of any length to ``[batch, features]``.

    Args:
        channels: Channels of the series.
        width: Channels after the first convolution.
        features: Length of the feature vector.
    """

    def __init__(self, channels: int = 1, width: int = 32, features: int = 64) -> None:
        super().__init__()
        self.features = features
        self.layers = nn.Sequential(
            _block1d(channels, width, kernel=7, stride=1),
            _block1d(width, features, kernel=5, stride=2),
            _block1d(features, features, kernel=3, stride=1),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
        )

    @override
    def forward(self, series: Tensor) -> Tensor:
        return self.layers(series)  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped


class TextEncoder(nn.Module):
    """Word embeddings, one convolution over three words with batch norm, then the maximum over the text.

    Maps token numbers, int64 ``[batch, length]`` with 0 for padding, to ``[batch, features]``. Padding at the end of
    a text adds nothing, in evaluation mode whatever its length; a text without words gives zeros.

    Args:
        vocabulary: Number of token numbers, that of padding included.
        width: Length of a word's embedding.
        features: Length of the feature vector.
    """

    def __init__(self, vocabulary: int = 4096, width: int = 64, features: int = 64) -> None:
        super().__init__()
        self.features = features
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=0)
        self.block = _block1d(width, features, kernel=3, stride=1)

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.block(self.embedding(tokens).mT)
        # The activations are not negative, so that a zero never is the only maximum.
        masked: Tensor = hidden * (tokens != 0).unsqueeze(1)
        return masked.amax(-1)


def _block2d(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def _block1d(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv1d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm1d(outputs), nn.ReLU())
