"""Judges what logs, stacks and reports say of a job: who is to blame where it is entailed, else who may be."""
