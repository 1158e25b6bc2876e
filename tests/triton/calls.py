"""
Calls Triton's own client against a server and writes what each came to, a JSON object a line. Runs in
`.venv-tritonclient`, from the repository's root:

    python -m tests.triton.calls TARGET --group serving --model-file model.py --files FOLDER
"""

import argparse
import json
import sys
from pathlib import Path

from tests.triton import calls_infer, calls_refused, calls_repository, calls_server, calls_streams
from tests.triton.recording import Session

GROUPS = {
    "serving": (calls_server.calls, calls_infer.calls, calls_refused.calls, calls_streams.calls, calls_refused.fatal),
    "explicit": (calls_repository.calls,),
}
"""`serving` wants all of MODELS loaded in mode none; `explicit` a server in mode explicit that has loaded one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--group", choices=GROUPS, required=True)
    parser.add_argument("--model-file", required=True, help="how a version's file is named there")
    parser.add_argument("--files", type=Path, required=True, help="a folder with the files to load models from")
    arguments = parser.parse_args()
    files = {path.name: path.read_bytes() for path in arguments.files.iterdir()}
    session = Session(arguments.target, arguments.model_file, files)
    try:
        for calls in GROUPS[arguments.group]:
            for record in calls.record(session):
                sys.stdout.write(json.dumps(record, ensure_ascii=False, sort_keys=True) + "\n")
    finally:
        session.close()


if __name__ == "__main__":
    main()
