#!/usr/bin/env bash
# The trainer's tests on a GPU with a Python that has a torch of its own: `tests/gpu/run.sh python3 [pytest's arguments]`.
# What that Python lacks comes from the archive that `make gpu-packages` has made; nothing is fetched.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$1
shift
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
"$python" -m tarfile -e .gpu-packages/site.tar.xz "$site"
export PYTHONPATH="$site:$PWD/crds:$PWD/operator:$PWD/trainer:$PWD"
# The trainer sets this itself, for the torch that it is locked to; an older one may not know all of it.
export PYTORCH_ALLOC_CONF="${PYTORCH_ALLOC_CONF:-expandable_segments:True}"
export REWARDFL_TEST_DEVICE="${REWARDFL_TEST_DEVICE:-cuda}" PYTHONUNBUFFERED=1
"$python" -m pytest tests/gpu "$@"
