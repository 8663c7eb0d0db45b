"""The generated pages of docs are up to date with the code."""

import pytest
from conftest import CHECKOUT

from docs.generate import COMMAND, PAGES


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_that_of_the_code(name):
    page = CHECKOUT / "docs" / name
    if not page.exists() or page.read_text() != PAGES[name]():
        pytest.fail(f"docs/{name} is old; write it again with: {COMMAND}", pytrace=False)
