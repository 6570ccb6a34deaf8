"""Flower's configuration: who may look, and what is shown. Identifiers and times, never text."""

import ast
import os
import re

address = os.environ.get("PENSTOCK_FLOWER_ADDRESS", "127.0.0.1")
max_tasks = 20_000
task_runtime_metric_buckets = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0]
tasks_columns = "name,uuid,state,worker,received,runtime,kwargs,result"
natural_time = False

SHOWN = ("tenant", "tier", "lane", "prompt", "prompt_version", "job_id", "reason", "attempts")
LONGEST_IDENTIFIER = 64

if os.environ.get("PENSTOCK_FLOWER_OPEN") == "1":
    os.environ["FLOWER_UNAUTHENTICATED_API"] = "true"
elif re.fullmatch(".+:.+", os.environ.get("PENSTOCK_FLOWER_AUTH", "")):
    basic_auth = [os.environ["PENSTOCK_FLOWER_AUTH"]]
else:
    raise SystemExit(
        "flower: set PENSTOCK_FLOWER_AUTH=user:password, or PENSTOCK_FLOWER_OPEN=1 on a machine of your own"
    )


def format_task(task):
    """Show of the arguments what identifies a job, whatever a foreign producer sent along."""
    task.args = "()"
    try:
        given = ast.literal_eval(task.kwargs)
        task.kwargs = repr({name: str(given[name])[:LONGEST_IDENTIFIER] for name in SHOWN if name in given})
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        task.kwargs = "{}"
    return task
