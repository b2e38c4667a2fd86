"""`launch/dashboard.py`: what it saves, that it saves it once, and what it says when it can't."""

from __future__ import annotations

import json

from tests.tracking.conftest import KEY, Tracked
from tests.tracking.loopback import Loopback


def test_a_workspace_and_a_report_are_saved_and_brought_up_to_date(copied: Tracked) -> None:
    with Loopback() as server:
        tracked = Tracked(copied.outputs, {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url})
        early = tracked.dashboard("grid")
        assert early.returncode == 2
        assert "python launch/dashboard.py grid sync" in early.stderr  # the project is not there yet
        assert tracked.dashboard("grid", "sync").returncode == 0
        server.views.clear()
        for _ in range(2):
            done = tracked.dashboard("grid")
            assert done.returncode == 0, done.stdout + done.stderr
            assert f"workspace: {server.url}/someone/vlsafe" in done.stdout
            assert f"report: {server.url}/someone/vlsafe/reports/" in done.stdout
        assert [view["type"] for view in server.views] == ["project-view", "runs"] * 2
        assert server.views[2]["id"] and server.views[3]["id"]
        assert not server.unknown or not any("View" in asked for asked in server.unknown)
        for view in server.views[:2]:
            spec = view["spec"]
            assert json.loads(spec)
            for panel in ("Parallel Coordinates Plot", "Scatter Plot", "Run Comparer", "Run History Line Plot"):
                assert panel in spec, (view["type"], panel)
            assert "final/mean/text_safety" in spec and "final/mean/over_refusal" in spec
            assert '"grid"' in spec  # the sweep's runs alone
            assert "safety_tune" in spec and "merge" in spec


def test_without_a_key_or_a_sweep_it_says_what_to_set(copied: Tracked) -> None:
    done = copied.dashboard("grid")
    assert done.returncode == 2
    assert done.stderr == "error: no key for api.wandb.ai: set WANDB_API_KEY or run `wandb login`\n"
    missing = copied.dashboard("gird")
    assert missing.returncode == 2
    assert "no sweep 'gird'" in missing.stderr and "there are: grid" in missing.stderr
