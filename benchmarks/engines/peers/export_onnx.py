"""
Exports a checkpoint with optimum, as users of ONNX Runtime do: `python -m ...export_onnx CHECKPOINT DIRECTORY` writes
`DIRECTORY/model.onnx`, whose output is `last_hidden_state`. For infinity-emb's engine `optimum` and for bge-m3-lite.
"""

import sys
from pathlib import Path

from optimum.exporters.onnx import main_export  # type: ignore[import-not-found, unused-ignore]

_OPSET = 14
_READY = "ready"


def main() -> None:
    checkpoint, directory = Path(sys.argv[1]), Path(sys.argv[2])
    if (directory / _READY).exists():
        return
    main_export(
        str(checkpoint),
        str(directory),
        task="feature-extraction",
        opset=_OPSET,
        do_validation=False,
        library_name="transformers",
    )
    (directory / _READY).touch()


if __name__ == "__main__":
    main()
