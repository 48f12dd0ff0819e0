"""The environment of a command: the variables in which common runtimes are told of their roots.

Two kinds of variable. Most *replace* the runtime's list, so they get the bundle (the roots that the command would have
used, and ours). `NODE_EXTRA_CA_CERTS` *adds* to Node's built-in list, so it gets our root and whatever the caller had
added. Nothing is unset: `SSL_CERT_DIR` of the caller stays, because every reader of it adds it to `SSL_CERT_FILE`, and
the bundle holds its roots anyway. docs/ca.md lists what each program was seen to do, and which programs do not listen.
"""

from __future__ import annotations

from collections.abc import Mapping

from mitmsec.core.model import Value
from mitmsec_certs.bundle import Bundle, Files, LocalFiles, named_file, with_root

REPLACING = (
    "SSL_CERT_FILE",  # OpenSSL and what is built on it: Python, Ruby, Perl, Go, uv, rustls-native-certs
    "CURL_CA_BUNDLE",  # curl; requests
    "REQUESTS_CA_BUNDLE",  # requests, httpx before 0.28, Azure's command line
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    "AWS_CA_BUNDLE",
    "CARGO_HTTP_CAINFO",
    "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "HTTPLIB2_CA_CERTS",
    "NIX_SSL_CERT_FILE",
    "npm_config_cafile",  # npm, pnpm, yarn 1
    "YARN_HTTPS_CA_FILE_PATH",
    "DENO_CERT",
    "PERL_LWP_SSL_CA_FILE",
    "HEX_CACERTS_PATH",
    "SYSTEM_CERTIFICATE_PATH",  # Haskell's x509-system
    "BUNDLE_SSL_CA_CERT",
    "COMPOSER_CAFILE",
    "CONAN_CACERT_PATH",
    "JULIA_SSL_CA_ROOTS_PATH",
)
ADDING = "NODE_EXTRA_CA_CERTS"


class CommandTrust(Value, frozen=True):
    """What a command is to be told. The caller writes the two files where the command can read them."""

    bundle_pem: bytes
    extra_pem: bytes
    replaced: tuple[str, ...]  # variables that the caller had set to something that the command no longer sees

    def variables(self, bundle_path: str, extra_path: str) -> dict[str, str]:
        """Name → value, for files at these absolute paths."""
        return dict.fromkeys(REPLACING, bundle_path) | {ADDING: extra_path}


def command_trust(
    environ: Mapping[str, str], bundle: Bundle, root_pem: str, files: Files | None = None
) -> CommandTrust:
    """The trust of a command with `environ`, whose roots are `bundle` (see `roots_as_used`).

    Raises BadBundle when the file that the caller's NODE_EXTRA_CA_CERTS names cannot be read as certificates.
    """
    added = environ.get(ADDING)
    extra = named_file(ADDING, added, files or LocalFiles()) if added else ()
    kept = {"", environ.get("SSL_CERT_FILE", "")}
    return CommandTrust(
        bundle_pem=with_root(bundle, root_pem),
        extra_pem=with_root(Bundle(roots=extra, sources=()), root_pem),
        replaced=tuple(name for name in REPLACING if environ.get(name, "") not in kept),
    )
