#!/usr/bin/env bash
# One training stage on several hosts, over SSH: the same torchrun on each, and all of them end together.
#
#   HOSTS="gpu1 gpu2" PROCESSES_PER_HOST=8 infra/multinode/ssh.sh --config /shared/job.yaml --out /shared/run
#
# The hosts need passwordless SSH, this checkout with its virtual environment at the same path, and one shared folder for
# job file, data and output. The first host must be reachable from the others at RENDEZVOUS_PORT and at the ports above
# 1024 that the processes choose. Ctrl-C, SIGTERM, or the end of this script in any other way ends every host: training
# saves a checkpoint first, and the same command continues from it.
#
#   CHECKOUT          the checkout on the hosts (default: this one)
#   RENDEZVOUS_PORT   default 29500
#   RESTARTS          how often processes that died are started again (default 3)
#   SSH               default "ssh -o BatchMode=yes"
#   NODE_ENVIRONMENT  variables for every host, such as "NCCL_SOCKET_IFNAME=eth1"
set -euo pipefail

usage="usage: HOSTS=\"first second …\" PROCESSES_PER_HOST=N $0 --config job.yaml --out DIR"
read -r -a hosts <<< "${HOSTS:?$usage}"
: "${PROCESSES_PER_HOST:?$usage}" "${1:?$usage}"
read -r -a ssh <<< "${SSH:-ssh -o BatchMode=yes}"
read -r -a environment <<< "${NODE_ENVIRONMENT:-}"
folder=${CHECKOUT:-$(cd "$(dirname "$0")/../.." && pwd)}
run_id=ssh-$$-$RANDOM

# Every host's torchrun ends when its standard input does: whatever becomes of this script, nothing is left behind.
pipe=$(mktemp -u)
mkfifo -m 600 "$pipe"
exec 3<> "$pipe" 4> "$pipe" 5< "$pipe" 3>&- # 4 is to be the only writer, and 5 what the hosts read from
rm "$pipe"
# shellcheck disable=SC2016  # expanded on the host
on_host='cd "$1" && shift && exec 3<&0 || exit 1;
"$@" </dev/null & agent=$!;
{ cat; kill -TERM $agent; } <&3 >/dev/null 2>&1 & lifeline=$!;
trap "kill -TERM $agent" TERM INT HUP;
while :; do code=0; wait $agent || code=$?; kill -0 $agent 2>/dev/null || break; done;
kill $lifeline 2>/dev/null; exit $code'
on_host=${on_host//$'\n'/ } # in one line: not every login shell reads the quoting of several

pids=()
for number in "${!hosts[@]}"; do
  command=(
    bash -c "$on_host" train "$folder" env "${environment[@]}"
    .venv/bin/python -m training.launch
    "--nnodes=${#hosts[@]}" "--nproc-per-node=$PROCESSES_PER_HOST" "--max-restarts=${RESTARTS:-3}"
    --rdzv-backend=c10d "--rdzv-endpoint=${hosts[0]#*@}:${RENDEZVOUS_PORT:-29500}" "--rdzv-id=$run_id"
    "--rdzv-conf=is_host=$((number == 0))" "--local-addr=${hosts[number]#*@}"
    -m training "$@"
  )
  "${ssh[@]}" "${hosts[number]}" "$(printf '%q ' "${command[@]}")" <&5 4>&- &
  pids+=($!)
done
trap 'exec 4>&-' INT TERM HUP

# The first host that fails ends the others, and its exit code is ours.
failed=0
for _ in "${pids[@]}"; do
  code=0
  wait -n || code=$?
  if ((code && !failed)); then
    failed=$code
    exec 4>&-
  fi
done
wait
exit "$failed"
