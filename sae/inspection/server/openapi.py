"""The schema of the API as a file: what `openapi.json` beside this module must hold.

python -m sae.inspection.server.openapi          writes it again after a change
"""

import json
from pathlib import Path

from sae.inspection.server.app import create_app
from sae.inspection.server.context import Registry, ServerContext

FILE = Path(__file__).with_name("openapi.json")


def schema_text() -> str:
    """The schema as JSON, keys in order."""
    return json.dumps(create_app(ServerContext(Registry({}))).openapi(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    FILE.write_text(schema_text(), encoding="utf-8")
