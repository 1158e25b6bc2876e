"""
Calls ModelInfer with Triton's own client, one call after the other, until its standard input ends; then writes what
came of it, as a JSON object. Runs in `.venv-tritonclient`: python kserve_load.py TARGET MODEL
"""

import json
import sys
import threading
from typing import Any

import numpy as np
import tritonclient.grpc as triton  # type: ignore[import-not-found,unused-ignore] # in an environment of its own

TEXTS = ("hello world", "人工智能", "the hello")


def main(target: str, model: str) -> None:
    over = threading.Event()

    def listen() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=listen, daemon=True).start()
    client: Any = triton.InferenceServerClient(target)
    text = triton.InferInput("text", [len(TEXTS), 1], "BYTES")
    text.set_data_from_numpy(np.array([[each.encode()] for each in TEXTS], dtype=object))
    outputs = [triton.InferRequestedOutput(name) for name in ("dense", "sparse_values", "multi_vector")]
    calls, failures = 0, []
    while not over.is_set():
        try:
            result = client.infer(model, [text], outputs=outputs)
            if len(result.as_numpy("dense")) != len(TEXTS):
                failures.append("rows are missing")
        except triton.InferenceServerException as fault:
            failures.append(f"{fault.status()}: {fault.message()}")
        calls += 1
        if calls == 1:
            sys.stderr.write("begun\n")
            sys.stderr.flush()
    client.close()
    sys.stdout.write(json.dumps({"calls": calls, "failures": failures}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
