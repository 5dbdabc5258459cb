#!/usr/bin/env bash
# Evidence from a GPU machine: builds with the torch, triton and compilers that are there (no network), then runs the GPU
# tests and every benchmark. Leaves JSON and logs in the folder it is given. Takes less than eight minutes.
#   SLRFAST_COMMIT=$(git rev-parse --short=12 HEAD) benchmarks/device.sh OUT     (the variable where .git stays behind)
set -uo pipefail
[ $# -eq 1 ] || { echo "usage: benchmarks/device.sh OUT" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
started=$SECONDS
status=0
step() {  # name, most seconds it may take, command: its output goes to the log, its end and exit status to the screen
  local name=$1 limit=$2 code=0
  shift 2
  timeout "$limit" "$@" >"$out/$name.log" 2>&1 || code=$?
  tail -n 3 "$out/$name.log"
  echo "== $name: exit $code after $((SECONDS - started)) s"
  return "$code"
}

"$python" -c 'import torch; assert torch.cuda.is_available(); print(torch.__version__, torch.cuda.get_device_name())' || {
  echo "device.sh: torch sees no CUDA device here" >&2
  exit 3
}
export SLRFAST_CUDA=AUTO PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$PWD
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
step build 180 "$python" -m pip install --no-build-isolation --no-deps --no-index --quiet --target "$site" . || exit 1
cp "$site"/slrfast/_C.* slrfast/

"$python" - >"$out/machine.json" <<'PY'
import json
from benchmarks import machine
print(json.dumps({"label": machine.label("cuda"), "versions": machine.versions()}, indent=1))
PY
step tests 200 "$python" -m pytest -q -p no:cacheprovider -k "cuda or gpu" tests/ops tests/kernels tests/systems || status=1
modules=(systems.stc systems.masa systems.slp systems.hand_gcn systems.temporal systems.packed systems.stc_loss systems.ccl_loss systems.bank_memory systems.ema systems.loader systems.retrieval systems.translation_decode)
for file in benchmarks/ops/[!_]*.py; do modules+=("ops.$(basename "$file" .py)"); done
for module in "${modules[@]}"; do
  left=$((460 - SECONDS + started))
  [ "$left" -gt 10 ] || { echo "== $module: no time left"; status=1; continue; }
  most=90
  [[ $module =~ ^systems.(stc|hand_gcn)$ ]] && most=150  # they compile whole networks
  limit=$((left < most ? left : most))
  step "benchmark-${module#*.}" "$limit" "$python" -m "benchmarks.$module" --device cuda --out "$out" || status=1
done
echo "== done after $((SECONDS - started)) s: $([ $status = 0 ] && echo 'all passed' || echo 'with failures')"
exit "$status"
