"""How log lines of CTranslate2 map to diagnoses. Excerpts of real logs: tests/engines/data/ctranslate2-*.log."""

from __future__ import annotations

from agent.engines import torch_failures
from agent.engines.signatures import Signature
from agent.status import Diagnosis, DiagnosisCode, ExitStatus

_CONVERT_AGAIN = "convert the model again, with --copy_files tokenizer.json"

#: The first that is found decides, so causes stand before their consequences.
SIGNATURES: tuple[Signature, ...] = (
    Signature(
        r"^Exception: No such file or directory",
        DiagnosisCode.MODEL_MISSING,
        "the model's directory has no tokenizer.json that can be read",
        _CONVERT_AGAIN,
    ),
    Signature(
        r"Unable to open file '(.*)' in model|Cannot load the vocabulary from the model directory",
        DiagnosisCode.MODEL_MISSING,
        "a file of the converted model is missing",
        _CONVERT_AGAIN,
    ),
    Signature(
        r"(?:Unsupported model binary version|Unsupported model spec|Unsupported revision|unknown model spec)",
        DiagnosisCode.MODEL_UNSUPPORTED,
        "this version of CTranslate2 does not read the model",
        "use a newer CTranslate2, or convert the model again with this one",
    ),
    Signature(
        r"(has an invalid payload size|File .*model\.bin is incomplete|variable \S+ not found)",
        DiagnosisCode.MODEL_CORRUPT,
        "the model is not whole ({0})",
        "convert or copy it again",
    ),
    Signature(
        r"This CTranslate2 package was not compiled with CUDA support|Library lib(cublas|cudnn)\S* is not found",
        DiagnosisCode.BINARY_MISSING,
        "this build of CTranslate2 cannot use the device",
        "install it with CUDA 12's libraries, or use `devices: cpu`",
    ),
    Signature(
        r"CUDA failed with error out of memory",
        DiagnosisCode.DEVICE_OOM,
        "the device's memory was exhausted",
        "lower limits.max_model_len or limits.max_num_seqs",
    ),
    Signature(
        r"No module named '(ctranslate2|tokenizers)'",
        DiagnosisCode.BINARY_MISSING,
        "the Python module {0} is missing",
        "install ctranslate2 and tokenizers, and set engines.ctranslate2.binary to their Python",
    ),
)


def diagnose(exit_status: ExitStatus, log_tail: str) -> Diagnosis:
    """Why it ended unasked."""
    return torch_failures.diagnose(exit_status, log_tail, (*SIGNATURES, *torch_failures.SIGNATURES))
