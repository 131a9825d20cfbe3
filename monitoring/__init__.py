"""Watches student against teacher and the inputs, keeps flags and reviews, moves rollouts."""
