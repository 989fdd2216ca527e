"""The command `pge`: tasks over the library, configured by Hydra."""
