#!/bin/bash
# Installs what scripts/packages.txt lists and this Debian machine lacks. Does nothing, quickly, when nothing is missing.
set -euo pipefail

list=$(dirname "${BASH_SOURCE[0]}")/packages.txt

if [[ ${1-} == -h || ${1-} == --help ]]; then
    echo "usage: scripts/setup.sh"
    echo "Installs the Debian packages of scripts/packages.txt that are missing (as root, or with sudo)."
    exit 0
fi

mapfile -t packages < <(sed -e 's/[[:space:]]*#.*//' -e '/^$/d' "$list")

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
    echo "setup: not a Debian system: install the equivalents of these yourself: ${packages[*]}" >&2
    exit 0
fi

# dpkg-query complains about each package it has never heard of: such a package is missing, which is the question here.
installed=$(dpkg-query -W -f '${db:Status-Abbrev} ${Package}\n' "${packages[@]}" 2>/dev/null |
    sed -n 's/^.i  *//p' || true)
missing=()
for package in "${packages[@]}"; do
    grep -qxF -- "$package" <<<"$installed" || missing+=("$package")
done
if [[ ${#missing[@]} -eq 0 ]]; then
    echo "setup: all ${#packages[@]} packages are there"
    exit 0
fi

as_root=()
if [[ $(id -u) -ne 0 ]]; then
    if ! command -v sudo >/dev/null; then
        echo "setup: missing packages, and neither root nor sudo to install them. Ask an administrator for:" >&2
        echo "    apt-get install --no-install-recommends ${missing[*]}" >&2
        exit 1
    fi
    as_root=(sudo)
fi

echo "setup: installing ${missing[*]}"
"${as_root[@]}" apt-get -qq update
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Dpkg::Use-Pty=0 \
    install --no-install-recommends "${missing[@]}" >/dev/null
echo "setup: installed ${#missing[@]} of ${#packages[@]} packages"
