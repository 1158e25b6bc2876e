"""
Makes of an exported graph the one that bge-m3-lite runs, with its own `fuse`: `python -m ...fuse_onnx DIRECTORY`
writes `model_fused.onnx` beside `model.onnx`.
"""

import sys
from pathlib import Path

import onnx
from bge_m3_lite.fuse import fuse  # type: ignore[import-not-found, unused-ignore]

_NAMED = "model_named.onnx"
_READY = "model_fused.ready"


def main() -> None:
    directory = Path(sys.argv[1])
    if (directory / _READY).exists():
        return
    graph = onnx.load(directory / "model.onnx", load_external_data=False)
    # The published export names this output so, and bge-m3-lite asks for it by this name.
    for node in graph.graph.node:
        for index, name in enumerate(node.output):
            if name == "last_hidden_state":
                node.output[index] = "token_embeddings"
    graph.graph.output[0].name = "token_embeddings"
    onnx.save_model(graph, directory / _NAMED)
    fuse(directory / _NAMED)
    (directory / _READY).touch()


if __name__ == "__main__":
    main()
