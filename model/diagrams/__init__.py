"""Draws state diagrams and sequence charts, as text and graphs.

Left out: writing them into files.
"""
