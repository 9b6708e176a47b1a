#!/bin/bash
# Whether NCCL lets two ranks share one GPU when each says that it is on a host of its own (NCCL_HOSTID), over sockets: then
# exchange and sums over NCCL must equal one rank. Where it does not, that is recorded as the reason of a skip.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/gpu.sh"
mpirun=$(command -v mpirun || echo "$(dirname "$binary")/mpirun")
[ -x "$mpirun" ] || skip "no mpirun on the PATH or beside the program"
need_gpu
"$binary" --version | grep -i 'libraries' | grep -qi 'nccl' || skip "the program was built without NCCL"
configs
export NCCL_NET=Socket NCCL_SOCKET_IFNAME=lo NCCL_IB_DISABLE=1 NCCL_P2P_DISABLE=1 NCCL_SHM_DISABLE=1 NCCL_DEBUG=WARN
train one plain.json "${cuda[@]}"
code=0
# shellcheck disable=SC2016  # each rank's shell expands its own number
timeout 120 "$mpirun" --allow-run-as-root --oversubscribe --bind-to none --mca btl self,vader -n 2 bash -c \
    'export NCCL_HOSTID=host-$OMPI_COMM_WORLD_RANK; exec "$@"' rank "$binary" train plain.json --set run.dir=two "${cuda[@]}" \
    --set parallel.comm=nccl --set parallel.expert_parallel_size=2 >two.out 2>two.err || code=$?
if [ $code -ne 0 ]; then
    if grep -qiE 'duplicate gpu|cannot open|not found|invalid usage|unhandled (system|cuda) error|no socket' two.err; then
        skip "NCCL refuses two ranks on one GPU (code $code): $(grep -iE -m 1 'duplicate gpu|error|invalid' two.err | cut -c1-200)"
    fi
    die "two ranks over NCCL ended with $code: $(tail -n 5 two.err)"
fi
losses_within two one 1 20 1e-5
weights_within two one 1e-5
echo "NCCL runs two ranks on one GPU with an NCCL_HOSTID for each"
