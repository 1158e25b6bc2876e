"""Several model repositories at once: each as `models` looks at one, and what is wrong with them together."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from trivec_server.doctor.finding import Finding, Status
from trivec_server.doctor.models import RepositoryReport, check_repository
from trivec_server.errors import CommandError
from trivec_server.repository.roots import DUPLICATE
from trivec_server.repository.scan import list_models
from trivec_server.settings import EVERY_MODEL, ServeSettings


def check_repositories(settings: ServeSettings, *, load: bool) -> RepositoryReport:
    """Every repository, with the models that are to be loaded from it."""
    if EVERY_MODEL in settings.load_models:
        settings = replace(settings, load_models=())
    held = {root: _names(root) for root in settings.model_repositories}
    counts = Counter(name for names in held.values() for name in names)
    findings = [Finding("repository", Status.FAIL, f"{name}: {DUPLICATE}") for name, n in counts.items() if n > 1]
    reports = [
        check_repository(own, load=load)
        for root in settings.model_repositories
        if (own := _own_settings(settings, root, held[root], counts)) is not None
    ]
    return RepositoryReport(
        (*findings, *(finding for report in reports for finding in report.findings)),
        sum(report.model_bytes for report in reports),
        tuple(key for report in reports for key in report.served),
    )


def _own_settings(
    settings: ServeSettings, root: Path, names: frozenset[str], everywhere: Counter[str]
) -> ServeSettings | None:
    """The settings as they concern one repository; None if nothing of it is to be loaded. What is nowhere stays."""
    own = tuple(name for name in settings.load_models if name in names or name not in everywhere)
    if settings.load_models and not own:
        return None
    default = settings.default_model
    if default in everywhere and default not in names:
        default = None
    return replace(settings, model_repositories=(root,), load_models=own, default_model=default)


def _names(root: Path) -> frozenset[str]:
    try:
        return frozenset(path.name for path in list_models(root))
    except CommandError:
        # The check of this repository tells it.
        return frozenset()
