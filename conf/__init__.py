"""Configurations, shipped as ``pkg://pge_lightning.conf``."""
