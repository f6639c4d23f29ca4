"""Creates certificates for the Envoy pair and service-account tokens for the Naru pair, with
openssl.
"""

import base64
import json
import subprocess
import time

from processes import run
from topology import NAMESPACE, identity

DAYS = "2"
TOKEN_S = 12 * 3600
TOKEN_ISSUER = "https://tokens.bench.invalid"


def _key(path):
    run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(path)])


def authority(directory):
    """Creates ca.pem and ca.key."""
    _key(directory / "ca.key")
    run(
        [
            "openssl",
            "req",
            "-x509",
            "-new",
            "-key",
            str(directory / "ca.key"),
            "-days",
            DAYS,
            "-subj",
            "/O=bench",
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
            "-out",
            str(directory / "ca.pem"),
        ]
    )


def certificate(directory, account):
    """Creates ACCOUNT.pem and ACCOUNT.key (ECDSA P-256) for TLS clients and servers, with the
    account's SPIFFE ID.
    """
    key, request = directory / f"{account}.key", directory / f"{account}.csr"
    extensions = directory / f"{account}.ext"
    _key(key)
    extensions.write_text(
        f"subjectAltName=critical,URI:{identity(account)}\nkeyUsage=critical,digitalSignature\n"
        "extendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=critical,CA:FALSE\n"
    )
    run(["openssl", "req", "-new", "-key", str(key), "-subj", "/", "-out", str(request)])
    run(
        [
            "openssl",
            "x509",
            "-req",
            "-in",
            str(request),
            "-CA",
            str(directory / "ca.pem"),
            "-CAkey",
            str(directory / "ca.key"),
            "-CAcreateserial",
            "-days",
            DAYS,
            "-extfile",
            str(extensions),
            "-out",
            str(directory / f"{account}.pem"),
        ]
    )
    # Readable by the proxies' user; the directory is deleted after the run.
    key.chmod(0o644)


def token_key(directory):
    """Creates token.key, which signs tokens, and token.pub."""
    _key(directory / "token.key")
    run(
        [
            "openssl",
            "ec",
            "-in",
            str(directory / "token.key"),
            "-pubout",
            "-out",
            str(directory / "token.pub"),
        ]
    )


def token(directory, account, pod):
    """A service-account token as Kubernetes projects it (a JWT, ES256)."""

    def encoded(data):
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    now = int(time.time())
    claims = {
        "iss": TOKEN_ISSUER,
        "sub": f"system:serviceaccount:{NAMESPACE}:{account}",
        "aud": ["naru.dev"],
        "iat": now,
        "exp": now + TOKEN_S,
        "kubernetes.io": {
            "namespace": NAMESPACE,
            "pod": {"name": pod, "uid": pod},
            "serviceaccount": {"name": account, "uid": account},
        },
    }
    signed = b".".join(
        encoded(json.dumps(part).encode()) for part in ({"alg": "ES256", "typ": "JWT"}, claims)
    )
    signature = subprocess.run(
        ["openssl", "dgst", "-sha256", "-sign", str(directory / "token.key")],
        input=signed,
        capture_output=True,
        check=True,
    )
    return (signed + b"." + encoded(_fixed(signature.stdout))).decode()


def _fixed(der):
    """Converts an ECDSA signature from DER (RFC 3279) to two 32-byte numbers (RFC 7518, 3.4)."""
    numbers, at = b"", 2
    for _ in range(2):
        length = der[at + 1]
        number = int.from_bytes(der[at + 2 : at + 2 + length], "big")
        numbers += number.to_bytes(32, "big")
        at += 2 + length
    return numbers
