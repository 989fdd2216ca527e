"""What a user's own command line would name by import path."""

from lightning.pytorch.cli import LightningCLI

from trainer_helpers import Data, Net, plain_loss


class Model(Net):
    """A small classifier.

    Args:
        width: Size of the hidden layer.
    """

    def __init__(self, width: int = 8) -> None:
        super().__init__(width=width)
        self.save_hyperparameters()


class Samples(Data):
    """Random samples.

    Args:
        seed: Of the rule and of the samples.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed=seed)


def loss(module, batch):
    """A loss of the user's."""
    return 2 * plain_loss(module, batch)


def fresh() -> Model:
    """A factory of the user's."""
    return Model()


def first_layer(module):
    """Names of the transferred units."""
    return ["encoder.0.weight", "encoder.0.bias"]


def main(arguments=None, run=True):
    return LightningCLI(Model, Samples, args=arguments, run=run, save_config_kwargs={"overwrite": True})


if __name__ == "__main__":
    main()
