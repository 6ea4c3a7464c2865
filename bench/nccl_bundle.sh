#!/usr/bin/env bash
# Packs what bench/nccl_one_gpu.sh needs for a machine that can download nothing:
#
#   bench/nccl_bundle.sh [FILE.tar.gz]   the sources, and wheels of what a Python 3.12 with torch may lack
#
#   WHEELS=0        no wheels: that machine's Python has msgspec and typer
#   PYTHON_VERSION  of that machine (3.12); PYTHON is the one that runs pip here (python3)
set -euo pipefail
cd "$(dirname "$0")/.."
file=${1:-build/genlock-nccl.tar.gz}
mkdir -p "$(dirname "$file")"
staged=$(mktemp -d)
trap 'rm -rf "$staged"' EXIT
mkdir "$staged/genlock"
git ls-files -z --cached --others --exclude-standard -- \
    '*.py' '*.sh' typings impl model traces conformance guardian examples bench LICENSE README.md \
    ':!tests' ':!docs' ':!traces/corpus' |
  while IFS= read -r -d '' path; do [ -e "$path" ] && printf '%s\0' "$path"; done |
  tar --null --no-recursion -T - -cf - | tar -xf - -C "$staged/genlock"
if [ "${WHEELS:-1}" != 0 ]; then
  "${PYTHON:-python3}" -m pip download -q --disable-pip-version-check --only-binary=:all: \
    --python-version "${PYTHON_VERSION:-3.12}" --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
    -d "$staged/genlock/wheels" 'msgspec>=0.19' 'typer>=0.24.1' 'graphviz>=0.20' 'xxhash>=3.4'
fi
tar -czf "$file" -C "$staged" genlock
echo "$file, $(du -h "$file" | cut -f1): unpack it anywhere and run genlock/bench/nccl_one_gpu.sh"
