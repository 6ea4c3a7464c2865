"""Reads facts out of logs: of torch, NCCL, launchers and engines, and out of stacks that tools printed.

`scan` finds the lines that may say something; each other module knows one family of lines.
"""
