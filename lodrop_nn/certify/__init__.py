"""A PAC-Bayes certificate for a randomized adapter: a bound on its risk without held-out rows.

Names are imported on first use: the command line finds its command here without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lodrop_nn.certify.config import CertifyConfig
    from lodrop_nn.certify.posterior import noisy_parts
    from lodrop_nn.certify.record import CertificateRecord, read_certificate
    from lodrop_nn.certify.run import certify

_HOMES = {
    "CertificateRecord": "lodrop_nn.certify.record",
    "CertifyConfig": "lodrop_nn.certify.config",
    "certify": "lodrop_nn.certify.run",
    "noisy_parts": "lodrop_nn.certify.posterior",
    "read_certificate": "lodrop_nn.certify.record",
}

__all__ = ["CertificateRecord", "CertifyConfig", "certify", "noisy_parts", "read_certificate"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
