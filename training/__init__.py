"""Logged traffic and reviews in, an evaluated adapter in the registry out."""
