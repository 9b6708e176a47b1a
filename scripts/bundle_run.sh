#!/bin/bash
# Unpacks bundle.tar.xz, which lies beside this file, once, and runs a command of it. Made by scripts/bundle.sh.
set -euo pipefail

usage() {
    cat <<'END'
usage: bash run.sh COMMAND [ARGUMENTS...]
Runs grouter-train, mpirun, a test program or any other command in the folder you are in, with the bundle's libraries and
with the bundle's folders bin and bin/tests before others. Unpacks the bundle first where that has not been done.
GROUTER_BUNDLE names the folder it is unpacked to (grouter-bundle beside this file).
Example: bash run.sh mpirun -n 2 --oversubscribe grouter-train train config.json
END
}

glibc=@GLIBC@
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=${GROUTER_BUNDLE:-$here/grouter-bundle}
case ${1-} in
"") usage >&2 && exit 2 ;;
-h | --help) usage && exit 0 ;;
esac

found=$(getconf GNU_LIBC_VERSION 2>/dev/null | sed -n 's/^glibc //p')
if [[ $(printf '%s\n' "$glibc" "$found" | sort -V | head -n 1) != "$glibc" ]]; then
    echo "run.sh: C library of this host: expected glibc $glibc or later, found ${found:-another}; build from source here" >&2
    exit 69
fi

# Unpacked beside and moved, so that a half-unpacked folder is never taken for a whole one.
if [[ ! -e $root/BUNDLE || $here/bundle.tar.xz -nt $root/BUNDLE ]]; then
    if [[ ! -r $here/bundle.tar.xz ]]; then
        echo "run.sh: $here/bundle.tar.xz: not there; keep it beside run.sh, or name an unpacked one in GROUTER_BUNDLE" >&2
        exit 69
    fi
    fresh=$(mktemp -d "$(dirname "$root")/unpacking.XXXXXX")
    trap 'rm -rf "$fresh"' EXIT
    tar -xJf "$here/bundle.tar.xz" -C "$fresh"
    touch "$fresh/grouter-bundle/BUNDLE"
    rm -rf "$root"
    mv "$fresh/grouter-bundle" "$root"
    rmdir "$fresh"
    trap - EXIT
fi

export OPAL_PREFIX=$root PMIX_INSTALL_PREFIX=$root/pmix2 GROUTER_BUNDLE=$root
export LD_LIBRARY_PATH=$root/lib:$root/lib/x86_64-linux-gnu/openmpi/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export PATH=$root/bin:$root/bin/tests:$PATH
exec "$@"
