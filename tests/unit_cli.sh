#!/bin/bash
# The command frame: help, version, unknown commands, exit codes, lost output.
set -euo pipefail

binary=$1
work=$2
rm -rf "$work"
mkdir -p "$work"
trap 'rm -rf "$work"' EXIT
cd "$work"

source "$SOURCE_DIR/tests/command.sh"
on_stdout() { grep -qF -- "$1" out || fail "expected on stdout: $1"; }
on_stderr() { grep -qF -- "$1" err || fail "expected on stderr: $1"; }
silent_stdout() { [ ! -s out ] || fail "expected nothing on stdout"; }
silent_stderr() { [ ! -s err ] || fail "expected nothing on stderr"; }

expect 0 --help
silent_stderr
for code in 0 2 64 65 66 69 70 71 73 74 85; do
    grep -qE "^  $code +[a-z]" out || fail "expected exit code $code in the help"
done
commands=$(sed -n '/^commands:/,/^$/s/^  \([a-z]*\) .*/\1/p' out)
[ -n "$commands" ] || fail "expected a list of commands"

for command in $commands; do
    expect 0 "$command" --help
    silent_stderr
    on_stdout "usage: grouter-train $command"
    grep -qi '^example' out || fail "expected an example in the help of $command"
    on_stdout "exit codes:"
    expect 2 "$command" --no-such-option
    silent_stdout
    on_stderr "error[E2] $command: unknown option --no-such-option"
done

expect 0 --version
silent_stderr
on_stdout "grouter-train 0."
for fact in compiler build backends comms oneDNN MPI cJSON xxHash CUDA; do
    on_stdout "$fact"
done

expect 2
silent_stdout
on_stderr "usage: grouter-train COMMAND"
on_stderr "error[E2] expected a command, got none"

expect 2 tokns
silent_stdout
on_stderr 'error[E2] unknown command "tokns": did you mean "tokens"?'
expect 2 --verison
on_stderr 'did you mean "--version"?'
expect 2 quux
on_stderr 'unknown command "quux"; see grouter-train --help'
expect 2 $'a\033[31m'
! grep -q $'\033' err || fail "expected control characters to be escaped"
expect 2 --version more
on_stderr '--version: expected nothing after it, got "more"'

if [ -w /dev/full ]; then
    code=0
    "$binary" --help >/dev/full 2>err || code=$?
    [ "$code" -eq 74 ] || fail "full disk on stdout: expected exit code 74, got $code"
    on_stderr "error[E74] standard output"
fi
echo "command line ok"
