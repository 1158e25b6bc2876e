"""Ready arrays from MLServer: what is left is MLServer itself. Copied beside its settings."""

import numpy as np
from mlserver import MLModel  # type: ignore[import-not-found, unused-ignore]
from mlserver.codecs import NumpyCodec  # type: ignore[import-not-found, unused-ignore]
from mlserver.types import (  # type: ignore[import-not-found, unused-ignore]
    InferenceRequest,
    InferenceResponse,
)

DIMENSION = 1024
MAX_ROWS = 1024


class ReadyModel(MLModel):  # type: ignore[misc, unused-ignore]
    async def load(self) -> bool:
        self._vectors = np.full((MAX_ROWS, DIMENSION), DIMENSION**-0.5, np.float32)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = payload.inputs[0].shape[0]
        output = NumpyCodec.encode_output("vector", self._vectors[:rows])
        return InferenceResponse(model_name=self.name, outputs=[output])
