#!/bin/bash
# scripts/slurm.sbatch passes USR1 on to mpirun, returns its code, and requeues a preempted run only.
set -euo pipefail
work=$2
rm -rf "$work"
mkdir -p "$work/bin"
cd "$work"
cat >bin/mpirun <<'END'
#!/bin/bash
printf '%s\n' "$*" >mpirun.arguments
trap 'sleep 0.2; exit 85' USR1
touch started
for i in $(seq 100); do [ -e finish ] && exit 0; sleep 0.05; done
exit 1
END
cat >bin/scontrol <<'END'
#!/bin/bash
echo "$*" >>scontrol.arguments
END
chmod +x bin/*
export PATH=$PWD/bin:$PATH SLURM_JOB_ID=17
die() {
    echo "FAILED: $*"
    exit 1
}
start() {
    rm -f started finish scontrol.arguments
    bash "$SOURCE_DIR/scripts/slurm.sbatch" config.json --set a=b &
    job=$!
    for i in $(seq 100); do [ -e started ] && sleep 0.2 && return; sleep 0.05; done
    die "mpirun was never started"
}
start
kill -USR1 $job
code=0
wait $job || code=$?
[ $code -eq 85 ] || die "a preempted job ends with $code"
grep -q 'requeue 17' scontrol.arguments || die "a preempted job is not requeued"
grep -q 'sigkill_timeout 120 .*train config.json --set a=b' mpirun.arguments || die "arguments: $(cat mpirun.arguments)"
start
touch finish
wait $job || die "a finished job fails"
[ ! -e scontrol.arguments ] || die "a finished job is requeued"
echo "preempted jobs are requeued, finished ones are not"
