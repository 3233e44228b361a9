"""Stands in for `gcluster job submit` of Cluster Toolkit 1.103: checks options, writes a JobSet.

    STAND_IN_CLUSTER=FOLDER python stand_in_gcluster.py job submit FLAGS...

The options and their limits are those of cmd/job/submit.go and cmd/job/job.go of
GoogleCloudPlatform/cluster-toolkit, and the JobSet, NAME.json in FOLDER, is that of
pkg/orchestrator/gke/templates/jobset.tmpl, without what only the cluster knows.
"""

import json
import os
import re
import sys
from pathlib import Path

REQUIRED = ("name", "command", "compute-type", "image", "cluster")
OPTIONAL = (
    *("project", "location", "gke-namespace", "mount", "env", "queue", "num-slices", "restarts"),
    *("gke-ttl-after-finished", "grace-period", "restart-on-exit-codes", "priority", "topology"),
    *("service-account", "node-constraint", "gke-nap-provisioning", "gke-nap-reservation"),
)
PRIORITIES = ("very-low", "low", "medium", "high", "very-high")


def refuse(reason):
    print("Job submission...")  # on standard output, as it logs
    sys.exit(f"Error: {reason}")


def seconds(text, flag):
    number = re.fullmatch(r"(\d+)([smh]?)", text)
    if not number:
        refuse(f"invalid duration format for --{flag}: {text}")
    return int(number[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[number[2]]


if sys.argv[1:3] != ["job", "submit"]:
    refuse(f"unknown command {sys.argv[1:3]}")
flags = {}
for argument in sys.argv[3:]:
    name, _, value = argument.removeprefix("--").partition("=")
    if not argument.startswith("--") or name not in REQUIRED + OPTIONAL or name in flags:
        refuse(f"unknown flag: {argument}")
    flags[name] = value
for name in REQUIRED:
    if not flags.get(name):
        refuse(f'required flag(s) "{name}" not set')
if len(flags["name"]) > 28:
    refuse(f"workload name {flags['name']} cannot exceed 28 characters")
if not re.fullmatch("[a-z]([a-z0-9-]*[a-z0-9])?", flags["name"]):
    refuse(f"invalid workload name {flags['name']}")
if flags.get("priority", "medium") not in PRIORITIES:
    refuse(f"invalid value for --priority: {flags['priority']}")
if "mount" in flags and not re.fullmatch("[^;]+;/[^;]*(;r[ow])?(;[a-z]+=.*)?", flags["mount"]):
    refuse(f"invalid volume format: {flags['mount']}. Expected format: <src>;<dest>[;<mode>]")
codes = [int(code) for code in flags.get("restart-on-exit-codes", "").split(",") if code]
if not all(1 <= code <= 255 for code in codes):
    refuse(f"invalid exit codes: {codes}")
rule = {"action": "FailJob", "onExitCodes": {"operator": "NotIn", "values": codes}}
pod = {
    "terminationGracePeriodSeconds": seconds(flags.get("grace-period", "30s"), "grace-period"),
    "priorityClassName": flags.get("priority", "medium"),
    "restartPolicy": "Never",
    "containers": [{"image": flags["image"], "command": ["/bin/bash", "-c", flags["command"]]}],
}
job = {"backoffLimit": 0, "template": {"spec": pod}}
if codes:
    job["podFailurePolicy"] = {"rules": [rule]}
failure_rule = {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
jobset = {
    "metadata": {"name": flags["name"]},
    "spec": {
        "ttlSecondsAfterFinished": seconds(
            flags.get("gke-ttl-after-finished", "1h"), "gke-ttl-after-finished"
        ),
        "failurePolicy": {"maxRestarts": int(flags.get("restarts", 1)), "rules": [failure_rule]},
        "replicatedJobs": [
            {"replicas": int(flags.get("num-slices", 1)), "template": {"spec": job}}
        ],
    },
}
path = Path(os.environ["STAND_IN_CLUSTER"]) / f"{flags['name']}.json"
if path.exists():
    refuse(f"{flags['name']} already exists")
path.write_text(json.dumps(jobset))
