#!/bin/bash
# Makes a small corpus of real text in five languages from Debian packages: scripts/text.sh FOLDER.
# English: the King James Bible, a document per chapter. French, German, Spanish, Italian: manual pages, a document per
# page. The packages are downloaded and unpacked into FOLDER/packages, never installed; no root needed.
# Writes FOLDER/{en,fr,de,es,it}.txt, UTF-8, each document followed by a line <|endoftext|>.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [[ $# -ne 1 || $1 == -* ]]; then
    echo "usage: scripts/text.sh FOLDER" >&2
    exit 2
fi
mkdir -p "$1"
folder=$(cd "$1" && pwd)
languages=(fr de es it)
separator='<|endoftext|>'
pages=150 # per language: keeps the languages comparable and the corpus near 7 MB

# Messages and sorting must not depend on the machine's language, and text is handled as bytes.
export LC_ALL=C

unpacked=$folder/packages/root
options=(-qq -o "APT::Sandbox::User=$(id -un)" -o Dpkg::Use-Pty=0)

own_lists() { # package lists of our own: the system's may be absent or old, and renewing those takes root
    local state=$folder/packages/apt
    mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
    options+=(-o "Dir::State::lists=$state/lists" -o "Dir::Cache=$state/cache")
    apt-get "${options[@]}" update
}

download() {
    local readline package
    # The bible program's library is not on every machine, and its package's name differs between releases.
    readline=$(apt-cache "${options[@]}" depends bible-kjv | sed -n 's/^.*Depends: \(libreadline[^ ]*\)$/\1/p')
    [[ -n $readline ]] || return 1
    rm -f "$folder"/packages/*.deb
    (cd "$folder/packages" &&
        apt-get "${options[@]}" download bible-kjv bible-kjv-text "$readline" "${languages[@]/#/manpages-}") || return 1
    rm -rf "$unpacked"
    mkdir "$unpacked"
    for package in "$folder"/packages/*.deb; do
        dpkg-deb -x "$package" "$unpacked"
    done
}

write_bible() {
    local library_path
    library_path=$(find "$unpacked" -name 'libreadline.so*' -printf '%h\n' | sort -u | head -n 1)
    # The text is stored in a format of its own, which only the package's program reads: a verse per line, after its
    # place ("Ge1:1 In the beginning ...").
    cd "$unpacked/usr/lib"
    LD_LIBRARY_PATH=$library_path ../bin/bible -f -p . gen1:1-rev22:21 | awk -v separator="$separator" '
        { chapter = $1; sub(/:.*/, "", chapter); sub(/^[^ ]+ /, "") }
        NR > 1 && chapter != last { print separator }
        { print; last = chapter }
        END { if (NR) print separator }
    '
}

write_pages() { # language
    local source
    cd "$unpacked/usr/share/man/$1"
    # A page's checksum is as good as a shuffle: neighbours in the alphabet are often alike.
    find . -type f -name '*.gz' -exec cksum {} + | sort -n | sed -n "1,${pages}p" | while read -r _ _ source; do
        zcat "$source"
        printf '\n\004\n'
    done | awk -v separator="$separator" -f "$here/roff.awk"
}

mkdir -p "$folder/packages"
if ! download 2>/dev/null; then
    own_lists
    if ! download; then
        echo "text: cannot download the Debian packages with text; check the network, or use text of your own:" >&2
        echo "    scripts/quickstart.sh --text FILE..." >&2
        exit 1
    fi
fi
(write_bible) >"$folder/en.txt"
for language in "${languages[@]}"; do
    (write_pages "$language") >"$folder/$language.txt"
done

# Half a corpus is worse than none: a format that changed shows here, not as a strange loss.
for language in en "${languages[@]}"; do
    file=$folder/$language.txt
    bytes=$(wc -c <"$file")
    if [[ $bytes -lt 100000 ]]; then
        echo "text: $file has only $bytes bytes, expected at least 100000: the package's format has changed;" \
            "use scripts/quickstart.sh --text FILE..." >&2
        exit 1
    fi
    printf 'text: %s  %6.2f MB  %5d documents\n' "$language" "$(awk "BEGIN { print $bytes / 1e6 }")" \
        "$(grep -cxF -- "$separator" "$file")"
done
