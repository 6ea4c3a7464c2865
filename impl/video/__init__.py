"""Holds a small tensor-parallel video model with its pipeline, which `genlock run` drives."""
