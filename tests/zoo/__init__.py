"""Kinds of module that principal gradients are collected from, each small enough to be trained in a moment."""
