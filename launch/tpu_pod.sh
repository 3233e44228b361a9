#!/usr/bin/env bash
# One run on all workers of a TPU VM or pod slice that exists, by gcloud alone:
#
#   launch/tpu_pod.sh NAME ZONE --config=configs/large.py:imagenet --workdir=/mnt/bucket/large
#
# The script copies the commit that is checked out, installs it, and runs main.py with these
# arguments on every worker. The run folder must be on storage that all workers see (a bucket mounted
# by gcsfuse). Exit code 75 of a worker means "saved, restart me", and the script runs the command
# again; other codes are those of main.py. The project is the one that gcloud has by default, or
# CLOUDSDK_CORE_PROJECT. Ctrl-C ends only this script: the run continues on the TPU, and the same
# command would start a second one.
set -euo pipefail

if [ $# -lt 3 ]; then
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
tpu=$1
zone=$2
shift 2
cd "$(dirname "$0")/.."
command -v gcloud >/dev/null || {
  echo "error: gcloud is not installed: https://cloud.google.com/sdk/docs/install" >&2
  exit 2
}
if ! git diff --quiet HEAD; then
  echo "note: changes that are not committed are not copied" >&2
fi

on_all_workers() {
  gcloud compute tpus tpu-vm ssh "$tpu" --zone="$zone" --worker=all --command="$1"
}

archive=$(mktemp -d)
trap 'rm -rf "$archive"' EXIT
git archive --format=tar.gz --output="$archive/mbv3_jax.tar.gz" HEAD
gcloud compute tpus tpu-vm scp "$archive/mbv3_jax.tar.gz" "$tpu:" --zone="$zone" --worker=all
on_all_workers 'set -e; mkdir -p mbv3_jax; tar -xzf mbv3_jax.tar.gz -C mbv3_jax; cd mbv3_jax
[ -d .venv ] || python3 -m venv .venv
.venv/bin/pip install --quiet -r requirements.txt "jax[tpu]"'

arguments=$(printf ' %q' "$@")
while true; do
  code=0
  on_all_workers "cd mbv3_jax && exec .venv/bin/python main.py$arguments" || code=$?
  [ "$code" -eq 75 ] || exit "$code"
  echo "saved; starting again" >&2
  sleep "${MBV3_RESTART_SECONDS:-30}"
done
