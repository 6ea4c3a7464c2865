"""Genlock: can a rank of my job ever be left waiting, or drift away unnoticed?

`model` says what may happen, `impl` makes it happen on torch.distributed, `traces` records it and
`conformance` holds the recording against the model. Importing this package imports none of them.
"""

__version__ = "0.1.0"
