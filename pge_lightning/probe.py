"""A probe: the recipe that must be the same for all data sets whose signatures are compared."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, get_args

__all__ = ["PROBES", "PretextKind", "Probe", "is_name"]

PretextKind: TypeAlias = Literal["auto", "reduced", "projection", "words"]


def is_name(text: str) -> bool:
    """Whether a name of a probe or source is fit for a file: letters, digits, ``-_.``, not starting with a dot."""
    return bool(text) and all(c.isalnum() or c in "-_." for c in text) and not text.startswith(".")


@dataclass(frozen=True)
class Probe:
    """How principal gradients are collected. Two signatures compare only where their recipes are equal.

    Args:
        name: What the probe is called in tables and file names; not part of the recipe.
        restarts: Number of seeded draws of all weights; ``None`` takes one per mini-batch of a single pass.
        steps: Optimizer steps of the warm-up that follows each restart.
        optimizer: ``"adam"`` (the expectation in the optimizer's own geometry) or ``"sgd"`` (the plain expectation).
        lr: Learning rate of the warm-up.
        batch_size: Samples per step.
        budgets: The ladder of sample budgets: a signature is collected for each rung that the data set can fill, and
            every restart draws its rung's samples afresh. Empty means one signature from the whole data set.
        seed: Base of all restart seeds.
        paired: Whether restart k starts every data set from equal encoder weights. Unpaired restarts have nothing
            in common between data sets, so that only their mean is kept.
        statistic: What is kept of the encoder: its mean update along the warm-up (``"gradient"``), or, with the head
            alone warmed up, the diagonal of its empirical Fisher information (``"fisher"``). Part of the recipe where
            it is not the default.
        pretext: For a probe without labels, what the encoder's features are asked of the inputs instead: the input at
            a lower resolution (``"reduced"``), a fixed random projection of it (``"projection"``), which samples share
            words (``"words"``), or what fits the type of the inputs (``"auto"``). ``None`` follows the loss of the
            module. Part of the recipe where it is not the default.

    Raises:
        ValueError: If a field is out of its range.
    """

    name: str = "default"
    restarts: int | None = 8
    steps: int = 60
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float = 2e-3
    batch_size: int = 64
    budgets: tuple[int, ...] = (200, 1000, 5000)
    seed: int = 0
    paired: bool = True
    statistic: Literal["gradient", "fisher"] = "gradient"
    pretext: PretextKind | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "budgets", tuple(sorted(self.budgets)))
        if not is_name(self.name):
            raise ValueError(f"Expected `name` of letters, digits, '-', '_' and '.', but got {self.name!r}.")
        if self.restarts is None and self.paired:
            raise ValueError("Expected a number of `restarts` for paired restarts, but got None. Set `paired=False`.")
        for field in ("restarts", "steps", "batch_size"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"Expected `{field}` to be at least 1, but got {value}.")
        if self.optimizer not in ("adam", "sgd"):
            raise ValueError(f"Expected `optimizer` to be 'adam' or 'sgd', but got {self.optimizer!r}.")
        if self.statistic not in ("gradient", "fisher"):
            raise ValueError(f"Expected `statistic` to be 'gradient' or 'fisher', but got {self.statistic!r}.")
        if self.pretext is not None and self.pretext not in get_args(PretextKind):
            raise ValueError(
                f"Expected `pretext` to be None or one of {get_args(PretextKind)}, but got {self.pretext!r}."
            )
        if not self.lr > 0:
            raise ValueError(f"Expected `lr` to be positive, but got {self.lr}.")
        if self.budgets and self.budgets[0] < self.batch_size:
            raise ValueError(
                f"Expected every rung of `budgets` to fill a batch of {self.batch_size}, but got {self.budgets[0]}. "
                "Lower `batch_size` or drop the rung."
            )

    @classmethod
    def of(cls, probe: "Probe | str") -> "Probe":
        """A probe as it is, or a shipped one by its name.

        Args:
            probe: The probe, or a key of :data:`PROBES`.

        Returns:
            The probe.

        Raises:
            ValueError: If no probe has that name.
        """
        if isinstance(probe, Probe):
            return probe
        if probe not in PROBES:
            raise ValueError(f"Expected `probe` to be a Probe or one of {sorted(PROBES)}, but got {probe!r}.")
        return PROBES[probe]

    @property
    def recipe(self) -> dict[str, Any]:
        """Everything two signatures must share, as plain JSON types: all fields but the name and the ladder.

        Fields that came later count where they are not the default: signatures collected before stay comparable.
        """
        later = {"statistic": "gradient", "pretext": None}
        fields = {key: value for key, value in asdict(self).items() if key not in ("name", "budgets")}
        return {key: value for key, value in fields.items() if key not in later or value != later[key]}

    @property
    def walks(self) -> bool:
        """Whether what is kept is the way from the start to the end, and not a sum along it."""
        return self.statistic == "gradient" and self.optimizer == "adam"


PROBES = {
    "default": Probe(),
    "fast": Probe(name="fast", restarts=2, steps=30, budgets=(200,)),
    "published": Probe(name="published", restarts=None, steps=1, optimizer="sgd", lr=1.0, budgets=(), paired=False),
    "task2vec": Probe(name="task2vec", restarts=2, steps=400, lr=5e-3, batch_size=8, statistic="fisher"),
    # Samples without labels are plenty, and more steps bring more.
    "label_free": Probe(name="label_free", steps=120, pretext="auto"),
}
