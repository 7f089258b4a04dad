"""A model on disk: what it is made of, and how its parts are reached. Runs none."""
