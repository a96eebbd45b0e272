"""The device of the tests here: a GPU, or with `--device cpu` a rehearsal."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> Iterator[torch.device]:
    wanted = torch.device(pytestconfig.getoption("--device"))
    if wanted.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU; --device cpu rehearses it")
    with torch.backends.cudnn.flags(allow_tf32=False):  # the patches' convolution; of products it is torch's default
        yield wanted
