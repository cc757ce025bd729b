import gc

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread_without_garbage_collection():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    torch.set_num_threads(threads)
