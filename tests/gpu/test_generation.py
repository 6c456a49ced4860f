"""A model that writes on a GPU with its weights in bfloat16: half of the memory, and near to what float32 says."""

import pytest
import torch

from modelzoo.generation.load import load_model
from tests.evaluation_world import words  # noqa: F401 - a fixture
from tests.generation.conftest import write_run
from tests.generation.test_write import GREEDY, MODELS, PROMPTS, write
from tests.gpu.device import DEVICE, GPU, TARGET

pytestmark = pytest.mark.gpu


@torch.no_grad()
@pytest.mark.parametrize("name", ["learned", "llama, shared keys", "bloom"])
def test_weights_in_bfloat16_say_nearly_the_same(name, words, tmp_path):  # noqa: F811
    folder = str(write_run(tmp_path / "run", words, model=MODELS[name]))
    whole, narrow = (load_model(folder, target=TARGET, dtype=d) for d in ("float32", "bfloat16"))
    assert sum(p.nbytes for p in narrow.model.parameters()) <= 0.6 * sum(p.nbytes for p in whole.model.parameters())
    assert any("weights and products are bfloat16" in line for line in narrow.notes) is GPU
    ids = torch.randint(0, 311, (2, 40), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    exact, found = (m.model.model.hidden(ids).float() for m in (whole, narrow))
    assert (found - exact).norm() < 0.05 * exact.norm()
    assert all(text.ids for text in write(narrow, PROMPTS, GREEDY))
