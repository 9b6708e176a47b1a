# command.sh: running the binary and looking at what it said. Sourced by test scripts that have set `binary`.

fail() {
    echo "FAILED: $*"
    echo "--- stdout"; cat out
    echo "--- stderr"; cat err
    exit 1
}

# expect CODE ARGS...: runs the binary; leaves its output in out and err.
expect() {
    local code=$1 got=0
    shift
    "$binary" "$@" >out 2>err || got=$?
    [ "$got" -eq "$code" ] || fail "grouter-train $*: expected exit code $code, got $got"
}
