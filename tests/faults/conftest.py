"""A small project of real files for each test, and real processes that are killed at real moments."""

from tests.stages.conftest import digits as digits
from tests.stages.conftest import environment as environment
from tests.stages.conftest import project as project
