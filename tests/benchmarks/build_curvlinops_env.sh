#!/usr/bin/env bash
# An environment of its own for curvlinops-for-pytorch, the rival of bench_curvature.py.
#   tests/benchmarks/build_curvlinops_env.sh DIRECTORY
# A dependency of it (backpack-for-pytorch) pulls torchvision, which breaks transformers beside a CPU
# build of torch and which curvlinops does not import: it is removed again. The project runs in it
# too, from the repository (PYTHONPATH); only what it depends on is installed.
set -euo pipefail
directory=$1
here=$(cd "$(dirname "$0")/../.." && pwd)
python3 -m venv "$directory"
"$directory/bin/pip" install --quiet --disable-pip-version-check -c "$here/constraints.txt" \
  torch==2.13.0 curvlinops-for-pytorch==3.0.1 transformers peft safetensors \
  jaxtyping scipy platformdirs torchmetrics rich typer matplotlib jinja2
"$directory/bin/pip" uninstall --quiet --yes torchvision
"$directory/bin/python" -c "import curvlinops, transformers"
