"""Schemathesis against the running service: thousands of requests made from its own description, none of which may fail it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.api.conftest import MakeClient
from tests.api.lake_builder import LakeBuilder
from tests.api.test_filters_property import random_lake

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.mark.timeout(900)
def test_generated_requests_never_fail_the_service(
    builder: LakeBuilder, make_client: MakeClient, tmp_path: Path
) -> None:
    random_lake(builder, 3)
    # Snapshots are reused and every quota is off: this test is about the contract, not about the limits.
    client = make_client(
        access={"requests_per_minute": 0, "bytes_per_day": 0},
        snapshot_seconds=60,
        exports_per_owner=1000,
        export_queue=10_000,
    )
    program = Path(sys.executable).with_name("schemathesis")
    arguments = ["run", f"{client.base_url}/openapi.json", "--checks", CHECKS, "--phases", "examples,fuzzing"]
    arguments += ["--max-examples", "130", "--seed", "1", "--no-color", "--workers", "2"]
    done = subprocess.run([program, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
    found = re.search(r"([\d,]+) generated, ([\d,]+) passed", done.stdout)
    assert found is not None, done.stdout[-3000:]
    generated, passed = (int(number.replace(",", "")) for number in found.groups())
    assert generated == passed
    assert generated >= 2000
    assert client.get("/health/ready").status_code == 200
    failed = [
        job for job in client.get("/v1/exports").json()["exports"] if job["error"] and job["error"]["status"] >= 500
    ]
    assert not failed
