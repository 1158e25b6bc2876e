"""All checks, in the order of what depends on what."""

from collections.abc import Callable, Iterable
from functools import partial

from trivec_server.doctor.finding import Finding, Status
from trivec_server.doctor.machine import check_cpu, check_memory, check_python
from trivec_server.doctor.packages import check_engines, check_extras, check_packages
from trivec_server.doctor.ports import check_ports
from trivec_server.doctor.repositories import check_repositories
from trivec_server.doctor.security import check_security
from trivec_server.doctor.storage import check_hub, check_leftovers, check_repository_disk
from trivec_server.doctor.variables import Variables, check_variables
from trivec_server.settings import ServeSettings


def examine(settings: ServeSettings, variables: Variables, *, load: bool) -> list[Finding]:
    """
    Runs every check for `trivec serve` with these settings. A check that cannot be done is a finding as well; nothing
    is raised.

    Args:
        settings: What the server would be started with.
        variables: What the command line knows of the environment.
        load: Whether to load each model version and run its self-check, which takes the time and memory of serving.
    """
    findings = [
        *_run("python", check_python),
        *_run("packages", check_packages),
        *_run("extras", check_extras),
        *_run("engines", check_engines),
        *_run("cpu", check_cpu),
        *_run("environment", lambda: check_variables(variables)),
        *_run("ports", lambda: check_ports(settings)),
        *_run("security", lambda: check_security(settings)),
    ]
    model_bytes = 0
    roots = settings.model_repositories

    def check_models() -> Iterable[Finding]:
        nonlocal model_bytes
        report = check_repositories(settings, load=load)
        model_bytes = report.model_bytes
        return report.findings

    return [
        *findings,
        *_run("repository", check_models),
        *(finding for root in roots for finding in _run("leftovers", partial(check_leftovers, root))),
        *_run("memory", lambda: check_memory(model_bytes)),
        *(finding for root in roots for finding in _run("disk", partial(check_repository_disk, root))),
        *_run("hub", check_hub),
    ]


def _run(name: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    try:
        return list(check())
    except ModuleNotFoundError as error:
        return [Finding(name, Status.FAIL, f"not checked: the package {error.name} is missing (see packages)")]
    except Exception as error:  # noqa: BLE001 - one check that cannot be done must not hide the others
        return [Finding(name, Status.WARN, f"could not be checked: {type(error).__name__}: {error}")]
