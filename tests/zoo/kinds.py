"""All kinds of module, in the order of the README."""

from zoo import adapters, forecasting, generative, graphs, images, language, representation, sequences, shapes, tables

__all__ = ["KINDS"]

FAMILIES = [
    tables.KINDS,
    images.KINDS,
    sequences.KINDS,
    language.KINDS,
    adapters.KINDS,
    graphs.KINDS,
    forecasting.KINDS,
    representation.KINDS,
    generative.KINDS,
    shapes.KINDS,
]
KINDS = {kind.name: kind for family in FAMILIES for kind in family}
