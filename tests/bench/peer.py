"""walvec as one command for a comparison rig: keeps `walvec.items` (id, embedding) in step with `items(id, body)`.

Environment: PG_URI, OPENAI_BASE_URL, OPENAI_API_KEY, EMBED_MODEL, EMBED_DIMENSIONS, WORK_DIR. Runs until SIGTERM.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import yaml

from tests.plugins.ports import free_port


def main() -> None:
    work = Path(os.environ["WORK_DIR"])
    definitions = work / "definitions.yaml"
    document = {
        "connections": [{"name": "rig", "provider": "postgresql", "mode": "platform", "url": "${PG_URI}"}],
        "embedding_providers": [
            {
                "name": "remote",
                "provider": "openai",
                "api_key": "${OPENAI_API_KEY}",
                "base_url": "${OPENAI_BASE_URL}",
            }
        ],
        "vector_tables": [
            {
                "name": "items",
                "connection": "rig",
                "embedding_provider": "remote",
                "source_table": "items",
                "mode": "platform",
                "columns": [{"name": "body", "role": "embedding"}],
                "embedding_model": os.environ["EMBED_MODEL"],
                "embedding_dimensions": int(os.environ["EMBED_DIMENSIONS"]),
                "index": {"kind": "none"},
            }
        ],
    }
    definitions.write_text(yaml.safe_dump(document))
    os.environ |= {
        "WALVEC_DATA_DIR": str(work / "data"),
        "WALVEC_API__PORT": str(free_port()),
        "WALVEC_CONTROL_DATABASE__URL": os.environ["PG_URI"],
        "WALVEC_PGVECTOR__URL": os.environ["PG_URI"],
    }
    os.execv(sys.executable, [sys.executable, "-m", "walvec", "up", "--apply", str(definitions)])


if __name__ == "__main__":
    main()
