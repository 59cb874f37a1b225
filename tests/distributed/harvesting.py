"""What each process of test_harvest.py does: ``python harvesting.py CONFIG.json OUT [MISHAP]``."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("SAECACHE_TIMEOUT", "300")

from saecache.common.errors import SaecacheError
from saecache.distributed import join_world
from saecache.harvest import HarvestConfig
from saecache.harvest.runner import run


def main() -> int:
    config = HarvestConfig.model_validate(json.loads(Path(sys.argv[1]).read_text()))
    try:
        with join_world():
            result = run(config, sys.argv[2])
    except KeyboardInterrupt:
        return 130
    except SaecacheError as error:
        print(f"{type(error).__name__}: {error}")
        return error.exit_status
    print(json.dumps({"path": str(result.path), "reused": result.reused, "fingerprint": result.manifest.fingerprint}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
