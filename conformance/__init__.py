"""Holds recorded ranks against the model: verdict, first divergence, whose fault. No torch."""
