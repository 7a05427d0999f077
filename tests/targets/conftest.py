"""The command line in process, as the tests of the front door have it."""

from tests.tokenrt.conftest import run as run
