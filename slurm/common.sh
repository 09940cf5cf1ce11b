# shellcheck shell=bash disable=SC2034
# What slurm/submit and the scripts beside it share: set in the environment, or edit the defaults.
# Paths are relative to the root of the repository.

# Of a job; empty: the cluster's own.
account=${KVQUANT_ACCOUNT:-}
partition=${KVQUANT_PARTITION:-}
gpus=${KVQUANT_GPUS:-}              # 1, or a100:1
memory=${KVQUANT_MEMORY:-8G}
time=${KVQUANT_TIME:-04:00:00}
cpus=${KVQUANT_CPUS:-2}             # cores, and threads

# Of what it runs.
kvquant=${KVQUANT_PROGRAM:-build/kvquant}
model=${KVQUANT_MODEL:-embedded}
data=${KVQUANT_DATA:-}              # a text or a folder: each script says which; empty: its own
calibration=${KVQUANT_CALIBRATION:-} # as slurm/calibration.sbatch writes it
output=${KVQUANT_OUTPUT:-results/slurm}
context=${KVQUANT_CONTEXT:-2048}    # tokens
limit=${KVQUANT_LIMIT:-20}          # samples of a task, windows of a text
device=${KVQUANT_DEVICE:-${gpus:+cuda}}
read -ra kv <<<"${KVQUANT_KV:-fp16 nuq4-1% nuq3-1% nuq2-1%}" # cache specs

# Arguments of every command, and of those that compare caches.
run=(--model "$model" --device "${device:-cpu}" --threads "$cpus")
calib=()
[ -z "$calibration" ] || calib=(--calib "$calibration")
caches=("${calib[@]}")
for spec in "${kv[@]}"; do caches+=(--kv "$spec"); done
