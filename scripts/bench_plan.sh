#!/usr/bin/env bash
# Median and fastest time of building one rank's plan, on one core. Usage: scripts/bench_plan.sh [build folder, default build]
set -euo pipefail
build=${1:-build}
ninja -C "$build" bench_plan >&2
exec taskset -c 0 "$build/tests/bench_plan"
