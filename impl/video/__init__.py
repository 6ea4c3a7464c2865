"""A small tensor-parallel video model with its pipeline: what `genlock run` drives."""
