"""Tests of the CS-2 side: they run in its own environment (`make env-csx`), and are passed over where it is not."""

import importlib.util
import sys
from pathlib import Path

# Its environment has cerebras.pytorch, which does not import beside the main environment's torch.
collect_ignore_glob = [] if importlib.util.find_spec("cerebras") else ["test_*.py"]
sys.path.insert(0, str(Path(__file__).parent))  # csx_runs and cluster, which the tests here share
