import pytest

from robot_qsft import doctor
from robot_qsft.doctor import Finding, examine, print_findings

WORKING = Finding("torch", True, "2.13.0", "", True)
NO_GPU = Finding("GPU", False, "none", "none needed", False)
NO_RENDERER = Finding("renderer tiny", False, "crashed [sic]", "reinstall pybullet", True)


def test_optional_things_may_be_absent(capsys):
    assert print_findings([WORKING, NO_GPU]) == 0
    shown = capsys.readouterr().out
    assert "absent" in shown
    assert "Everything that the main job needs works" in shown


def test_required_things_may_not(capsys):
    assert print_findings([WORKING, NO_GPU, NO_RENDERER]) == 1
    shown = capsys.readouterr().out
    assert "missing" in shown
    assert "crashed [sic]" in shown
    assert "not working: renderer tiny" in shown


def test_this_machine_is_examined():
    findings = {finding.what: finding for finding in examine()}
    expected = {"python", "torch", "renderer tiny", "renderer egl", "GPU", "memory", "disk here"}
    assert expected <= findings.keys()
    for what in ("python", "torch", "pybullet", "renderer tiny", "libx264 encoder"):
        assert findings[what].works, findings[what]
    for finding in findings.values():
        assert finding.detail
        assert bool(finding.mend) != finding.works


@pytest.mark.parametrize(
    ("program", "detail"),
    [
        ("import os; os.abort()", "crashed with exit status -6"),
        ("raise SystemExit('no driver')", "no driver"),
        ("import time; time.sleep(60)", "drew nothing within 1 s"),
    ],
)
def test_a_renderer_that_breaks_breaks_nothing_else(monkeypatch, program, detail):
    monkeypatch.setattr(doctor, "_RENDER", program)
    monkeypatch.setattr(doctor, "_RENDERER_TIMEOUT_S", 1)
    finding = doctor._renderer("egl")
    assert not finding.works
    assert not finding.required
    assert finding.detail == detail


def test_what_is_not_installed_is_named():
    package = doctor._package("no-such-package-anywhere")
    assert (package.works, package.mend) == (False, "pip install no-such-package-anywhere")
    assert not doctor._codec("no_such_codec", "w", True, "does nothing").works
    assert not doctor._program("no-such-program", "does nothing").works
