#!/usr/bin/env bash
# Runs a command on a cluster of this machine alone: the true slurmctld, and two slurmd on the loopback interface, without munge.
#   apt-get install --no-install-recommends slurmctld slurmd slurm-client
#   sudo tests/cluster/true_slurm.sh sinfo          slurmd wants root
# Nothing outside a temporary folder is written, and all daemons end with the command. TRUE_SLURM_LOGS=folder keeps their logs.
set -euo pipefail
for tool in slurmctld slurmd sbatch; do
    command -v "$tool" >/dev/null || { echo "error: $tool is not here; install slurmctld, slurmd and slurm-client" >&2; exit 2; }
done
place=$(mktemp -d)
# A node finds the first one by its name, so the names are addresses: two of the loopback interface.
first=127.0.0.2
second=127.0.0.3
port=$((20000 + $$ % 10000))
user=$(id -un)
mkdir -p "$place/state"
cat > "$place/slurm.conf" <<CONF
ClusterName=loopback
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/none
CredType=cred/none
StateSaveLocation=$place/state
SlurmdSpoolDir=$place/spool.%n
SlurmctldPidFile=$place/slurmctld.pid
SlurmdPidFile=$place/slurmd.%n.pid
SlurmctldLogFile=$place/slurmctld.log
SlurmdLogFile=$place/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,sched_min_interval=100000,bf_interval=1
ReturnToService=2
KillWait=5
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName=$first NodeHostname=first NodeAddr=$first Port=$((port + 1)) CPUs=4 RealMemory=1024 Gres=gpu:2
NodeName=$second NodeHostname=second NodeAddr=$second Port=$((port + 2)) CPUs=4 RealMemory=1024 Gres=gpu:2
PartitionName=main Nodes=$first,$second Default=YES MaxTime=INFINITE State=UP
CONF
# GPUs that are only counted: their devices are empty files, which Slurm's log complains of and takes.
touch "$place/gpu0" "$place/gpu1"
echo "Name=gpu File=$place/gpu[0-1]" > "$place/gres.conf"
export SLURM_CONF=$place/slurm.conf TRUE_SLURM=1
daemons=()
finish() {
    [ "${#daemons[@]}" = 0 ] || kill "${daemons[@]}" 2>/dev/null || true
    wait
    if [ -n "${TRUE_SLURM_LOGS:-}" ]; then mkdir -p "$TRUE_SLURM_LOGS" && cp "$place"/*.log "$TRUE_SLURM_LOGS"; fi
    rm -rf "$place"
}
trap finish EXIT
slurmctld -D >/dev/null 2>&1 & daemons+=($!)
slurmd -D -N "$first" >/dev/null 2>&1 & daemons+=($!)
slurmd -D -N "$second" >/dev/null 2>&1 & daemons+=($!)
for _ in $(seq 300); do
    kill -0 "${daemons[@]}" 2>/dev/null || break
    [ "$(timeout 5 sinfo --noheader --format=%T 2>/dev/null | sort -u)" = idle ] && break
    sleep 0.1
done
[ "$(timeout 5 sinfo --noheader --format=%T | sort -u)" = idle ] || { echo "error: the nodes do not answer:" >&2; tail -n 5 "$place"/*.log >&2; exit 1; }
"$@"
