#!/usr/bin/env bash
# An environment of its own for pacbb, the rival calculator of bench_pacbb.py.
#   tests/benchmarks/build_pacbb_env.sh DIRECTORY CHECKOUT
# CHECKOUT is a clone of the pacbb repository (or a bare one): the wheel and the source archive of
# pacbb 0.1.2 on PyPI lack its subpackages (core.bound, core.utils), so that what they install cannot
# compute a bound. The script records that, and lays the repository's files over it.
set -euo pipefail
directory=$1 checkout=$2
here=$(cd "$(dirname "$0")/../.." && pwd)
python3 -m venv "$directory"
"$directory/bin/pip" install --quiet --disable-pip-version-check -c "$here/constraints.txt" torch numpy
"$directory/bin/pip" install --quiet --disable-pip-version-check --no-deps pacbb==0.1.2
if "$directory/bin/python" -c "import core.bound" 2> "$directory/pypi.txt"; then echo imports > "$directory/pypi.txt"; fi
git -C "$checkout" rev-parse HEAD > "$directory/commit.txt"
mkdir -p "$directory/source"
git -C "$checkout" archive HEAD core | tar -x -C "$directory/source"
