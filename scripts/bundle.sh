#!/bin/bash
# Packs the program, its tests and what they need of this machine for GPU hosts without a package manager: see usage.
set -euo pipefail

usage() {
    cat <<'END'
usage: scripts/bundle.sh [--build FOLDER] [OUT]
Writes OUT/bundle.tar.xz and OUT/run.sh (OUT: build-bundle/bundle) for x86-64 hosts that have a glibc of at least this
machine's and, for backend cuda, a driver and the CUDA libraries. There:
    bash run.sh grouter-train --version
    bash run.sh mpirun -n 2 grouter-train train configs/quickstart/train.json
Made from a build of its own, build-bundle/, whose CPU code runs on any x86-64 with AVX2.
  --build FOLDER   packs that build instead; its CPU code may then need this machine's instruction set
END
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
build=build-bundle
made=
out=
while [[ $# -gt 0 ]]; do
    case $1 in
    --build)
        [[ $# -gt 1 ]] || { usage >&2 && exit 2; }
        build=$2 made=yes
        shift
        ;;
    -h | --help) usage && exit 0 ;;
    -*) usage >&2 && exit 2 ;;
    *)
        [[ -z $out ]] || { usage >&2 && exit 2; }
        out=$1
        ;;
    esac
    shift
done
out=${out:-$build/bundle}
most=$((60 << 20)) # bytes of the archive

if [[ -z $made ]]; then
    scripts/setup.sh
    scripts/build.sh "$build" all -DGROUTER_NATIVE=OFF "-DCMAKE_C_FLAGS=-march=x86-64-v3"
elif [[ ! -x $build/grouter-train || ! -d $build/tests ]]; then
    echo "bundle: $build: expected a build with grouter-train and tests/; make one: scripts/build.sh $build all" >&2
    exit 1
fi

# ---------------------------------------------------------------- what goes in

mkdir -p "$out"
root=$out/grouter-bundle
rm -rf "$root" "$out/bundle.tar.xz"
mkdir -p "$root/bin/tests" "$root/lib" "$root/share/openmpi" "$root/tests"

strip -o "$root/bin/grouter-train" "$build/grouter-train"
strip -o "$root/lib/libgrouter_core.so" "$build/libgrouter_core.so"
for program in "$build"/tests/*; do # but those that play a GPU
    if [[ -f $program && -x $program && ! ${program##*/} =~ ^((kernels?|double)_|test_cuda_cudnn$|.*\.so$) ]]; then
        strip -o "$root/bin/tests/${program##*/}" "$program"
    fi
done
cp LICENSE README.md "$root/"
cp -r configs "$root/"
cp tests/*.sh "$root/tests/"
git ls-files scripts | tar -c -T - | tar -x -C "$root"

# Open MPI finds its parts below OPAL_PREFIX where Debian puts them, PMIx below PMIX_INSTALL_PREFIX. Of its components
# those that one host needs.
libraries=lib/x86_64-linux-gnu
components=$libraries/openmpi/lib/openmpi3
mkdir -p "$root/$components" "$root/pmix2/lib"
cp -L "$(command -v orterun)" "$root/bin/mpirun"
cp -L "$(command -v orted)" "$root/bin/orted"
cp /usr/share/openmpi/*.txt "$root/share/openmpi/"
for component in allocator bml_r2 btl_self btl_vader btl_tcp coll errmgr ess_env ess_hnp ess_pmi ess_singleton ess_tool \
    filem grpcomm iof mpool odls_default oob_tcp op_avx osc_rdma osc_sm osc_pt2pt patcher plm_isolated plm_rsh pmix_ext3x \
    pmix_isolated pml_ob1 pstat rcache reachable regx rmaps rml routed rtc schizo_ompi schizo_orte shmem state topo_basic; do
    cp "/usr/$components"/mca_"$component"*.so "$root/$components/"
done
rm -f "$root/$components"/*_monitoring.so "$root/$components"/*_mindist.so
cp -r "/usr/$libraries/pmix2/lib/pmix" "$root/pmix2/lib/"
cp -r "/usr/$libraries/pmix2/share" "$root/pmix2/"

# Every shared library that something in the bundle asks for, but glibc's own and the driver's. Of LAPACK the reference.
for library in lapack/liblapack.so.3 blas/libblas.so.3; do
    [[ ! -e /usr/$libraries/$library ]] || cp -L "/usr/$libraries/$library" "$root/lib/"
done
find "$root" -type f \( -name '*.so*' -o -path "$root/bin/*" \) -print0 |
    { LD_LIBRARY_PATH="$root/lib" xargs -0 ldd 2>/dev/null || true; } | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u |
    grep -v -E '/(libc|libm|libdl|librt|libpthread|libresolv|libutil|libcuda|ld-linux[^/]*)\.so' |
    while read -r library; do
        [[ -e $root/lib/${library##*/} ]] || cp -L "$library" "$root/lib/"
    done
find "$root" -name '*.so*' -exec strip --strip-unneeded {} +

# ---------------------------------------------------------------- the archive, and what unpacks it

glibc=$(getconf GNU_LIBC_VERSION | sed 's/^glibc //')
echo "commit $(git describe --always --dirty --abbrev=12), glibc $glibc" >"$root/BUNDLE"
tar -C "$out" --sort=name --owner=0 --group=0 --numeric-owner -c grouter-bundle |
    xz -T0 --lzma2=preset=6,dict=64MiB >"$out/bundle.tar.xz"
sed "s/@GLIBC@/$glibc/" scripts/bundle_run.sh >"$out/run.sh"
size=$(stat -c %s "$out/bundle.tar.xz")
if [[ $size -gt $most ]]; then
    echo "bundle: $out/bundle.tar.xz: expected at most $most bytes, got $size" >&2
    exit 1
fi
echo "bundle: $out/bundle.tar.xz, $((size >> 20)) MiB ($(du -sm "$root" | cut -f1) MiB unpacked), and $out/run.sh"
