"""Curation: from a dataset to a better one, every row that goes noted with rule, score and stage."""
