"""What every test gets: one computing thread, waiting threads that sleep, and a home of its own."""

from __future__ import annotations

import io
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attacks import ATTACKS, key_of, table
from hypothesis import settings

from klype.device import set_threads, thread_policy
from tests.pretend_device import device  # noqa: F401 - a fixture

thread_policy()
set_threads(1)
# Whoever starts the tests in the background has Ctrl-C ignored, and what tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# A shared machine stalls now and then: an example's wall time says nothing about the code.
settings.register_profile("klype", deadline=None, max_examples=50)
settings.load_profile("klype")


DEAR = {
    "test_runs_pipeline": {"world_run"},
    "test_train_parallel": {"place", "troubles"},
    "test_model_native": {"folder", "theirs", "packed"},
    "test_experiments_bias": {"ran"},
    "test_experiments_mistakes": {"ran"},
    "test_bench_align": {"given"},
    "test_studio_browser": {"base", "empty", "browser", "axe"},
    "test_report_browser": {"browser", "folders"},
    "test_studio_app": {"place"},
}
"""Fixtures that take seconds to make: whoever uses one is slow, too."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if DEAR.get(item.path.stem, set()) & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
        if attack := ATTACKS.get(key_of(item.nodeid)):
            item.user_properties.append(("attack", attack))  # it travels with the report, from other processes too


def pytest_terminal_summary(terminalreporter: Any) -> None:
    outcomes = [
        (*attack, report.passed)
        for kind in ("passed", "failed", "error")
        for report in terminalreporter.stats.get(kind, ())
        if isinstance(report, pytest.TestReport) and (report.when == "call" or not report.passed)
        for name, attack in report.user_properties
        if name == "attack"
    ]
    if outcomes:
        terminalreporter.section("attacks")
        for line in table(outcomes):
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where klype's C is kept: compiled once, it is the same for all tests."""
    folder = tmp_path_factory.mktemp("compiled")
    folder.chmod(0o700)
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, compiled_once: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """KLYPE_HOME holds what is compiled and is the test's own; no language and no key come from the machine."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "cache").symlink_to(compiled_once)
    monkeypatch.setenv("KLYPE_HOME", str(folder))
    monkeypatch.setenv("KLYPE_LANG", "en")
    monkeypatch.delenv("KLYPE_API_KEY", raising=False)
    return folder


@pytest.fixture(scope="session")
def smollm() -> Path:
    """SmolLM2's GGUF file, where its package is installed."""
    from benchmarks.generate import packaged_model
    from klype.errors import KlypeError

    try:
        return packaged_model()
    except KlypeError as error:
        pytest.skip(error.message)


@pytest.fixture
def elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the test works: an empty folder, without the runs that the checkout's owner may have made."""
    folder = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """What is typed next: it stands on stdin."""
    return lambda text: monkeypatch.setattr("sys.stdin", io.StringIO(text))
