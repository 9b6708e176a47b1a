#!/bin/bash
# Installs, builds and tests: all tests in build/, the unit and MPI tests again under the address and undefined-behaviour
# sanitizers in build-asan/; the longest of hostile files only there. Ends with one line "N passed, N failed, N skipped" over both.
set -euo pipefail

usage() {
    cat <<'END'
usage: scripts/test.sh [--all] [--no-sanitize]
  --all           also the slow tests
  --no-sanitize   only build/, not build-asan/
Exit status 0 when every test that ran passed and at least one ran.
END
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."

exclude=(--label-exclude '^(slow|fuzz)$')
sanitize=yes
for argument in "$@"; do
    case $argument in
    --all) exclude=() ;;
    --no-sanitize) sanitize=no ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && exit 2 ;;
    esac
done

passed=0 failed=0 skipped=0

# A result that ctest calls "notrun" is a skip only when the test itself asked for it; a missing program is a failure.
count_results() {
    awk '
        function close_case() {
            if (name == "") return
            if (status == "run") passed++
            else if (status == "disabled" || (status == "notrun" && asked)) skipped++
            else failed++
            name = ""
        }
        /^[ \t]*<testcase / {
            close_case()
            name = $0; sub(/.*<testcase name="/, "", name); sub(/".*/, "", name)
            status = $0; sub(/.*status="/, "", status); sub(/".*/, "", status)
            asked = 0
        }
        /^[ \t]*<skipped message="SKIP_/ { asked = 1 }
        END { close_case(); print passed + 0, failed + 0, skipped + 0 }
    ' "$1"
}

# Why each skipped test was skipped: the last line it printed.
print_skips() {
    awk '
        /^[ \t]*<testcase / { name = $0; sub(/.*<testcase name="/, "", name); sub(/".*/, "", name); asked = 0; text = "" }
        /^[ \t]*<skipped message="SKIP_/ { asked = 1; next }
        asked && /[^ \t]/ {
            line = $0
            gsub(/^[ \t]+|<\/?system-out>|<\/?testcase>/, "", line)
            if (line != "") text = line
        }
        /<\/testcase>/ && asked { print "skipped: " name ": " (text == "" ? "no reason given" : text) }
    ' "$1"
}

run_tests() { # folder, ctest options...
    local folder=$1 results p f s status=0
    shift
    results=$PWD/$folder/results.xml
    rm -f "$results"
    # More tests at once than cores: many wait most of the time, for the disk or for mpirun.
    ctest --test-dir "$folder" --output-on-failure --no-tests=ignore --parallel $((2 * $(nproc))) \
        --output-junit "$results" "$@" || status=$?
    if [[ ! -s $results ]]; then
        echo "test: ctest left no results in $folder" >&2
        failed=$((failed + 1))
        return
    fi
    read -r p f s < <(count_results "$results")
    # Never trust a parse over ctest's own verdict.
    [[ $status -eq 0 || $f -gt 0 ]] || f=1
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    print_skips "$results"
}

step() { # title, command...: a step that fails counts as one failure and ends the run
    echo "== $1"
    shift
    "$@" && return
    failed=$((failed + 1))
    exit 1
}

end() {
    [[ -z $building ]] || kill "$building" 2>/dev/null || true
    echo "$passed passed, $failed failed, $skipped skipped"
}
building=
trap end EXIT

step "setup" scripts/setup.sh
step "build (build/)" scripts/build.sh build all
if [[ $sanitize == yes ]]; then # beside the tests, with what they leave of the cores while they wait
    nice -n 19 scripts/build.sh build-asan all -DGROUTER_SANITIZE=address,undefined &
    building=$!
fi
hostile=()
[[ $sanitize == no ]] ||
    hostile=(--exclude-regex '^(mpi_bad_ranks|unit_bad_(checkpoints|configs|files|place)|test_(bit_flips|routes|safetensors|tokens_shard))$')
step "test (build/)" run_tests build "${exclude[@]}" "${hostile[@]}"
if [[ $sanitize == yes ]]; then
    step "build with sanitizers (build-asan/)" wait "$building"
    building=
    # Of several ranks the test programs, in fp32, and the wrong inputs; scripts of whole runs take minutes there and
    # compute nothing that these do not, nor do tests of ops once more on far memory.
    scripts_of_runs='mpi_(bench|bench_layer|bf16|device|distill|dry_run|fold|kill|leak|learned|online|placement|resume|route|train)'
    scripts_of_runs+='|unit_(device|distill|fold|leak|place|route_grouter)'
    step "test with sanitizers (build-asan/)" run_tests build-asan --label-regex '^(unit|mpi)$' \
        --exclude-regex "^($scripts_of_runs|mpi_[0-9].*_bf16|mpi_7_nccl|far_.*)\$"
fi
[[ $failed -eq 0 && $passed -gt 0 ]]
