"""The deliberate breaks still find the code they break."""

from pathlib import Path

import pytest

from tests.laws.mutations import MUTANTS, ROOT


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_a_mutant_changes_one_place(mutant):
    source = (Path(ROOT) / "driftbridge" / mutant.file).read_text()
    assert source.count(mutant.old) == 1
    assert mutant.old != mutant.new
