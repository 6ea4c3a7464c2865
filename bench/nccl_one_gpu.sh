#!/usr/bin/env bash
# Genlock on real NCCL, several ranks on one GPU, in under 8 minutes and without a network:
#
#   bench/nccl_one_gpu.sh [OUT]          everything, into the new folder OUT (out/nccl-<time>), under 16 MB
#   bench/nccl_one_gpu.sh --quick OUT    a minute of it; where there is no GPU, both run on gloo
#
# Needs Python 3.11 or newer (PYTHON=…, or python3) with torch, numpy, networkx, xxhash. What else genlock
# needs and that Python lacks is taken from wheels/ beside this folder, which bench/nccl_bundle.sh fills.
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd -P)
python=${PYTHON:-python3}
# the package by the symlink that type checkers use; its wheels after whatever this Python has
export PYTHONPATH="$repository/typings${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
"$python" "$repository/bench/nccl_one_gpu.py" --wheels "$repository/wheels" --site "$site" "$@"
