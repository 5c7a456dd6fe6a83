"""Failed assertions of the shared laws are explained like those of a test file."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.store.laws")
