"""Asking an index needs neither torch nor anything else that is slow to import; only encoding new texts does."""

import subprocess
import sys
from pathlib import Path

from tests.sae.inspection import planted_store as ps

ROOT = Path(__file__).parents[4]
ASK = """
import sys
from sae.inspection.index import FeatureIndex
import sae.inspection.encoded, sae.inspection.query, sae.inspection.widget
index = FeatureIndex.open({folder!r})
for result in (index.search("w1"), index.top(by="max"), index.compare(4, 5)):
    result._repr_html_(), repr(result)
slow = ("torch", "numba", "scipy", "sklearn", "transformer_lens", "transformers", "datasets", "anywidget", "plotly")
print([name for name in slow if name in sys.modules])
"""


def test_search_tables_and_comparisons_import_nothing_slow(tmp_path):
    ps.built(tmp_path / "index", ps.random_store(), ps.random_pursuit(), vocabulary=[f"w{i}" for i in range(12)])
    program = ASK.format(folder=str(tmp_path / "index"))
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
