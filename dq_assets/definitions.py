"""The code location: every registered dataset's assets, checks, jobs, schedules and sensors; and running an audit in process.

Importing this module reads the registrations under $DQ_HOME and nothing else; it loads no torch and takes under 3 s.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from dq_assets.defs.assets import dataset_assets, selection
from dq_assets.defs.automation import automation_sensor, job_name, schedules, source_sensor
from dq_assets.defs.checks import dataset_checks, gates_op_name
from dq_assets.defs.session import session_key, session_resource
from dq_assets.report.progress import Reporter
from dq_assets.settings import Dataset, Home, UserError


def build_defs(home: Home, datasets: Sequence[Dataset] | None = None, *, reporter: Reporter | None = None) -> dg.Definitions:
    """Definitions of the given datasets, or of all that are registered. Fresh at every call, for tests, CLI and server."""
    found = home.datasets() if datasets is None else list(datasets)
    assets = {d.name: dataset_assets(d) for d in found}
    jobs = [
        dg.define_asset_job(
            job_name(d),
            selection=selection(d) | dg.AssetSelection.checks_for_assets(*(k for a in assets[d.name] for k in a.keys)),
            description=f"The whole audit of {d.name}, and training if its gates are open.",
            tags={"dq_assets/dataset": d.name},
        )
        for d in found
    ]
    return dg.Definitions(
        assets=[asset for of_one in assets.values() for asset in of_one],
        asset_checks=[check for d in found for check in dataset_checks(d)],
        jobs=jobs,
        schedules=[schedule for d in found for schedule in schedules(d)],
        sensors=[*(source_sensor(d, home) for d in found), *([automation_sensor()] if found else [])],
        resources={session_key(d): session_resource(d, home, reporter) for d in found},
        # A step's start costs seconds in the multiprocess executor, and the audit lock belongs to one process.
        executor=dg.in_process_executor,
    )


@dataclass(frozen=True)
class AuditRun:
    """How a run ended: `failure` is None if the audit is complete, also where a gate is closed."""

    run_id: str
    failure: str | None
    trace: str | None


def instance_of(home: Home) -> dg.DagsterInstance:
    """The Dagster instance under $DQ_HOME, the one the UI uses; its dagster.yaml is placed there on first use."""
    home.dagster.mkdir(parents=True, exist_ok=True)
    config = home.dagster / "dagster.yaml"
    if not config.exists():
        config.write_text(_shipped("dagster.yaml"), encoding="utf-8")
    os.environ["DAGSTER_HOME"] = str(home.dagster)
    return dg.DagsterInstance.from_config(str(home.dagster))


def _shipped(name: str) -> str:
    """A file of the repository's top level, which a wheel carries inside the package."""
    here = Path(__file__).parent
    for folder in (here, here.parent):
        if (folder / name).exists():
            return (folder / name).read_text(encoding="utf-8")
    raise UserError(f"{name} is missing from the installation. Install dq-assets again.")


def run_audit(dataset: Dataset, home: Home, reporter: Reporter) -> AuditRun:
    """Run the whole graph of a dataset in this process, in the UI's Dagster instance. Raises KeyboardInterrupt when interrupted."""
    definitions = build_defs(home, [dataset], reporter=reporter)
    with instance_of(home) as instance:
        result = definitions.resolve_job_def(job_name(dataset)).execute_in_process(
            instance=instance,
            raise_on_error=False,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
        for event in result.all_events:
            # That the gates' op fails is how Dagster holds training; the audit itself is complete.
            if event.is_step_failure and event.step_key != gates_op_name(dataset):
                error = event.step_failure_data.error
                cause = error
                while cause is not None and cause.cause is not None:
                    cause = cause.cause
                if cause is not None and cause.cls_name == dg.DagsterExecutionInterruptedError.__name__:
                    raise KeyboardInterrupt  # Dagster turned the signal into a failed step
                return AuditRun(result.run_id, _one_line(cause), error.to_string() if error else None)
            if event.event_type == dg.DagsterEventType.RUN_FAILURE and not any(e.is_step_failure for e in result.all_events):
                return AuditRun(result.run_id, event.message or "the run failed", event.message)
    return AuditRun(result.run_id, None, None)


def _one_line(error: object) -> str:
    """The error's text; the name of the class is left out where it is ours and says nothing more."""
    message = " ".join(str(getattr(error, "message", error)).split())
    return re.sub(r"^dq_assets\.[\w.]+: ", "", message) or "The run failed without a message."


defs = build_defs(Home.from_environment())
