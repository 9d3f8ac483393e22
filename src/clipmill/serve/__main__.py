"""``python -m clipmill.serve SETTINGS``: an endpoint in a process of its own.

``SETTINGS`` is the JSON of ProcessSettings.
"""

import json
import logging
import os
import sys
from pathlib import Path

from clipmill.errors import UserError
from clipmill.logs import configure_logging
from clipmill.processes import stop_with_parent
from clipmill.serve.launch import ProcessSettings


def main() -> int:
    """Serve until SIGTERM or SIGINT; 2 is the exit code of a mistake that the user can mend."""
    settings = ProcessSettings.from_json(json.loads(sys.argv[1]))
    configure_logging("INFO", json=settings.json_logs)
    if settings.stop_with_parent:
        stop_with_parent()
    try:
        from clipmill.serve.launch import serve

        serve(
            settings.models,
            models_file=None if settings.models_file is None else Path(settings.models_file),
            host=settings.host,
            http_port=settings.http_port,
            grpc_port=settings.grpc_port,
            config=settings.config,
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    # All is closed by now. Taking torch and KServe apart module by module takes seconds.
    os._exit(code)
