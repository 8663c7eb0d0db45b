"""The patches of `tests/mutations` apply, and their tests exist; `tests/mutations/run` shows that these notice them."""

import os
import re
import subprocess

import pytest
from conftest import CHECKOUT

PATCHES = sorted((CHECKOUT / "tests" / "mutations").glob("*.patch"))


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_a_patch_applies_and_names_tests_that_are_there(patch, tmp_path):
    text = patch.read_text()
    [file] = re.findall(r"(?m)^\+\+\+ b/(.*)$", text)
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text((CHECKOUT / file).read_text())
    subprocess.run(
        ["git", "apply", str(patch)], cwd=tmp_path, check=True, env={**os.environ, "GIT_CEILING_DIRECTORIES": "/"}
    )
    assert (tmp_path / file).read_text() != (CHECKOUT / file).read_text()
    for test in text.splitlines()[1].removeprefix("Tests: ").removeprefix("--full ").split():
        path, _colons, name = test.partition("::")
        assert f"def {name}(" in (CHECKOUT / path).read_text() if name else (CHECKOUT / path).is_file()


def test_there_are_patches():
    assert len(PATCHES) > 20
