"""The end of a process that a test or a measurement has started."""

import subprocess

PATIENCE_S = 60.0


def end(process: "subprocess.Popen[str] | subprocess.Popen[bytes]", patience_s: float = PATIENCE_S) -> None:
    """
    Ends a process, if it has not ended, and waits until it has: by SIGTERM, or else by SIGKILL.

    Args:
        process: a child; its pipes stay open.
        patience_s: how long it may take after SIGTERM, in seconds.
    """
    process.terminate()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
