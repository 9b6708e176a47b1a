#!/bin/bash
# run.sh of a bundle: unpacks the archive once and again when there is a newer one, runs commands of it with its folders before
# others, and refuses a C library that is too old, an archive that is not there and an archive that is cut off.
set -euo pipefail
work=$2
rm -rf "$work"
mkdir -p "$work"
cd "$work"
die() {
    echo "FAILED: $*"
    exit 1
}
refused() { # CODE TEXT COMMAND...
    local expected=$1 text=$2 code=0
    shift 2
    "$@" >out 2>err || code=$?
    [ $code -eq "$expected" ] && grep -q -e "$text" err || die "$*: expected $expected and \"$text\", got $code: $(cat err)"
}

# pack WORD: an archive whose only program says the word.
pack() {
    mkdir -p grouter-bundle/bin/tests grouter-bundle/lib
    printf '#!/bin/sh\necho "%s $1 $OPAL_PREFIX"\n' "$1" >grouter-bundle/bin/say
    chmod +x grouter-bundle/bin/say
    echo "$1" >grouter-bundle/BUNDLE
    tar -cJf bundle.tar.xz grouter-bundle
    rm -r grouter-bundle
}
sed 's/@GLIBC@/2.1/' "$SOURCE_DIR/scripts/bundle_run.sh" >run.sh
sed 's/@GLIBC@/99.1/' "$SOURCE_DIR/scripts/bundle_run.sh" >later.sh

refused 2 'usage: bash run.sh' bash run.sh
refused 69 'expected glibc 99.1 or later' bash later.sh say
refused 69 'bundle.tar.xz: not there' bash run.sh say
pack first
[ "$(bash run.sh say a)" = "first a $PWD/grouter-bundle" ] || die "the first archive: $(bash run.sh say a)"
mv bundle.tar.xz away.tar.xz
[ "$(bash run.sh say b)" = "first b $PWD/grouter-bundle" ] || die "what is unpacked is enough"
code=0
bash run.sh sh -c 'exit 5' || code=$?
[ $code -eq 5 ] || die "the code of the command: expected 5, got $code"

mv grouter-bundle kept
pack second
touch -d '+1 hour' bundle.tar.xz
mv kept grouter-bundle
[ "$(bash run.sh say c)" = "second c $PWD/grouter-bundle" ] || die "a newer archive: $(bash run.sh say c)"
head -c 100 bundle.tar.xz >cut && mv cut bundle.tar.xz && touch -d '+2 hours' bundle.tar.xz
if bash run.sh say d >out 2>err; then die "an archive that is cut off: $(cat out)"; fi
[ -x grouter-bundle/bin/say ] || die "a bad archive must leave what is unpacked"
[ -z "$(find . -name 'unpacking.*')" ] || die "left behind: $(find . -name 'unpacking.*')"
echo "a bundle unpacks and runs"
