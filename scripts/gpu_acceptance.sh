#!/bin/bash
# Runs the tests of label cuda on a machine with a GPU, from a build folder or an unpacked bundle, without ctest: test programs
# of ops with backend cuda, and scripts of whole runs. Prints a line per test as it ends, and the total.
set -euo pipefail

usage() {
    cat <<'END'
usage: scripts/gpu_acceptance.sh [--only REGEX] [--limit SECONDS] [--jobs N] [--out FOLDER] [--tests FOLDER] FOLDER
  FOLDER          with grouter-train and tests/ in it: a build folder, or bin/ of a bundle
  --only REGEX    of the tests, those whose name matches
  --limit S       seconds that a test may take (default 240)
  --jobs N        tests at once on the one GPU (default 4)
  --out FOLDER    what tests print, and their scratch (default: a new folder in /tmp)
  --tests FOLDER  the scripts cuda_*.sh (default: tests/ beside the folder of this script)
  --list          only the names
Exit status 0 when no test failed and at least one passed; 77 when all were skipped.
END
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
only=. limit=240 jobs=4 out='' scripts=$here/tests folders=() list=no
while [ $# -gt 0 ]; do
    case $1 in
    --only) only=$2 && shift ;;
    --limit) limit=$2 && shift ;;
    --jobs) jobs=$2 && shift ;;
    --out) out=$2 && shift ;;
    --tests) scripts=$2 && shift ;;
    --list) list=yes ;;
    -h | --help) usage && exit 0 ;;
    -*) usage >&2 && exit 2 ;;
    *) folders+=("$1") ;;
    esac
    shift
done
[ ${#folders[@]} -eq 1 ] || { usage >&2 && exit 2; }
folder=${folders[0]}
binary=$(realpath "$folder")/grouter-train programs=$(realpath "$folder")/tests
[ -x "$binary" ] || { echo "gpu_acceptance: expected a program $binary" >&2 && exit 2; }
"$binary" --version | grep -q '^backends .*cuda' ||
    { echo "gpu_acceptance: expected backend cuda in $binary, got $("$binary" --version | grep '^backends')" >&2 && exit 2; }

# Names of tests, and what each runs: as in tests/CMakeLists.txt.
names=()
declare -A runs attention
add() {
    [[ $1 =~ $only ]] || return 0
    names+=("$1")
    runs[$1]=$2
}
for script in "$scripts"/cuda_*.sh; do
    [ -e "$script" ] && add "$(basename "$script" .sh)" "$script"
done
for program in "$programs"/test_cpu_* "$programs"/test_divergence* "$programs"/test_cuda_*; do
    name=${program##*/}
    case $name in
    *.* | *_real | test_cuda_cudnn | *'*') continue ;; # the last needs no GPU
    test_cuda_*) add "${name#test_}" "$program" ;;
    *) name=${name#test_} && add "cuda_${name#cpu_}" "$program" ;;
    esac
done
for way in cublas flash cudnn; do
    add "cuda_attention_$way" "$programs/test_cpu_attention_bf16"
    attention[cuda_attention_$way]=$way
done
if [ $list = yes ]; then
    printf '%s\n' "${names[@]}"
    exit 0
fi
[ ${#names[@]} -gt 0 ] || { echo "gpu_acceptance: expected tests that match $only, got none" >&2 && exit 2; }
out=${out:-$(mktemp -d /tmp/gpu_acceptance.XXXXXX)}
mkdir -p "$out"
out=$(realpath "$out")
rm -f "$out"/*.result

# one NAME: runs it; NAME.log is what it printed, NAME.result its line.
one() {
    local name=$1 what=${runs[$1]} code=0 start now verdict reason=''
    start=$(date +%s.%N)
    if [[ $what == *.sh ]]; then
        timeout -k 10 "$limit" bash "$what" "$binary" "$out/$name.work" >"$out/$name.log" 2>&1 </dev/null || code=$?
    else
        mkdir -p "$out/$name.work"
        (cd "$out/$name.work" && CHECK_BACKEND=cuda ${attention[$name]:+CHECK_ATTENTION=${attention[$name]}} OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive \
            timeout -k 10 "$limit" "$what") >"$out/$name.log" 2>&1 </dev/null || code=$?
    fi
    now=$(date +%s.%N)
    case $code in
    0)
        verdict=PASS
        [[ $what != *.sh ]] || reason=$(tail -n 1 "$out/$name.log")
        ;;
    77) verdict=SKIP reason=$(grep -E 'skipped' "$out/$name.log" | tail -n 1 || true) ;;
    124 | 137) verdict=FAIL reason="not done in $limit s" ;;
    *) verdict=FAIL reason="code $code: $(grep -E '^FAILED|\[  ERROR|error\[E|: error: ' "$out/$name.log" | head -n 1 || true)" ;;
    esac
    [ $verdict = FAIL ] || rm -rf "$out/$name.work"
    printf '%s %-28s %6.1f s  %s\n' $verdict "$name" "$(echo "$now $start" | awk '{ print $1 - $2 }')" \
        "$(printf '%s' "$reason" | tr -s ' \n\t' ' ' | cut -c1-220)" | tee "$out/$name.result"
}

begin=$SECONDS
for name in "${names[@]}"; do
    while [ "$(jobs -pr | wc -l)" -ge "$jobs" ]; do
        wait -n || true
    done
    one "$name" &
done
wait

count() { cat "$out"/*.result | grep -c "^$1" || true; }
for result in "$out"/*.result; do
    read -r verdict name _ <"$result"
    [ "$verdict" = FAIL ] || continue
    echo "---- the end of $out/$name.log"
    tail -n 12 "$out/$name.log" | cut -c1-400
done
passed=$(count PASS) failed=$(count FAIL) skipped=$(count SKIP)
[ $((passed + failed + skipped)) -eq ${#names[@]} ] || failed=$((failed + 1))
echo "$passed passed, $failed failed, $skipped skipped in $((SECONDS - begin)) s; logs in $out"
[ "$failed" -eq 0 ] || exit 1
[ "$passed" -gt 0 ] || exit 77
