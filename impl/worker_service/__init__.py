"""A job worker: runs Linux processes for remote clients, over mutual TLS 1.3 gRPC.

`worker_service.worker` is the library, without gRPC; `server` serves it, `client` calls it, `cli`
is the command `worker-service`.
"""

import os
import sys

# gRPC has no setting for the TLS version. This cipher suite exists only in TLS 1.2 and needs a
# pre-shared key, which neither side has, so TLS 1.2 has nothing left to negotiate. The suites of
# TLS 1.3 are not configured by this list and stay enabled. gRPC reads the variable once, when it is
# imported: that is why it is set here, and why `tls` checks that it took effect.
TLS13_ONLY_CIPHER_SUITES = "ECDHE-PSK-CHACHA20-POLY1305"
GRPC_IMPORTED_TOO_EARLY = (
    "grpc" in sys.modules and os.environ.get("GRPC_SSL_CIPHER_SUITES") != TLS13_ONLY_CIPHER_SUITES
)
os.environ["GRPC_SSL_CIPHER_SUITES"] = TLS13_ONLY_CIPHER_SUITES
