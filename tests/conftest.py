"""What holds for all tests."""

import os
import signal
from collections.abc import Generator

import pytest

from core.modules import FOLDERS

# A shell that starts us in the background has us ignore Ctrl-C, and whatever we start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_folders() -> Generator[None, None, None]:
    """Forget the folders in which commands of this process looked for modules: a test's own processes inherit them."""
    os.environ.pop(FOLDERS, None)
    yield
    os.environ.pop(FOLDERS, None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With NO_SKIPS=1 a test that would be left out fails: for machines that have all that is needed."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("NO_SKIPS") == "1":
        report.outcome = "failed"
        report.longrepr = f"NO_SKIPS=1, and {item.name} was left out: {call.excinfo.value if call.excinfo else ''}"
    return report
